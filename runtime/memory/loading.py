"""Cost of loading a model in onnxruntime: every copy of every weight, and heap that stays when copies are gone.

Measured with one-operator models in fresh processes (onnxruntime 1.31, its code 1.32; x86-64, glibc); W is
the weights' bytes:

| weights | written inline | in an external file |
|---|---|---|
| read as they are | W, and the largest once more while loading | mapped, W in the end |
| packed by a kernel | W, and 0.1 to 0.9 W of heap that originals left | W packed, the largest mapped meanwhile |
| convolutions in blocks of channels | 3 W: another initializer, its value, and the original's heap | 2 W |
| folded while loading, then packed | the original, and twice the folded one | twice the folded one |
| inside a branch | 3 W, packed or not | W mapped, and W packed |
| convolutions in blocks of channels inside a branch | 3 W | 1.3 to 1.5 W |
| outside a branch that reads them | 2 W if packed | W packed, W mapped meanwhile |

A tensor above 32 MB gets pages of its own, which leave when it is freed; the heap keeps the room of smaller ones. A
weight with several users is packed once for each of them, in branches, too: tiles of a product each hold a copy of its
weight. (Convolutions in blocks of channels share one.) Of a mapped table in which rows are looked up, only pages around
these rows are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import definition
from memoptc.ir.types import DType
from memoptc.runtime.memory.integer import fused_pairs

CODE_BYTES = 8_800_000
"""Pages of onnxruntime's library that loading and running any model touches."""
KIND_BYTES = 45_000
"""The same for each kind of operator in it."""
SESSION_BYTES = 1_500_000
"""Anonymous bytes of a session without nodes: registries, schemas, threads."""
NODE_BYTES = 4_000
"""Anonymous bytes that each node adds: the graph's structures, its kernel."""
NESTED_BYTES = 2_500
"""Beyond these, what a node adds for each region that it is in: the nodes around keep what they hold as text, too."""
BRANCH_BYTES = 600_000
"""Bytes of code and structures that writing a model inside a branch takes, besides its nodes. A branch that the model
has by itself costs less than that: one whose other side never runs saves the code of kernels (an early exit)."""
RUN_BYTES = 500_000
"""Anonymous bytes of a first run that the arena does not see."""
SMALL = 1024
"""Weights below stay in the model file when the others move out."""

_LEFT = {"Gemm": 0.25}
"""Share of packed bytes by which the heap grows although the originals are freed: it depends on their order."""
_LEFT_USUALLY = 0.5
_FILLED = 0.5
"""Share of the room that folded tensors leave which runs fill."""
_LEFT_IN_BRANCH = 0.4
"""The same where a branch's convolutions are laid out in blocks of channels from an external file."""
_ORIGINALS = 0.7
"""Share of the originals that are still there when the last convolution is laid out in blocks of channels."""
_ANOTHER = 0.7
"""What each further user of a packed weight adds, over the packed weight."""
_AROUND = 64 << 10
"""Bytes of a mapped file that the kernel brings in around one that is read (Linux: `fault_around_bytes`)."""
_BLOCK_OF_CHANNELS = 4
"""Channels that are no multiple of this are not laid out in blocks."""
_OWN_PAGES = 32 << 20
"""Tensors from here on have pages of their own (the largest threshold for mapping of glibc's malloc)."""


@dataclass(frozen=True)
class LoadedWeights:
    """Weights as a session holds them.

    Args:
        anonymous_bytes: Copies in anonymous memory that stay.
        mapped_bytes: Pages of external files that runs read.
        peak_bytes: Anonymous and mapped bytes at the peak of loading, the session's structures included.
        loaded_bytes: The same after loading.
        heap_bytes: Of these, room of the heap that freed copies left; `Session` gives it back.
        reusable_bytes: Of that room, what the arena may fill.
        code_bytes: Pages of onnxruntime's library, counted in none of the others.
    """

    anonymous_bytes: int
    mapped_bytes: int
    peak_bytes: int
    loaded_bytes: int
    heap_bytes: int
    reusable_bytes: int
    code_bytes: int


