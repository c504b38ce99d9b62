"""The part of its operand that a Slice, Split or Gather takes, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType

ENDLESS = 2**31 - 1
"""From this on, an end means that of the axis."""


@dataclass(frozen=True)
class Part:
    """An interval [lo, hi) of one axis of a value that some op gives as a result of its own.

    Args:
        value: The op's result.
        lo: First element.
        hi: One past the last.
        drops: Whether the result lacks the axis.
    """

    value: Value
    lo: int
    hi: int
    drops: bool = False


def may_be_sliced(value: Value) -> bool:
    """True if Slice and Gather take a value's element type: float8 and codes of less than 8 bits they do not."""
    dtype = value.dtype
    if dtype is None or dtype == DType.UNDEFINED or dtype.name.startswith("FLOAT8"):
        return False
    return dtype == DType.STRING or dtype.bitwidth >= 8


def bounds(op: Op) -> dict[int, tuple[int, int]] | None:
    """Start and end, as written, by axis, of a Slice whose bounds are constants and whose steps are 1."""
    shape = op.operands[0].shape
    if not op.is_a("Slice") or not shape:
        return None
    steps: tuple[int, ...] = ()
    if "starts" in op.attrs:
        starts, ends = tuple(op.attrs["starts"]), tuple(op.attrs["ends"])
        axes = tuple(op.attrs.get("axes", range(len(starts))))
    else:
        given = [op.input(i) for i in range(1, 5)]
        known = [None if v is None else ints(v.tensor) for v in given]
        if any(v is not None and k is None for v, k in zip(given, known, strict=True)):
            return None
        if known[0] is None or known[1] is None:
            return None
        starts, ends = known[0], known[1]
        axes, steps = known[2] or tuple(range(len(starts))), known[3] or ()
    if not len(starts) == len(ends) == len(axes) or any(s != 1 for s in steps):
        return None
    found = {a % len(shape): (s, e) for a, s, e in zip(axes, starts, ends, strict=True)}
    return found if len(found) == len(axes) else None


def keeps_some(op: Op) -> bool:
    """True if a Slice or Gather takes something wherever there is something."""
    cut = bounds(op)
    if op.is_a("Gather"):
        index = op.operands[1].shape
        return index is not None and all(isinstance(d, int) and d > 0 for d in index)
    return cut is not None and all(
        (start == 0 and end > 0) or (start < 0 and end >= ENDLESS) for start, end in cut.values()
    )


def interval(start: int, end: int, extent: int) -> tuple[int, int]:
    """Resolve a start and an end against an extent."""
    lo, hi = (min(max(x + extent if x < 0 else x, 0), extent) for x in (start, end))
    return lo, max(lo, hi)


def parts_of(value: Value) -> tuple[int, list[Part]] | None:
    """The axis and the parts, when all that uses a value takes a part of the same axis, none of them empty."""
    shape, axis = value.shape, -1
    if not shape or value.is_output or not value.has_uses:
        return None
    found: list[Part] = []
    for user, index in value.uses:
        if index or user.graph is not value.graph:
            return None
        taken = _taken(user, shape)
        if taken is None or axis not in (-1, taken[0]):
            return None
        axis = taken[0]
        found += taken[1]
    return axis, found


def _taken(op: Op, shape: tuple[Dim, ...]) -> tuple[int, list[Part]] | None:
    if op.is_a("Split"):
        axis = int(op.attrs.get("axis", 0)) % len(shape)
        extents = [(r.shape or ())[axis : axis + 1] for r in op.results]
        parts, lo = [], 0
        for result, extent in zip(op.results, extents, strict=True):
            if not extent or not isinstance(extent[0], int) or not extent[0]:
                return None
            parts.append(Part(result, lo, lo + extent[0]))
            lo += extent[0]
        return (axis, [p for p in parts if p.value.has_uses]) if lo == shape[axis] else None
    if op.is_a("Gather"):
        axis = int(op.attrs.get("axis", 0)) % len(shape)
        place, whole = ints(op.operands[1].tensor), shape[axis]
        if place is None or op.operands[1].shape != () or not isinstance(whole, int):
            return None
        lo = place[0] + whole if place[0] < 0 else place[0]
        return (axis, [Part(op.result, lo, lo + 1, drops=True)]) if 0 <= lo < whole else None
    cut = bounds(op)
    if cut is None or len(cut) != 1:
        return None
    ((axis, (start, end)),) = cut.items()
    whole = shape[axis]
    if not isinstance(whole, int):
        return None
    lo, hi = interval(start, end, whole)
    return (axis, [Part(op.result, lo, hi)]) if lo < hi else None
