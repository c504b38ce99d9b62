"""Tile grids: how the iteration axis is partitioned, and the interval arithmetic of tiles.

In a `StaticGrid` extents are numbers, and intervals are clipped where they leave the axis. In a `DynamicGrid` they are
not known before the run: tiles are bounded by even shares `t[i]` of the extent, computed then, intervals by affine
bounds `a * t[i] + b`, and each tile's index says which of its ends lie at a border: the first tile begins
at the start of every axis it needs, the last one ends at its end, and all others keep clear of both, which holds from
some extent on (`smallest_extent`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Along, Form
from memoptc.passes.memory._tile.region import Region

TO_END = (1 << 63) - 1
"""The end of a Slice that runs to the end of an axis."""


class NotTileableError(Exception):
    """A region cannot be partitioned into these tiles; says why."""


@dataclass(frozen=True, slots=True)
class AffineBound:
    """`a * t[i] + b`, where `t[i]` is the start of tile `i`, computed at run time: i shares of the extent."""

    a: int
    b: int
    i: int


Bound: TypeAlias = int | AffineBound | None
"""A place on an axis: a number, one computed at run time, or (as an end) `None` for the end of the axis."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Half-open interval of an axis; a tile's `lo` of 0 is the axis's start."""

    lo: Bound
    hi: Bound


@dataclass(frozen=True, slots=True)
class OperandTile:
    """The interval of an operand that a tile reads, and the padding around it.

    Args:
        interval: Elements of the operand.
        before: Elements of padding before them; `None`: as many as the whole has.
        after: Elements of padding behind them; `None`: as many as the whole has.
    """

    interval: Interval
    before: int | None
    after: int | None


Extent = Callable[[Value, int], int]