def loaded_weights(
    graph: Graph,
    *,
    external: bool = False,
    packed: bool = False,
    prepacking: bool = True,
    branch: bool = False,
    captured: bool = False,
    optimize: bool = True,
    dims: Mapping[str, int] | None = None,
) -> LoadedWeights:
    """Count the copies of a graph's weights. Arguments as in `Configuration`, and extents of symbolic dimensions."""
    anonymous = mapped = heap = burst = reusable = laid_out = 0
    for weight in graph_weights(graph):
        copies = _copies(
            weight, external and weight.nbytes >= SMALL, prepacking and not packed, (branch or weight.inside) and not
            (captured and not weight.inside), captured, optimize,
        )  # fmt: skip
        if copies.mapped:
            copies = replace(copies, mapped=min(copies.mapped, _read_bytes(weight, dims or {})))
        anonymous += copies.stays
        reusable += int(_FILLED * copies.left) if weight.folded else 0
        mapped += copies.mapped
        laid_out += int(_ORIGINALS * weight.nbytes) if copies.blocked else 0
        if weight.nbytes < _OWN_PAGES:
            heap += copies.left
            burst = max(burst, copies.passing)
        else:
            burst = max(burst, copies.left + copies.passing)
        if captured and external:
            burst += 0 if copies.mapped else weight.nbytes
    own = SESSION_BYTES + _nodes_bytes(graph, int(branch or captured))
    own += BRANCH_BYTES if branch or captured else 0
    code = CODE_BYTES + KIND_BYTES * len({op.op_type for op in graph.walk()})
    loaded = own + anonymous + mapped + heap
    return LoadedWeights(
        anonymous, mapped, own + anonymous + mapped + laid_out + max(heap, burst), loaded, heap, reusable, code
    )


def _nodes_bytes(graph: Graph, depth: int) -> int:
    """Bytes of the structures of a graph's nodes, those of its regions included."""
    each = NODE_BYTES + depth * NESTED_BYTES
    within = sum(_nodes_bytes(region, depth + 1) for op in graph.ops for region in op.regions.values())
    return within + each * sum(1 for op in graph.ops if not _is_weight(op))


@dataclass(frozen=True)
class _Copies:
    """Bytes of one weight's copies: those that stay, pages of its file that do, room of freed ones, and one for a
    moment; whether all originals are there until all are laid out in blocks of channels."""

    stays: int
    mapped: int = 0
    left: int = 0
    passing: int = 0
    blocked: bool = False


def _copies(weight: Weight, outside: bool, packing: bool, inside: bool, captured: bool, optimize: bool) -> _Copies:
    n = weight.nbytes
    packs = _packs(weight, optimize) if packing or not optimize else None
    if packs is None and optimize and _is_blocked(weight):
        packs = _BLOCKED_COPIES
    if not packing and packs is not _BLOCKED_COPIES:
        packs = None
    if inside:
        kept = int(n * packs.copies) if packs else 0
        if outside and packs is _BLOCKED_COPIES:
            return _Copies(n, left=int(_LEFT_IN_BRANCH * n))
        return _Copies(kept, n) if outside else _Copies(2 * n + max(n, kept))
    if weight.consumed and outside and not inside:
        return _Copies(0, passing=n)
    if weight.folded:
        if packs == _BLOCKED_COPIES:
            return _Copies(n, left=int(1.5 * n))
        return _Copies(int(n * packs.copies), left=n) if packs else _Copies(n)
    if packs == _BLOCKED_COPIES:
        return _Copies(n, left=n if outside else 2 * n, blocked=True)
    if packs is None:
        return _Copies(0, n) if outside else _Copies(n, passing=n)
    kept = int(n * packs.copies)
    if outside:
        return _Copies(kept, passing=n)
    return _Copies(kept + (n if captured else 0), left=int(packs.left * n), passing=n)


@dataclass(frozen=True)
class _Packing:
    """Packing of a weight: copies that stay, and the share of its bytes by which the heap grows besides."""

    copies: float
    left: float


_BLOCKED_COPIES = _Packing(1, 2.0)


@dataclass(frozen=True)
class Weight:
    """A constant tensor.

    Args:
        value: It.
        nbytes: Its bytes.
        users: Ops that read it.
        inside: It belongs to a region.
        folded: It is not in the file: onnxruntime computes it from other constants while loading.
        consumed: Nothing but such folding reads it.
    """

    value: Value
    nbytes: int
    users: tuple[Op, ...]
    inside: bool
    folded: bool = False
    consumed: bool = False


