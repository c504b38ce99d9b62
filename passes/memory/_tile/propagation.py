"""Interval propagation: which interval each op of a region computes for one tile, from which intervals of its operands.

Going backwards from what the tile must give, every op is asked what it needs (`needed_intervals`); where two users need
different intervals, the hull of both is made. Going forwards, there are two ways to make it:

exact   every op computes what is needed and no more; a window at an inner border takes its halo from the operand.
        Where a value is used with less of its halo than was made, as beside a residual block, it is cropped first.
overcompute
        windows keep the whole's padding and every op computes the full extent that its operands have. Elements within a
        window's reach of an inner border are then invalid; the halo holds exactly those, so they never enter the tile's
        result and are cropped once, at the end. Nothing is cropped inside: the runtime keeps its layouts and fusions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Along, Axis, Form
from memoptc.ir.ops.resize import factor_of
from memoptc.ir.ops.windows import window_of
from memoptc.passes.memory._tile.grid import (
    AffineBound,
    Bound,
    Interval,
    NotTileableError,
    OperandTile,
    TileGrid,
    ends_at,
    intersection,
)
from memoptc.passes.memory._tile.region import Region


@dataclass(frozen=True)
class TileWork:
    """The part of an op that one tile computes.

    Args:
        interval: The interval of its axis that it computes.
        needs: Per operand the interval that it reads; `None` where it reads all of it.
    """

    interval: Interval
    needs: tuple[OperandTile | None, ...]


def tile_work(region: Region, grid: TileGrid, index: int, *, overcompute: bool = False) -> dict[Op, TileWork]:
    """Give the interval that each op computes for a tile; ops that the tile does not need are left out.

    Args:
        region: What is cut.
        grid: Into which tiles.
        index: Which tile.
        overcompute: Whether ops may compute more than is needed, so that nothing is cropped on the way.

    Raises:
        NotTileableError: the tiles are too small, or do not line up.
    """
    intervals = needed_intervals(region, grid, index, aligned=overcompute)
    found: dict[Op, TileWork] = {}
    held: dict[Value, Interval] = {}
    for op in region.ops:
        if op not in intervals:
            continue
        work = _overcomputed(op, region, grid, held, intervals[op]) if overcompute else None
        found[op] = work = work or _exact(op, region, grid, intervals[op])
        for result, place in zip(op.results, region.axes[op].results, strict=True):
            if place is not None:
                held[result] = work.interval
    return found


def needed_intervals(region: Region, grid: TileGrid, index: int, *, aligned: bool = False) -> dict[Op, Interval]:
    """Intervals of their axes that the ops must compute for a tile."""
    wanted: dict[Value, Interval] = dict(grid.tile(index))
    found: dict[Op, Interval] = {}
    slowest = min(map(region.rate, region.ops))
    for op in reversed(region.ops):
        axis = region.axes[op]
        interval: Interval | None = None
        for result, place in zip(op.results, axis.results, strict=True):
            need = wanted.get(result)
            if need is not None and (place is not None or axis.join is not None):
                interval = need if interval is None else grid.hull(interval, need)
                value, where = result, place
        if interval is None:
            continue
        grain = axis.grain
        if aligned and region.rate(op) % slowest == 0 and axis.grain == 1:
            # Windows with strides downstream then start where they do in the whole.
            grain = region.rate(op) // slowest
        # What accumulates gets everything once.
        if where is not None and axis.form is not Form.EXPONENTIALS:
            interval = grid.widen(interval, grain, value, where)
        found[op] = interval
        for operand, along in zip(op.operands, axis.operands, strict=True):
            if along is not None and operand in region.cut:
                part = grid.need(along, interval, operand).interval
                old = wanted.get(operand)
                wanted[operand] = part if old is None else grid.hull(old, part)
    return found


def _exact(op: Op, region: Region, grid: TileGrid, interval: Interval) -> TileWork:
    needs = tuple(
        None if along is None else grid.need(along, interval, operand)
        for operand, along in zip(op.operands, region.axes[op].operands, strict=True)
    )
    if region.axes[op].form is Form.RESIZE:
        return _resized(op, region, needs) or TileWork(interval, needs)
    return TileWork(interval, needs)


def _resized(op: Op, region: Region, needs: tuple[OperandTile | None, ...]) -> TileWork | None:
    """A resize gives as much as its operand holds, whatever is needed of it."""
    factor = factor_of(op, region.axes[op].results[0] or 0)
    need = needs[0]
    if factor is None or need is None:
        return None
    return TileWork(Interval(_times(need.interval.lo, factor), _times(need.interval.hi, factor)), needs)


def _times(bound: Bound, factor: int) -> Bound:
    if isinstance(bound, AffineBound):
        return AffineBound(bound.a * factor, bound.b * factor, bound.i)
    return None if bound is None else bound * factor


def _overcomputed(
    op: Op, region: Region, grid: TileGrid, held: Mapping[Value, Interval], need: Interval
) -> TileWork | None:
    """Compute what the operands hold; `None` where that cannot be said, or nothing is held yet."""
    axis = region.axes[op]
    if axis.join is not None:
        return None
    have = [held[v] for v, a in zip(op.operands, axis.operands, strict=True) if a is not None and v in held]
    if not have:
        return None
    common = have[0]
    for other in have[1:]:
        common = intersection(common, other)
    if axis.form is Form.SAME:
        return _same(axis, common)
    if axis.form is Form.PADS:
        return _window(op, axis, grid, common)
    if axis.form is Form.RESIZE:
        return _resized(op, region, (OperandTile(common, None, None), *(None,) * (len(op.operands) - 1)))
    return None


def _same(axis: Axis, have: Interval) -> TileWork | None:
    """An op whose attributes do not change gives what follows from all that it is given."""
    alongs = [a for a in axis.operands if a is not None]
    part = OperandTile(have, None, None)
    needs = tuple(None if a is None else part for a in axis.operands)
    if all(a.is_identity for a in alongs):
        return TileWork(have, needs) if axis.grain == 1 else None
    if len(alongs) == 1 and alongs[0] == Along(alongs[0].axis, 1, axis.grain):
        # Each element becomes `grain` of them, as where channels become places.
        return TileWork(Interval(_times(have.lo, axis.grain), _times(have.hi, axis.grain)), needs)
    return None


def _window(op: Op, axis: Axis, grid: TileGrid, have: Interval) -> TileWork | None:
    """A window with the whole's padding on a part of the operand."""
    place = axis.results[0] or 0
    window = window_of(op, place - 2)
    if window is None or op.attrs.get("ceil_mode"):
        return None
    size, stride, dilation, before, after = window
    lo = _divided(have.lo, stride)
    if lo is None:
        return None
    if ends_at(grid, have.hi, op.operands[0], place):
        hi: Bound = grid.end(op.results[0], place)
    else:
        reach = before + after - (size - 1) * dilation - 1
        hi = _count(have, stride, reach, lo)
        if hi is None or not grid.allows(hi, op.results[0], place):
            return None
    needs = (OperandTile(Interval(have.lo, have.hi), None, None), *(None,) * (len(op.operands) - 1))
    return TileWork(Interval(lo, hi), needs)


def _divided(bound: Bound, by: int) -> Bound:
    if isinstance(bound, AffineBound):
        return AffineBound(bound.a // by, bound.b // by, bound.i) if bound.a % by == 0 and bound.b % by == 0 else None
    return None if bound is None or bound % by else bound // by


def _count(have: Interval, stride: int, reach: int, lo: Bound) -> Bound:
    """End of a window's results: lo + (length + reach) // stride + 1."""
    if isinstance(have.lo, int) and isinstance(have.hi, int) and isinstance(lo, int):
        return lo + (have.hi - have.lo + reach) // stride + 1
    if isinstance(have.hi, AffineBound) and have.hi.a % stride == 0:
        start = have.lo.b if isinstance(have.lo, AffineBound) else have.lo or 0
        if start % stride:
            return None
        return AffineBound(have.hi.a // stride, start // stride + (have.hi.b - start + reach) // stride + 1, have.hi.i)
    return None


__all__ = ["NotTileableError", "TileWork", "needed_intervals", "tile_work"]
