"""Bounds of the elements of integer tensors, affine in the symbols of the graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, is_nonnegative
from memoptc.ir.ops import MOVES

_CARRY = (MOVES - {"Concat"}) | {"Cast", "CastLike", "ReduceMax", "ReduceMin", "Relu"}
"""Operators whose result lies within the bounds of operand 0 (Relu: above 0, which is all that an index is asked)."""

_LARGEST = 1 << 16
"""Elements up to which a constant's bounds are looked up."""


@dataclass(frozen=True)
class Bounds:
    """The least and the largest element of an integer tensor, both included; `None` where not known."""

    low: Dim
    high: Dim


class ElementBounds:
    """Bounds of values, ops taken in topological order.

    Args:
        elements: Values whose elements inference knows, as expressions over symbols.
    """

    def __init__(self, elements: Mapping[Value, tuple[Dim, ...]]) -> None:
        self._elements = elements
        self._bounds: dict[Value, tuple[Bounds, ...]] = {}

    def add(self, op: Op) -> None:
        """Work out the bounds of an op's results; its operands were added before."""
        for result in op.results:
            self._bounds[result] = self._result(op)

    def elements(self, value: Value) -> tuple[Dim, ...] | None:
        """Give the elements of a small constant, or of what is computed from extents; `None` where not known."""
        if value.tensor is not None and value.tensor.size <= 64:
            return tuple(int(n) for n in np.asarray(value.tensor.numpy()).reshape(-1))
        return self._elements.get(value)

    def of(self, value: Value) -> tuple[Bounds, ...]:
        """Give a value's bounds: one for all elements, one per column of the last axis, or none known."""
        tensor = value.tensor
        if tensor is None:
            return self._bounds.get(value, ())
        if not 0 < tensor.size <= _LARGEST or not tensor.dtype.is_integer():
            return ()
        array = np.asarray(tensor.numpy())
        return (Bounds(int(array.min()), int(array.max())),)

    def _result(self, op: Op) -> tuple[Bounds, ...]:
        known = self._elements.get(op.results[0])
        if known and len(known) == 1:
            return (Bounds(known[0], known[0]),)
        if op.domain or not op.operands:
            return ()
        kind, of = op.op_type, [self.of(v) for v in op.operands]
        one = [b[0] if len(b) == 1 else _union(b) for b in of]
        first = one[0]
        if kind in ("Identity", "Cast"):
            return of[0]
        if kind == "Range" and first is not None and one[1] is not None:
            return _range(first, one[1], one[2])
        if kind in _CARRY:
            return (first,) if first is not None else ()
        if kind == "Add" and first is not None and one[1] is not None:
            return (Bounds(plus(first.low, one[1].low), plus(first.high, one[1].high)),)
        if kind == "Sub" and first is not None and one[1] is not None:
            return (Bounds(_minus(first.low, one[1].high), _minus(first.high, one[1].low)),)
        if kind == "CumSum":
            shape = op.operands[0].shape
            return (Bounds(0, shape[-1]),) if shape else ()
        if kind == "Where" and len(of) == 3:
            return _chosen(op, one)
        return _joined(op, one) if kind == "Concat" else ()


def _joined(op: Op, one: Sequence[Bounds | None]) -> tuple[Bounds, ...]:
    """Bounds of a Concat: of each column where single columns are joined, else of all elements."""
    shape = op.result.shape
    widths = [v.shape[-1] if v.shape else None for v in op.operands]
    if shape and op.attrs.get("axis", 0) in (-1, len(shape) - 1) and all(w == 1 for w in widths):
        return tuple(b if b is not None else Bounds(None, None) for b in one)
    found = _union([b for b in one if b is not None]) if None not in one else None
    return (found,) if found is not None else ()


def _chosen(op: Op, one: Sequence[Bounds | None]) -> tuple[Bounds, ...]:
    """Bounds of a choice; an index counted from the end if it is below 0 is never that where it cannot be."""
    yes, no = one[1], one[2]
    test = op.operands[0].op
    if test is not None and test.is_a("Less") and test.operands[0] is op.operands[2] and no is not None:
        if no.low is not None and is_nonnegative(no.low):
            return (no,)
    found = _union([yes, no]) if yes is not None and no is not None else None
    return (found,) if found is not None else ()


def _range(start: Bounds, limit: Bounds, step: Bounds | None) -> tuple[Bounds, ...]:
    """Bounds of a range that ascends, or descends; none where its direction is not known."""
    if step is not None and step.low is not None and is_nonnegative(step.low):
        return (Bounds(start.low, plus(limit.high, -1)),)
    if step is not None and step.high is not None and is_nonnegative(-step.high):
        return (Bounds(plus(limit.low, 1), start.high),)
    return ()


def _union(found: Sequence[Bounds]) -> Bounds | None:
    if not found:
        return None
    low, high = found[0].low, found[0].high
    for other in found[1:]:
        low = _least(low, other.low)
        high = _least(high, other.high, largest=True)
    return Bounds(low, high)


def _least(a: Dim, b: Dim, *, largest: bool = False) -> Dim:
    if a is None or b is None or a == b:
        return a if a == b else None
    smaller = is_nonnegative(b - a)
    if smaller or is_nonnegative(a - b):
        return (b if smaller else a) if largest else (a if smaller else b)
    return None


def plus(a: Dim, b: Dim) -> Dim:
    """Give the sum of two extents; `None` where one is not known."""
    return None if a is None or b is None else a + b


def _minus(a: Dim, b: Dim) -> Dim:
    return None if a is None or b is None else a - b
