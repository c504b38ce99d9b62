"""Cost of loading a model in onnxruntime: every copy of every weight, and heap that stays when copies are gone.

The figures were measured with one-operator models in fresh processes (onnxruntime 1.31, x86-64, glibc). A weight in
the file is parsed into the heap and stays there, once. A kernel that wants another layout makes a packed copy and the
original is freed, but into the heap: later copies fill only part of these holes. Convolutions in blocks of channels
(NCHWc) go through another initializer first. A weight in an external file is mapped, and costs nothing anonymous until
it is packed; its pages leave once it is. Weights inside a branch are kept as the attribute's protobuf, as a value, and
packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.memory.integer import fused_pairs

CODE_BYTES = 8_900_000
"""Pages of onnxruntime's library that loading and running a model touches; 8.2 MB for one kernel, 9.7 for dozens."""
SESSION_BYTES = 1_500_000
"""Anonymous bytes of a session without nodes: registries, schemas, threads."""
NODE_BYTES = 4_500
"""Anonymous bytes that each node adds: the graph's structures, its kernel."""
RUN_BYTES = 500_000
"""Anonymous bytes of a first run that the arena does not see."""
MAPPED_LEAST = 0
"""External weights of any size are mapped."""
SMALL = 1024
"""Weights below stay in the model file when the others move out."""

_PACKING: Mapping[str, int] = {
    "MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "FusedGemm": 1, "ConvTranspose": 1, "LSTM": 1, "GRU": 1,
    "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QLinearMatMul": 3, "QGemm": 3,
    "QLinearConv": 3, "ConvInteger": 1, "MatMulNBits": 1, "Attention": 1, "QAttention": 1, "DynamicQuantizeLSTM": 1,
}  # fmt: skip
"""Operators whose kernels pack a constant operand while loading -> that operand; recurrent ones pack the next, too."""
_TWO_PACKED = frozenset({"LSTM", "GRU", "DynamicQuantizeLSTM"})
_BLOCKED = frozenset({"Conv", "FusedConv"})

_LEFT = {"MatMul": 0.5, "Gemm": 0.25}
"""Share of packed bytes by which the heap grows although the originals are freed (0.15 to 0.9, by their order)."""
_LEFT_USUALLY = 0.5
_LEFT_BLOCKED = 2.3
"""The same for convolutions: another initializer, its value, and the original, which stays in the heap."""
_LEFT_FOLDED = 1.0


@dataclass(frozen=True)
class LoadedWeights:
    """Weights as a session holds them.

    Args:
        anonymous_bytes: Copies in anonymous memory that stay.
        mapped_bytes: Pages of external files that runs read.
        peak_bytes: Anonymous and mapped bytes at the peak of loading, the session's structures included.
        loaded_bytes: The same after loading.
        reusable_bytes: Of these, holes of the heap that the arena may fill.
    """

    anonymous_bytes: int
    mapped_bytes: int
    peak_bytes: int
    loaded_bytes: int
    reusable_bytes: int


def loaded_weights(
    graph: Graph,
    *,
    external: bool = False,
    packed: bool = False,
    prepacking: bool = True,
    branch: bool = False,
    optimize: bool = True,
) -> LoadedWeights:
    """Count the copies of a graph's weights. Arguments as in `Configuration`."""
    anonymous = mapped = left = 0.0
    largest = nodes = 0
    for weight in graph_weights(graph):
        nbytes, share = weight.nbytes, None
        outside = external and nbytes >= SMALL
        inside = branch or weight.inside
        if prepacking and not packed:
            share = _left_share(weight, optimize)
        largest = max(largest, nbytes)
        if weight.folded:
            anonymous += nbytes
            left += 0.0 if external else _LEFT_FOLDED * nbytes
        elif share is None:
            mapped += nbytes if outside else 0
            anonymous += 0 if outside else nbytes
        else:
            anonymous += nbytes
            left += 0.0 if outside else share * nbytes
        if inside:
            anonymous += nbytes if outside else 2 * nbytes
    nodes = sum(1 for op in graph.walk() if not op.is_const)
    own = SESSION_BYTES + nodes * NODE_BYTES
    loaded = own + anonymous + mapped + left
    peak = own + anonymous + mapped + max(left, largest)
    return LoadedWeights(int(anonymous), int(mapped), int(peak), int(loaded), int(left))


@dataclass(frozen=True)
class Weight:
    """A constant tensor.

    Args:
        value: It.
        nbytes: Its bytes.
        users: Ops that read it.
        inside: It belongs to a region.
        folded: It is not in the file: onnxruntime computes it from other constants while loading.
    """

    value: Value
    nbytes: int
    users: tuple[Op, ...]
    inside: bool
    folded: bool = False


def graph_weights(graph: Graph) -> Iterator[Weight]:
    """Give a graph's weights, those of its regions and those that onnxruntime folds included; shared ones once."""
    resident = fused_pairs(graph).resident if graph.parent is None else set()
    for op in graph.walk():
        if op.is_const or op.op_type == "Constant":
            tensor = op.attrs.get("value")
            nbytes = int(getattr(tensor, "nbytes", 0) or 0)
            if nbytes and op.results[0].has_uses:
                yield Weight(op.results[0], nbytes, tuple(op.results[0].users), op.graph is not graph)
    for value in resident:
        if any(user.results and user.results[0] in resident for user in value.users) or value.tensor is not None:
            continue
        nbytes = _static_bytes(value)
        if nbytes and value.op is not None and value.op.op_type != "DequantizeLinear":
            yield Weight(value, nbytes, tuple(value.users), False, folded=True)


def _left_share(weight: Weight, optimize: bool) -> float | None:
    """Share of the weight's bytes that packing leaves in the heap; `None` where nothing packs it."""
    type_ = weight.value.type
    if not isinstance(type_, TensorType) or type_.rank is None or type_.rank < 2:
        return None
    for user in weight.users:
        if user.op_type in _BLOCKED and user.operands[1] is weight.value:
            return _LEFT_BLOCKED if optimize and type_.dtype == DType.FLOAT and type_.rank == 4 else None
        index = _PACKING.get(user.op_type)
        last = index if index is None or user.op_type not in _TWO_PACKED else index + 1
        if index is not None and last is not None and weight.value in user.operands[index : last + 1]:
            return _LEFT.get(user.op_type, _LEFT_USUALLY)
    return None


def _static_bytes(value: Value) -> int:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.static_shape is None or type_.dtype == DType.STRING:
        return 0
    return prod(type_.static_shape) * max(1, type_.dtype.bitwidth // 8)
