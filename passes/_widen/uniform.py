"""Along which axes all elements of a value are equal, and which comparisons hold for every element."""

from __future__ import annotations

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.ops import VIEWS, facts
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType, TensorType

DEPTH = 12
"""Ops that are looked at behind each other."""

_MOVES = frozenset({"Slice", "Transpose", "Expand", "Gather"}) | VIEWS


def shape_of(value: Value) -> tuple[Dim, ...] | None:
    """Shape of a value; `None` when its rank is not known."""
    return value.type.shape if isinstance(value.type, TensorType) else None


def uniform_axes(value: Value, depth: int = DEPTH) -> frozenset[int]:
    """The axes of an extent other than 1 along which all elements are known to be equal."""
    shape, op = shape_of(value), value.op
    if shape is None or op is None or depth == 0 or value is not op.results[0] or op.regions:
        return frozenset()
    every = frozenset(i for i, d in enumerate(shape) if d != 1)
    if not every or known_truth(value) is not None:
        return every
    if op.is_a("ConstantOfShape"):
        return every
    if op.is_a("Expand"):
        inner = shape_of(op.operands[0])
        if inner is None:
            return frozenset()
        more = len(shape) - len(inner)
        repeated = {i for i in every if i < more or inner[i - more] == 1}
        return frozenset(repeated | {i + more for i in uniform_axes(op.operands[0], depth - 1)} & every)
    if op.is_a("Transpose"):
        perm = op.attrs.get("perm", tuple(reversed(range(len(shape)))))
        inside = uniform_axes(op.operands[0], depth - 1)
        return frozenset(i for i, p in enumerate(perm) if p in inside)
    if not facts(op).elementwise or not facts(op).pure:
        return frozenset()
    found = every
    for operand in op.operands:
        if not operand.is_absent:
            found &= _through(operand, len(shape), every, depth - 1)
    return found


def _through(operand: Value, rank: int, every: frozenset[int], depth: int) -> frozenset[int]:
    """The axes of an element-wise result along which one operand does not vary."""
    own = shape_of(operand)
    if own is None:
        return frozenset()
    inside = uniform_axes(operand, depth)
    return frozenset(
        i for i in every if i < rank - len(own) or own[i - rank + len(own)] == 1 or i - rank + len(own) in inside
    )


def known_truth(value: Value) -> bool | None:
    """What every element of a boolean value is, if that is known: constants, indices compared with their bounds."""
    if not isinstance(value.type, TensorType) or value.type.dtype != DType.BOOL:
        return None
    tensor, op = value.tensor, value.op
    if tensor is not None:
        content = tensor.numpy() if 0 < tensor.size <= 4096 else np.array([True, False])
        return bool(content.flat[0]) if bool((content == content.flat[0]).all()) else None
    if op is None:
        return None
    if op.is_a("And", "Or"):
        sides = [known_truth(v) for v in op.operands]
        weak = op.op_type == "Or"
        return weak if weak in sides else not weak if None not in sides else None
    if op.is_a("Expand") or op.key in VIEWS:
        return known_truth(op.operands[0])
    if op.is_a("GreaterOrEqual", "Greater", "LessOrEqual", "Less"):
        large, small = op.operands if op.op_type.startswith("Greater") else op.operands[::-1]
        low, high = _least(large), _most(small)
        if low is not None and high is not None and (low > high or (low == high and op.op_type.endswith("Equal"))):
            return True
    return None


def _most(value: Value) -> int | None:
    known = ints(value.tensor)
    return max(known) if known else None


def _least(value: Value, depth: int = DEPTH) -> int | None:
    """A bound that no element of an integer value is below."""
    known = ints(value.tensor)
    if known is not None:
        return min(known, default=None)
    op = value.op
    if op is None or depth == 0:
        return None
    if op.is_a("Range"):
        start, step = ints(op.operands[0].tensor), ints(op.operands[2].tensor)
        return start[0] if start and step and step[0] > 0 else None
    if op.is_a("Shape", "Size"):
        return 0
    return _least(op.operands[0], depth - 1) if op.key in _MOVES else None


def aligned(axis: int, rank: int, other: Value) -> Dim:
    """The extent that another operand of an element-wise op has at an axis of one of `rank`; 1 where it lacks it."""
    shape = shape_of(other)
    if shape is None:
        return None
    place = axis - rank + len(shape)
    return shape[place] if 0 <= place < len(shape) else 1


def keeps(op: Op, index: int, axis: int) -> bool:
    """Whether the result of an element-wise op is as large without one axis of an operand, since another one has it."""
    shape = shape_of(op.operands[index])
    if shape is None:
        return False
    others = [v for v in op.operands if v is not op.operands[index] and not v.is_absent]
    return any(same(aligned(axis, len(shape), v), shape[axis]) for v in others)
