"""Two Slices in a row as one, so that what lies between them is never made."""

from __future__ import annotations

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op
from memoptc.passes.simplify._simplify.slice_ranges import ENDLESS, bounds, interval

_Cut = tuple[int, int]


def merge(op: Op, *, same_axis: bool = False) -> bool:
    """Let a Slice of a Slice cut what both cut. Gives whether that was done; every element stays the same.

    Args:
        op: The later Slice.
        same_axis: Only where both cut one and the same axis. Without it, those of different axes are merged, too,
            unless the first is one of several parts of a value.
    """
    first = op.operands[0].op
    if first is None or not first.is_a("Slice") or first.graph is not op.graph or not first.result.single_use:
        return False
    inner, outer = bounds(first), bounds(op)
    shape, middle = first.operands[0].shape, first.result.shape
    if op.operands[0] is not first.result or inner is None or outer is None or not shape or not middle:
        return False
    if inner.keys() != outer.keys() or len(inner) > 1:
        if same_axis or any(u is not first and u.is_a("Gather", "Slice", "Split") for u in first.operands[0].users):
            return False
    cuts = dict(inner)
    for axis, cut in outer.items():
        if axis in inner:
            both = _both(inner[axis], cut, shape[axis])
            if both is None:
                return False
            cuts[axis] = both
        else:
            cuts[axis] = cut
    assert op.graph is not None
    b = Builder(op.graph, before=op, loc=op.loc.union(first.loc, rule="merge-slices"))
    axes = sorted(cuts)
    starts, ends = ([cuts[a][i] for a in axes] for i in (0, 1))
    if "starts" in op.attrs:
        made = b.op("Slice", [first.operands[0]], {"starts": starts, "ends": ends, "axes": axes})
    else:
        written = [np.array(numbers, np.int64) for numbers in (starts, ends, axes)]
        made = b.op("Slice", [first.operands[0], *written])
    made.result.type = op.result.type or made.result.type
    made.name = op.name
    op.replace_by(made.result)
    first.erase()
    return True


def _both(inner: _Cut, outer: _Cut, extent: object) -> _Cut | None:
    """Start and end of a cut of a cut of one axis; `None` where they depend on an extent that is not known."""
    if min(*inner, *outer) >= 0:
        if inner[0] >= ENDLESS or outer[0] >= ENDLESS:
            return None
        end = inner[1] if outer[1] >= ENDLESS else min(inner[1], inner[0] + outer[1])
        return inner[0] + outer[0], end
    if not isinstance(extent, int):
        return None
    lo, hi = interval(*inner, extent)
    start, end = interval(*outer, hi - lo)
    return lo + start, lo + end
