"""Which interval of each axis a piece needs.

In a `Static` frame extents are numbers, and intervals are clipped where they leave the axis. In a `Dynamic` one they
are not known before the run: pieces are bounded by even shares `t[i]` of the extent, computed then, intervals by
multiples of them, `a * t[i] + b`, and each piece's place says which of its ends lie at a border: the first piece begins
at the start of every axis it needs, the last one ends at its end, and all others keep clear of both, which holds from
some extent on (`shortest`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Along, Form
from memoptc.passes._tile.region import Region


class DoesNotFitError(Exception):
    """A region cannot be cut into these pieces; says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """`a * t[i] + b`, where `t[i]` is the bound before piece `i`, computed at run time: i shares of the extent."""

    a: int
    b: int
    i: int


Bound: TypeAlias = int | Step | None
"""A place on an axis: a number, one computed at run time, or (as an end) `None` for the end of the axis."""


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open interval of an axis; a piece's `lo` of 0 is the axis's start."""

    lo: Bound
    hi: Bound


@dataclass(frozen=True, slots=True)
class Need:
    """What a piece needs of an operand.

    Args:
        span: Elements of the operand.
        before: Elements of padding before them; `None`: as many as the whole has.
        after: Elements of padding behind them; `None`: as many as the whole has.
    """

    span: Span
    before: int | None
    after: int | None


Extent = Callable[[Value, int], int]


class Static:
    """Intervals in numbers.

    Args:
        region: What is cut.
        count: Pieces wanted; there may be fewer.
        extent: Gives the extent of a value's axis.
    """

    def __init__(self, region: Region, count: int, extent: Extent) -> None:
        self.region, self.extent = region, extent
        ends = [(extent(*region.bearer(v)), region.rate(_op(v))) for v in region.outputs]
        steps = max(-(-n // rate) for n, rate in ends)
        self.step = max(1, -(-steps // count))
        self.count = -(-steps // self.step) if steps else 1

    overlaps = False

    def piece(self, index: int) -> dict[Value, Span]:
        """What a piece gives of each of the region's outputs that it gives something of."""
        found = {}
        for value in self.region.outputs:
            n, stride = self.extent(*self.region.bearer(value)), self.region.rate(_op(value)) * self.step
            lo, hi = min(index * stride, n), min((index + 1) * stride, n)
            if index == self.count - 1:
                hi = n
            if lo < hi:
                found[value] = Span(lo, hi)
        return found

    def need(self, along: Along, span: Span, operand: Value) -> Need:
        """What an interval of an op's axis needs of an operand."""
        assert isinstance(span.lo, int)
        assert isinstance(span.hi, int)
        n = self.extent(operand, along.axis)
        lo, hi = along.first(span.lo), along.end(span.hi)
        inner = Span(min(max(lo, 0), n), max(min(hi, n), 0))
        if inner.lo >= inner.hi:  # type: ignore[operator]
            raise DoesNotFitError("a piece would lie in the padding")
        return Need(inner, max(0, -lo), max(0, hi - n))

    def hull(self, a: Span, b: Span) -> Span:
        """The smallest interval that holds both."""
        return Span(min(a.lo, b.lo), max(a.hi, b.hi))  # type: ignore[type-var]

    def widen(self, span: Span, grain: int, value: Value, axis: int) -> Span:
        """Move the ends out to multiples of `grain`."""
        assert isinstance(span.lo, int)
        assert isinstance(span.hi, int)
        if grain == 1:
            return span
        return Span(span.lo // grain * grain, min(-(-span.hi // grain) * grain, self.extent(value, axis)))

    def end(self, value: Value, axis: int) -> int | None:
        """The end of an axis."""
        return self.extent(value, axis)

    def allows(self, hi: Bound, value: Value, axis: int) -> bool:
        """Whether a place does not lie behind the end of an axis."""
        return isinstance(hi, int) and hi <= self.extent(value, axis)

    def length(self, span: Span) -> int | None:
        """Elements in an interval."""
        return span.hi - span.lo  # type: ignore[operator]


class Dynamic:
    """Intervals in steps, for extents that are known at run time only.

    Args:
        region: What is cut.
        count: Pieces.
    """

    def __init__(self, region: Region, count: int) -> None:
        self.region, self.count = region, count
        self.reach = 0
        """Least share for which no inner piece reaches the start of an axis, nor the first one ends there."""
        self.slack: set[tuple[Value, int, Step]] = set()
        """(value, axis, place): places that must not lie behind the end of that axis."""

    @cached_property
    def overlaps(self) -> bool:
        """Whether pieces need more than their share of something: then borders matter, and how far away they are.

        Where none does, any extent will do that gives each piece something.
        """
        return any(
            along is not None and (along.low != 0 or along.high not in (0, along.stride - 1))
            for axis in self.region.axes.values()
            for along in axis.operands
        ) or any(axis.form in (Form.PADS, Form.PADDED, Form.TRANSPOSED) for axis in self.region.axes.values())

    def piece(self, index: int) -> dict[Value, Span]:
        """What a piece gives of each of the region's outputs."""
        found = {}
        for value in self.region.outputs:
            rate = self.region.rate(_op(value))
            lo = 0 if not index else Step(rate, 0, index)
            self._some(*self.region.bearer(value), lo)
            found[value] = Span(lo, None if index == self.count - 1 else Step(rate, 0, index + 1))
        return found

    def need(self, along: Along, span: Span, operand: Value) -> Need:
        """What an interval of an op's axis needs of an operand."""
        lo, before = self._first(along, span.lo)
        self._some(operand, along.axis, lo)
        hi, after = self._end(along, span.hi, operand)
        return Need(Span(lo, hi), before, after)

    def _some(self, value: Value, axis: int, lo: Bound) -> None:
        """Something lies behind a piece's first place, also where an axis ends before the others do."""
        if isinstance(lo, Step):
            self.slack.add((value, axis, replace(lo, b=lo.b + 1)))

    def _first(self, along: Along, lo: Bound) -> tuple[Bound, int | None]:
        if lo == 0:
            return 0, None
        assert isinstance(lo, Step)
        place = Step(_whole(lo.a * along.stride, along.per), (lo.b * along.stride + along.low) // along.per, lo.i)
        self.reach = max(self.reach, -(place.b // place.a))
        return place, 0

    def _end(self, along: Along, hi: Bound, operand: Value) -> tuple[Bound, int | None]:
        if hi is None:
            return None, None
        assert isinstance(hi, Step)
        last = ((hi.b - 1) * along.stride + along.high) // along.per
        place = Step(_whole(hi.a * along.stride, along.per), last + 1, hi.i)
        self.slack.add((operand, along.axis, place))
        self.reach = max(self.reach, -((place.b - 1) // place.a))
        return place, 0

    def hull(self, a: Span, b: Span) -> Span:
        """The smallest interval that holds both."""
        lo: Bound = 0
        if isinstance(a.lo, Step) and isinstance(b.lo, Step):
            if a.lo.a != b.lo.a:
                raise DoesNotFitError("two users move at different rates")
            lo = replace(a.lo, b=min(a.lo.b, b.lo.b))
        hi: Bound = None
        if isinstance(a.hi, Step) and isinstance(b.hi, Step):
            if a.hi.a != b.hi.a:
                raise DoesNotFitError("two users move at different rates")
            hi = replace(a.hi, b=max(a.hi.b, b.hi.b))
        return Span(lo, hi)

    def widen(self, span: Span, grain: int, value: Value, axis: int) -> Span:
        """Move the ends out to multiples of `grain`."""
        lo, hi = span.lo, span.hi
        if isinstance(lo, Step):
            lo = Step(_multiple(lo.a, grain), lo.b // grain * grain, lo.i)
        if isinstance(hi, Step):
            hi = Step(_multiple(hi.a, grain), -(-hi.b // grain) * grain, hi.i)
            self.slack.add((value, axis, hi))
        return Span(lo, hi)

    def end(self, value: Value, axis: int) -> int | None:
        """The end of an axis."""
        return None

    def allows(self, hi: Bound, value: Value, axis: int) -> bool:
        """Whether a place does not lie behind the end of an axis: from the shortest extent on."""
        if isinstance(hi, Step):
            self.slack.add((value, axis, hi))
        return not isinstance(hi, int)

    def length(self, span: Span) -> int | None:
        """Elements in an interval, where they are known before the run."""
        return None


def _whole(a: int, b: int) -> int:
    if a % b:
        raise DoesNotFitError("steps that do not divide")
    return a // b


def _multiple(a: int, grain: int) -> int:
    if a % grain:
        raise DoesNotFitError("steps that do not divide")
    return a


def _op(value: Value) -> Op:
    assert value.op is not None
    return value.op


Frame: TypeAlias = Static | Dynamic


def least(a: Span, b: Span) -> Span:
    """What two intervals have in common.

    Raises:
        DoesNotFitError: their ends cannot be compared.
    """
    return Span(_later(a.lo, b.lo), _earlier(a.hi, b.hi))


def _later(a: Bound, b: Bound) -> Bound:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if isinstance(a, Step) and isinstance(b, Step) and a.a == b.a:
        return replace(a, b=max(a.b, b.b))
    raise DoesNotFitError("two users move at different rates")


def _earlier(a: Bound, b: Bound) -> Bound:
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if isinstance(a, Step) and isinstance(b, Step) and a.a == b.a:
        return replace(a, b=min(a.b, b.b))
    raise DoesNotFitError("two users move at different rates")


def ends_at(frame: Frame, bound: Bound, value: Value, axis: int) -> bool:
    """Whether a place is the end of a value's axis."""
    return bound is None or bound == frame.end(value, axis)


def pieces(frame: Frame) -> Sequence[int]:
    """Numbers of the pieces."""
    return range(frame.count)
