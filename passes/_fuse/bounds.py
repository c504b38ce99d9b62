"""Between which numbers the elements of a value lie, whatever the inputs are."""

from __future__ import annotations

import numpy as np

from memoptc.ir.core import Value
from memoptc.ir.types import DType, TensorType

Bounds = tuple[float, float]

_MOVES = frozenset(
    "Concat Expand Flatten Gather GatherElements GatherND Identity Reshape Slice Split Squeeze Tile Transpose "
    "Unsqueeze".split()
)
_DEPTH = 24


def bounds(value: Value, depth: int = 0) -> Bounds | None:
    """Give the least and the largest number that elements can be; `None` where they may be anything, NaN included.

    The numbers are those of exact arithmetic: they may lie beyond what the element type holds.
    """
    dtype = value.type.dtype if isinstance(value.type, TensorType) else DType.UNDEFINED
    if value.tensor is not None:
        return _of_constant(value)
    if dtype == DType.BOOL:
        return 0.0, 1.0
    if dtype.is_integer():
        info = np.iinfo(dtype.numpy())
        return float(info.min), float(info.max)
    op = value.op
    if op is None or op.domain or op.regions or depth > _DEPTH:
        return None
    if op.op_type in _MOVES:
        moved = op.operands if op.op_type == "Concat" else op.operands[:1]
        return _join([bounds(v, depth + 1) for v in moved])
    if op.op_type == "Where":
        return _join([bounds(v, depth + 1) for v in op.operands[1:3]])
    known = [bounds(v, depth + 1) for v in op.operands]
    if op.op_type == "Cast" and known[0] is not None:
        return known[0]
    if op.op_type == "Neg" and known[0] is not None:
        return -known[0][1], -known[0][0]
    if op.op_type in ("Add", "Sub", "Mul") and len(known) == 2 and known[0] is not None and known[1] is not None:
        return _arithmetic(op.op_type, known[0], known[1])
    return None


def _of_constant(value: Value) -> Bounds | None:
    assert value.tensor is not None
    if DType(value.tensor.dtype) == DType.STRING or not value.tensor.size:
        return None
    content = np.asarray(value.tensor.numpy()).astype(np.float64)
    return (float(content.min()), float(content.max())) if np.isfinite(content).all() else None


def _join(every: list[Bounds | None]) -> Bounds | None:
    known = [b for b in every if b is not None]
    return (min(b[0] for b in known), max(b[1] for b in known)) if known and len(known) == len(every) else None


def _arithmetic(op_type: str, a: Bounds, b: Bounds) -> Bounds:
    if op_type == "Add":
        return a[0] + b[0], a[1] + b[1]
    if op_type == "Sub":
        return a[0] - b[1], a[1] - b[0]
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)
