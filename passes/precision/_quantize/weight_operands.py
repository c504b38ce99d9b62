"""Operands that can be weights in blocks: which ops read a weight, as which matrix, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.ops import Family, names_where, weight_layout
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType

PRODUCTS = ("MatMul", "Gemm")
CONVOLUTIONS = ("Conv", "ConvTranspose")
RECURRENT = names_where(lambda o: o.family is Family.RECURRENT)
GATHER, EINSUM = "Gather", "Einsum"

SHORTEST = 16
"""Numbers in a row of a table below which a scale for it costs what the codes save."""

_WEIGHTS_AT = {
    **dict.fromkeys(PRODUCTS, (0, 1)),
    **dict.fromkeys(CONVOLUTIONS, (1,)),
    GATHER: (0,),
    EINSUM: tuple(range(8)),
    **dict.fromkeys(RECURRENT, (1, 2)),
}


@dataclass(frozen=True)
class WeightUse:
    """One op that can read a weight in codes.

    Args:
        op: The op.
        columns: Axis of the stored matrix along which products add up (and blocks lie): 0 or 1; of no meaning for
            convolutions, whose weights are taken as rows of one output channel (or input channel) each.
        factor: What the matrix is multiplied by (`alpha` of Gemm).
        index: Which operand of the op the weight is.
        whole: Why no kernel takes the weight in codes here; it is decoded as a whole then, while loading. Else `""`.
    """

    op: Op
    columns: int = 1
    factor: float = 1.0
    index: int = 1
    whole: str = ""

    @property
    def decoded(self) -> bool:
        """True if there is no kernel for codes: the weight is decoded, in each run or while loading."""
        return bool(self.whole) or self.op.op_type in CONVOLUTIONS


@dataclass
class Weight:
    """One weight with all that reads it.

    Args:
        value: The constant.
        sites: Those that can read codes.
        obstacle: Why the weight has to stay; `""` when it need not.
    """

    value: Value
    sites: list[WeightUse] = field(default_factory=list)
    obstacle: str = ""

    @property
    def bytes(self) -> int:
        """Bytes as stored."""
        return nbytes(self.value.tensor) if self.value.tensor is not None else 0

    def numpy(self) -> npt.NDArray[np.float32]:
        """The content."""
        if self.value.tensor is None:
            raise InternalError(f"%{self.value.name} is no constant")
        return np.asarray(self.value.tensor.numpy(), np.float32)


def find_weights(graph: Graph, excluded: frozenset[str]) -> Iterator[Weight]:
    """Find constants that products, convolutions, recurrent operators and lookups read, in the order of the graph."""
    seen: set[Value] = set()
    for op in graph.walk(*_WEIGHTS_AT):
        for value in [op.input(index) for index in _WEIGHTS_AT[op.op_type]]:
            if value is not None and value.op is not None and value.op.is_a("Transpose"):
                value = value.op.operand
            if value is None or value in seen or value.tensor is None or value.tensor.dtype != DType.FLOAT:
                continue
            seen.add(value)
            weight = Weight(value)
            for user, index in value.uses:
                _add(weight, user, index, excluded)
            apart = next((site for site in weight.sites if site.decoded), None)
            if apart is not None and not all(site.decoded for site in weight.sites):
                weight.obstacle = weight.obstacle or f"{label(apart.op)} would need other codes than the rest"
            yield weight


def _add(weight: Weight, user: Op, index: int, excluded: frozenset[str]) -> None:
    tensor = weight.value.tensor
    if user.is_a("Transpose") and tensor is not None and len(tensor.shape) == 2:
        if tuple(user.attrs.get("perm", (1, 0))) == (1, 0):
            for after, at in user.result.uses:
                reason = _why_not(weight.value, after, at, excluded)
                if not reason and (after.op_type not in PRODUCTS or _why_uncoded(weight.value, after, at)):
                    reason = f"{after.op_type} reads it transposed"
                _note(weight, after, reason, 1 - _columns(after), at)
            return
    _note(weight, user, _why_not(weight.value, user, index, excluded), _columns(user), index)


def _note(weight: Weight, op: Op, reason: str, columns: int, index: int) -> None:
    if reason:
        weight.obstacle = weight.obstacle or f"{label(op)}: {reason}"
        return
    weight.sites.append(
        WeightUse(op, columns, float(op.attrs.get("alpha", 1.0)), index, _why_uncoded(weight.value, op, index))
    )


def _columns(op: Op) -> int:
    """Along which axis of its matrix an op adds up."""
    if op.op_type == GATHER:
        return 1
    layout = weight_layout(op)
    return 0 if layout is None or layout.taps else layout.input_axis


def label(op: Op) -> str:
    """Give an op as messages call it."""
    return f"{op.key} {op.name!r}" if op.name else f"{op.key} of %{op.results[0].name}" if op.results else op.key


def _why_not(weight: Value, op: Op, index: int, excluded: frozenset[str]) -> str:
    tensor = weight.tensor
    if tensor is None or op.key not in _WEIGHTS_AT:
        return f"{op.op_type} reads the weight, too"
    if op.name in excluded or op.key in excluded:
        return "excluded by name"
    if index not in _WEIGHTS_AT[op.op_type]:
        return f"the weight is its operand {index}"
    rank = len(tensor.shape)
    if not tensor.size:
        return "an extent is 0"
    if op.op_type in CONVOLUTIONS:
        return "" if rank >= 3 else "the weight has no window"
    if op.op_type == GATHER:
        if rank != 2:
            return f"the weight has {rank} axes"
        if tensor.shape.numpy()[1] < SHORTEST:
            return f"its rows hold fewer than {SHORTEST} numbers"
        return "" if op.attrs.get("axis", 0) == 0 else "it looks up along another axis than the first"
    if op.op_type in PRODUCTS and op.operands[1 - index].dtype != DType.FLOAT:
        return "its other operand is not known to be float32"
    return "" if np.isfinite(op.attrs.get("alpha", 1.0)) else "alpha is not finite"


def _why_uncoded(weight: Value, op: Op, index: int) -> str:
    """Say why no kernel multiplies by the codes of a weight; `""` where one does, or decodes them in each run."""
    if op.op_type in RECURRENT:
        return "recurrent, decoded in each run"
    if op.op_type == EINSUM:
        return "Einsum has no kernel for codes"
    if op.op_type not in PRODUCTS:
        return ""
    if index == 0:
        return "the weight is its left operand"
    rank = None if weight.tensor is None else len(weight.tensor.shape)
    if rank != 2:
        return f"the weight has {rank} axes"
    if op.op_type == "MatMul":
        return "" if op.operand.rank is not None and op.operand.rank >= 2 else "its other operand is no matrix"
    if op.attrs.get("transA", 0):
        return "it transposes its other operand"
    return "" if op.graph is None or (ops.opset_of(op.graph) or 0) >= 7 else "before opset 7 its bias has another form"