class StaticGrid:
    """Intervals in numbers.

    Args:
        region: What is cut.
        count: Tiles wanted; there may be fewer.
        extent: Gives the extent of a value's axis.

    Raises:
        NotTileableError: an output of the region has no elements.
    """

    def __init__(self, region: Region, count: int, extent: Extent) -> None:
        self.region, self.extent = region, extent
        ends = [(extent(*region.partitioned_operand(v)), region.rate(_op(v))) for v in region.outputs]
        if not all(n for n, _ in ends):
            raise NotTileableError("a result without elements")
        steps = max(-(-n // rate) for n, rate in ends)
        self.step = -(-steps // count)
        self.count = -(-steps // self.step)

    overlaps = False

    def tile(self, index: int) -> dict[Value, Interval]:
        """Intervals that a tile computes of the region's outputs; those of which it computes nothing are left out."""
        found = {}
        for value in self.region.outputs:
            n, stride = self.extent(*self.region.partitioned_operand(value)), self.region.rate(_op(value)) * self.step
            lo, hi = min(index * stride, n), min((index + 1) * stride, n)
            if index == self.count - 1:
                hi = n
            if lo < hi:
                found[value] = Interval(lo, hi)
        return found

    def need(self, along: Along, interval: Interval, operand: Value) -> OperandTile:
        """Interval of an operand that an interval of an op's axis needs."""
        assert isinstance(interval.lo, int)
        assert isinstance(interval.hi, int)
        n = self.extent(operand, along.axis)
        lo, hi = along.first(interval.lo), along.end(interval.hi)
        inner = Interval(min(max(lo, 0), n), max(min(hi, n), 0))
        if inner.lo >= inner.hi:  # type: ignore[operator]
            raise NotTileableError("a tile would lie in the padding")
        return OperandTile(inner, max(0, -lo), max(0, hi - n))

    def hull(self, a: Interval, b: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(a.lo, b.lo), max(a.hi, b.hi))  # type: ignore[type-var]

    def widen(self, interval: Interval, grain: int, value: Value, axis: int) -> Interval:
        """Move the ends out to multiples of `grain`."""
        assert isinstance(interval.lo, int)
        assert isinstance(interval.hi, int)
        if grain == 1:
            return interval
        return Interval(interval.lo // grain * grain, min(-(-interval.hi // grain) * grain, self.extent(value, axis)))

    def end(self, value: Value, axis: int) -> int | None:
        """The end of an axis."""
        return self.extent(value, axis)

    def allows(self, hi: Bound, value: Value, axis: int) -> bool:
        """True if a place does not lie behind the end of an axis."""
        return isinstance(hi, int) and hi <= self.extent(value, axis)

    def length(self, interval: Interval) -> int | None:
        """Elements in an interval."""
        return interval.hi - interval.lo  # type: ignore[operator]


class DynamicGrid:
    """Intervals in steps, for extents that are known at run time only.

    Args:
        region: What is cut.
        count: Tiles.
    """

    def __init__(self, region: Region, count: int) -> None:
        self.region, self.count = region, count
        self.smallest_tile = 0
        """Smallest extent of a tile at which no inner tile's halo reaches a border of an axis."""
        self.upper_bounds: set[tuple[Value, int, AffineBound]] = set()
        """(value, axis, bound): bounds that must not exceed the extent of that axis."""

    @cached_property
    def overlaps(self) -> bool:
        """True if tiles need more than their share of something: then borders matter, and how far away they are.

        Where none does, any extent will do that gives each tile something.
        """
        return any(
            along is not None and (along.low != 0 or along.high not in (0, along.stride - 1))
            for axis in self.region.axes.values()
            for along in axis.operands
        ) or any(axis.form in (Form.PADS, Form.PADDED, Form.TRANSPOSED) for axis in self.region.axes.values())

    def tile(self, index: int) -> dict[Value, Interval]:
        """Intervals that a tile computes of the region's outputs."""
        found = {}
        for value in self.region.outputs:
            rate = self.region.rate(_op(value))
            lo = 0 if not index else AffineBound(rate, 0, index)
            self._some(*self.region.partitioned_operand(value), lo)
            found[value] = Interval(lo, None if index == self.count - 1 else AffineBound(rate, 0, index + 1))
        return found

    def need(self, along: Along, interval: Interval, operand: Value) -> OperandTile:
        """Interval of an operand that an interval of an op's axis needs."""
        if along.exact is not None:
            raise NotTileableError("an interpolation whose extents are known at run time only")
        lo, before = self._first(along, interval.lo)
        self._some(operand, along.axis, lo)
        hi, after = self._end(along, interval.hi, operand)
        return OperandTile(Interval(lo, hi), before, after)

    def _some(self, value: Value, axis: int, lo: Bound) -> None:
        """Something lies behind a tile's first place, also where an axis ends before the others do."""
        if isinstance(lo, AffineBound):
            self.upper_bounds.add((value, axis, replace(lo, b=lo.b + 1)))

    def _first(self, along: Along, lo: Bound) -> tuple[Bound, int | None]:
        if lo == 0:
            return 0, None
        assert isinstance(lo, AffineBound)
        place = AffineBound(
            _exact_quotient(lo.a * along.stride, along.per), (lo.b * along.stride + along.low) // along.per, lo.i
        )
        self.smallest_tile = max(self.smallest_tile, -(place.b // place.a))
        return place, 0

    def _end(self, along: Along, hi: Bound, operand: Value) -> tuple[Bound, int | None]:
        if hi is None:
            return None, None
        assert isinstance(hi, AffineBound)
        last = ((hi.b - 1) * along.stride + along.high) // along.per
        place = AffineBound(_exact_quotient(hi.a * along.stride, along.per), last + 1, hi.i)
        self.upper_bounds.add((operand, along.axis, place))
        self.smallest_tile = max(self.smallest_tile, -((place.b - 1) // place.a))
        return place, 0

    def hull(self, a: Interval, b: Interval) -> Interval:
        """The smallest interval that holds both."""
        lo: Bound = 0
        if isinstance(a.lo, AffineBound) and isinstance(b.lo, AffineBound):
            if a.lo.a != b.lo.a:
                raise NotTileableError("two users move at different rates")
            lo = replace(a.lo, b=min(a.lo.b, b.lo.b))
        hi: Bound = None
        if isinstance(a.hi, AffineBound) and isinstance(b.hi, AffineBound):
            if a.hi.a != b.hi.a:
                raise NotTileableError("two users move at different rates")
            hi = replace(a.hi, b=max(a.hi.b, b.hi.b))
        return Interval(lo, hi)

    def widen(self, interval: Interval, grain: int, value: Value, axis: int) -> Interval:
        """Move the ends out to multiples of `grain`."""
        lo, hi = interval.lo, interval.hi
        if isinstance(lo, AffineBound):
            lo = AffineBound(_multiple(lo.a, grain), lo.b // grain * grain, lo.i)
        if isinstance(hi, AffineBound):
            hi = AffineBound(_multiple(hi.a, grain), -(-hi.b // grain) * grain, hi.i)
            self.upper_bounds.add((value, axis, hi))
        return Interval(lo, hi)

    def end(self, value: Value, axis: int) -> int | None:
        """The end of an axis."""
        return None

    def allows(self, hi: Bound, value: Value, axis: int) -> bool:
        """True if a place does not lie behind the end of an axis: from the shortest extent on."""
        if isinstance(hi, AffineBound):
            self.upper_bounds.add((value, axis, hi))
        return not isinstance(hi, int)

    def length(self, interval: Interval) -> int | None:
        """Elements in an interval, where they are known before the run."""
        return None


def _exact_quotient(a: int, b: int) -> int:
    if a % b:
        raise NotTileableError("steps that do not divide")
    return a // b


def _multiple(a: int, grain: int) -> int:
    if a % grain:
        raise NotTileableError("steps that do not divide")
    return a


def _op(value: Value) -> Op:
    assert value.op is not None
    return value.op


TileGrid: TypeAlias = StaticGrid | DynamicGrid


def intersection(a: Interval, b: Interval) -> Interval:
    """Intersection of two intervals.

    Raises:
        NotTileableError: their ends cannot be compared.
    """
    return Interval(_later(a.lo, b.lo), _earlier(a.hi, b.hi))


def _later(a: Bound, b: Bound) -> Bound:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if isinstance(a, AffineBound) and isinstance(b, AffineBound) and a.a == b.a:
        return replace(a, b=max(a.b, b.b))
    raise NotTileableError("two users move at different rates")


def _earlier(a: Bound, b: Bound) -> Bound:
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if isinstance(a, AffineBound) and isinstance(b, AffineBound) and a.a == b.a:
        return replace(a, b=min(a.b, b.b))
    raise NotTileableError("two users move at different rates")


def ends_at(grid: TileGrid, bound: Bound, value: Value, axis: int) -> bool:
    """True if a place is the end of a value's axis."""
    return bound is None or bound == grid.end(value, axis)


def tiles(grid: TileGrid) -> Sequence[int]:
    """Numbers of the tiles."""
    return range(grid.count)


def within(outer: Interval, inner: Interval) -> tuple[int, int]:
    """Position of an interval in one that holds it, as (start, end) of a Slice."""
    return _start(outer.lo, inner.lo), _stop(outer, inner)


def _start(outer: object, inner: object) -> int:
    if isinstance(outer, int) and isinstance(inner, int):
        return inner - outer
    if isinstance(outer, AffineBound) and isinstance(inner, AffineBound) and outer.a == inner.a:
        return inner.b - outer.b
    raise NotTileableError("a part whose place is not known")


def _stop(outer: Interval, inner: Interval) -> int:
    if outer.hi == inner.hi:
        return TO_END
    if isinstance(outer.hi, int) and isinstance(inner.hi, int) and isinstance(outer.lo, int):
        return inner.hi - outer.lo
    if isinstance(outer.hi, AffineBound) and isinstance(inner.hi, AffineBound) and outer.hi.a == inner.hi.a:
        return inner.hi.b - outer.hi.b
    raise NotTileableError("a part whose place is not known")