def graph_weights(graph: Graph) -> Iterator[Weight]:
    """Give a graph's weights, those of its regions and those that onnxruntime folds included; shared ones once."""
    resident = fused_pairs(graph).resident if graph.parent is None else set()
    for op in graph.walk():
        if _is_weight(op):
            tensor = op.attrs.get("value")
            nbytes = int(getattr(tensor, "nbytes", 0) or 0)
            if nbytes and op.results[0].has_uses:
                users = tuple(op.results[0].users)
                consumed = all(
                    user.results and user.results[0] in resident and user.op_type != "DequantizeLinear"
                    for user in users
                )  # onnxruntime multiplies by codes instead of dequantizing them
                yield Weight(op.results[0], nbytes, users, op.graph is not graph, consumed=consumed)
    for value in resident:
        if any(user.results and user.results[0] in resident for user in value.users) or value.tensor is not None:
            continue
        nbytes = _static_bytes(value)
        if nbytes and value.op is not None and value.op.op_type != "DequantizeLinear":
            yield Weight(value, nbytes, tuple(value.users), False, folded=True)


def _is_weight(op: Op) -> bool:
    """True if onnxruntime holds an op as an initializer by the time that it makes kernels."""
    return op.is_const or op.op_type == "Constant"


def _packs(weight: Weight, optimize: bool) -> _Packing | None:
    """Packing of a weight by kernels; `None` where they read it as it is."""
    if (weight.value.rank or 0) < 2:
        return None
    users = [user for user in weight.users if _is_packed_by(weight.value, user)]
    if not users:
        return None
    return _Packing(1 + _ANOTHER * (len(users) - 1), _LEFT.get(users[0].op_type, _LEFT_USUALLY))


def _read_bytes(weight: Weight, dims: Mapping[str, int]) -> int:
    """Bytes of a mapped weight that a run reads: all, or pages around the rows that are looked up.

    Rows are taken to lie anywhere: the more there are, the more often some lie around the same page.
    """
    rows = 0
    for user in weight.users:
        if not user.is_a("Gather") or user.operands[0] is not weight.value or int(user.attrs.get("axis", 0)):
            return weight.nbytes
        indices = user.operands[1]
        if indices.shape is None:
            return weight.nbytes
        try:
            rows += prod(d if isinstance(d, int) else d.evaluate(dims) for d in indices.shape if d is not None)
        except KeyError:
            return weight.nbytes
        if None in indices.shape:
            return weight.nbytes
    places = max(1.0, weight.nbytes / _AROUND)
    return int(places * (1 - (1 - 1 / places) ** rows) * _AROUND)


def further_copy_bytes(op: Op, cut: Collection[int] = ()) -> int:
    """Bytes that a session holds more for each further node that reads the same weights as this one.

    Args:
        op: The node; its kernel may pack weights for itself.
        cut: Operands of which every node reads a part of its own.
    """
    packed = [i for i in definition(op).packed if i < len(op.operands) and i not in cut]
    weights = [op.operands[i] for i in packed if op.operands[i].tensor is not None]
    return int(_ANOTHER * sum(_static_bytes(v) for v in weights if v.shape is not None and len(v.shape) > 1))


def _is_packed_by(value: Value, user: Op) -> bool:
    if definition(user).packs_matrices and (value.rank or 0) > 2:
        return False
    return any(user.input(i) is value for i in definition(user).packed)


def _is_blocked(weight: Weight) -> bool:
    """True if a convolution lays the weight out in blocks of channels (core/optimizer/nchwc_transformer.cc)."""
    shape = weight.value.static_shape
    if weight.value.dtype != DType.FLOAT or shape is None or len(shape) != 4:
        return False
    for user in weight.users:
        if user.op_type in ("Conv", "FusedConv") and user.operands[1] is weight.value:
            group = int(user.attrs.get("group", 1))
            if group == 1:
                return shape[1] < 2 * _BLOCK_OF_CHANNELS or shape[1] % _BLOCK_OF_CHANNELS == 0
            return shape[0] % _BLOCK_OF_CHANNELS == 0 and (shape[1] == 1 or shape[1] % 16 == 0)
    return False


def _static_bytes(value: Value) -> int:
    size = value.nbytes
    return size if isinstance(size, int) else 0
