"""Along which axes all elements of a value are equal, and which comparisons hold for every element."""

from __future__ import annotations

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dataflow import on_demand
from memoptc.ir.dims import Dim, same
from memoptc.ir.ops import EXTENTS, MOVES, VIEWS, facts
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType

_MOVES = MOVES - {"Concat"}
"""Operators whose results consist of elements of operand 0."""


class Uniform:
    """Facts about the elements of values, each computed once.

    They stay true while users of a value change; make a new one where what values are made of changes.
    """

    def __init__(self) -> None:
        self._axes: dict[Value, frozenset[int]] = {}
        self._truths: dict[Value, bool | None] = {}
        self._leasts: dict[Value, int | None] = {}

    def axes(self, value: Value) -> frozenset[int]:
        """The axes of an extent other than 1 along which all elements are known to be equal."""
        return on_demand(value, self._axes_from, self._axes_of, self._axes)

    def _axes_from(self, value: Value) -> tuple[Value, ...]:
        op, every = value.op, _every(value)
        if op is None or not every or self.truth(value) is not None or op.is_a("ConstantOfShape"):
            return ()
        if op.is_a("Expand", "Transpose"):
            return op.operands[:1]
        known = facts(op)
        return tuple(v for v in op.operands if not v.is_absent) if known.elementwise and known.pure else ()

    def _axes_of(self, value: Value, known: dict[Value, frozenset[int]]) -> frozenset[int]:
        op, every, shape = value.op, _every(value), value.shape
        if op is None or not every or shape is None:
            return frozenset()
        if self.truth(value) is not None or op.is_a("ConstantOfShape"):
            return every
        if op.is_a("Expand"):
            inner = op.operands[0].shape
            if inner is None:
                return frozenset()
            more = len(shape) - len(inner)
            repeated = {i for i in every if i < more or inner[i - more] == 1}
            return frozenset(repeated | {i + more for i in known[op.operands[0]]} & every)
        if op.is_a("Transpose"):
            perm = op.attrs.get("perm", tuple(reversed(range(len(shape)))))
            return frozenset(i for i, p in enumerate(perm) if p in known[op.operands[0]])
        operands = self._axes_from(value)
        if not operands:
            return every if facts(op).elementwise and facts(op).pure else frozenset()
        return every.intersection(*(_through(v, len(shape), every, known[v]) for v in operands))

    def truth(self, value: Value) -> bool | None:
        """The one value of all elements of a boolean, if known: constants, indices compared with their bounds."""
        return on_demand(value, _truth_from, self._truth_of, self._truths)

    def _truth_of(self, value: Value, known: dict[Value, bool | None]) -> bool | None:
        if not _is_bool(value):
            return None
        tensor, op = value.tensor, value.op
        if tensor is not None:
            content = tensor.numpy() if 0 < tensor.size <= 4096 else np.array([True, False])
            return bool(content.flat[0]) if bool((content == content.flat[0]).all()) else None
        if op is None:
            return None
        if op.is_a("And", "Or"):
            sides = [known[v] for v in op.operands]
            weak = op.op_type == "Or"
            return weak if weak in sides else not weak if None not in sides else None
        if op.is_a("Expand") or op.key in VIEWS:
            return known[op.operands[0]]
        if op.is_a("GreaterOrEqual", "Greater", "LessOrEqual", "Less"):
            large, small = op.operands if op.op_type.startswith("Greater") else op.operands[::-1]
            low, high = self._least(large), _most(small)
            if low is not None and high is not None and (low > high or (low == high and op.op_type.endswith("Equal"))):
                return True
        return None

    def _least(self, value: Value) -> int | None:
        """A bound that no element of an integer value is below."""
        return on_demand(value, _least_from, _least_of, self._leasts)


def _every(value: Value) -> frozenset[int]:
    """The axes that may be uniform: those of an extent other than 1; none of what is not looked into."""
    shape, op = value.shape, value.op
    if shape is None or op is None or value is not op.results[0] or op.regions:
        return frozenset()
    return frozenset(i for i, d in enumerate(shape) if d != 1)


def _through(operand: Value, rank: int, every: frozenset[int], inside: frozenset[int]) -> frozenset[int]:
    """The axes of an element-wise result along which one operand does not vary."""
    own = operand.shape
    if own is None:
        return frozenset()
    return frozenset(
        i for i in every if i < rank - len(own) or own[i - rank + len(own)] == 1 or i - rank + len(own) in inside
    )


def _is_bool(value: Value) -> bool:
    return value.dtype == DType.BOOL


def _truth_from(value: Value) -> tuple[Value, ...]:
    op = value.op
    if op is None or not _is_bool(value) or value.tensor is not None:
        return ()
    if op.is_a("And", "Or"):
        return op.operands
    return op.operands[:1] if op.is_a("Expand") or op.key in VIEWS else ()


def _most(value: Value) -> int | None:
    known = ints(value.tensor)
    return max(known) if known else None


def _least_from(value: Value) -> tuple[Value, ...]:
    op = value.op
    return op.operands[:1] if op is not None and op.key in _MOVES else ()


def _least_of(value: Value, known: dict[Value, int | None]) -> int | None:
    elements, op = ints(value.tensor), value.op
    if elements is not None:
        return min(elements, default=None)
    if op is None:
        return None
    if op.is_a("Range"):
        start, step = ints(op.operands[0].tensor), ints(op.operands[2].tensor)
        return start[0] if start and step and step[0] > 0 else None
    if op.key in EXTENTS:
        return 0
    return known[op.operands[0]] if op.key in _MOVES else None


def aligned(axis: int, rank: int, other: Value) -> Dim:
    """The extent that another operand of an element-wise op has at an axis of one of `rank`; 1 where it lacks it."""
    shape = other.shape
    if shape is None:
        return None
    place = axis - rank + len(shape)
    return shape[place] if 0 <= place < len(shape) else 1


def keeps(op: Op, index: int, axis: int) -> bool:
    """True if the result of an element-wise op is as large without one axis of an operand, since another one has it."""
    shape = op.operands[index].shape
    if shape is None:
        return False
    others = [v for v in op.operands if v is not op.operands[index] and not v.is_absent]
    return any(same(aligned(axis, len(shape), v), shape[axis]) for v in others)
