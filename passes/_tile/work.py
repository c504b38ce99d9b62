"""What each op of a region does for one piece: which interval it computes, from which parts of its operands.

Going backwards from what the piece must give, every op is asked what it needs (`needs_of`); where two users need
different intervals, the hull of both is made. Going forwards, there are two ways to make it:

exact   every op computes what is needed and no more; a window at an inner border takes its halo from the operand.
        Where a value is used with less of its halo than was made, as beside a residual block, it is cropped first.
loose   windows keep the whole's padding and every op computes as much as its operands hold. What lies within reach of
        an inner border is then wrong, and is what the need was wider by: it never comes into what is needed, and is
        cropped off at the end. Nothing is cropped inside, so the runtime keeps its layouts and fusions there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Along, Axis, Form
from memoptc.ir.ops.resize import factor_of
from memoptc.ir.ops.windows import window_of
from memoptc.passes._tile.frame import Bound, DoesNotFitError, Frame, Need, Span, Step, ends_at, least
from memoptc.passes._tile.region import Region


@dataclass(frozen=True)
class Work:
    """What an op does for one piece.

    Args:
        span: The interval of its axis that it computes.
        needs: Per operand the part it gets; `None` where it gets the whole.
    """

    span: Span
    needs: tuple[Need | None, ...]


def work_of(region: Region, frame: Frame, index: int, *, loose: bool = False) -> dict[Op, Work]:
    """Say what each op does for a piece; ops that the piece does not need are left out.

    Args:
        region: What is cut.
        frame: Into which pieces.
        index: Which piece.
        loose: Whether ops may compute more than is needed, so that nothing is cropped on the way.

    Raises:
        DoesNotFitError: the pieces are too small, or do not line up.
    """
    spans = needs_of(region, frame, index, aligned=loose)
    found: dict[Op, Work] = {}
    held: dict[Value, Span] = {}
    for op in region.ops:
        if op not in spans:
            continue
        work = _loosely(op, region, frame, held, spans[op]) if loose else None
        found[op] = work = work or _exactly(op, region, frame, spans[op])
        for result, place in zip(op.results, region.axes[op].results, strict=True):
            if place is not None:
                held[result] = work.span
    return found


def needs_of(region: Region, frame: Frame, index: int, *, aligned: bool = False) -> dict[Op, Span]:
    """Which interval of its axis each op must compute for a piece."""
    wanted: dict[Value, Span] = dict(frame.piece(index))
    found: dict[Op, Span] = {}
    slowest = min(map(region.rate, region.ops))
    for op in reversed(region.ops):
        axis = region.axes[op]
        span: Span | None = None
        for result, place in zip(op.results, axis.results, strict=True):
            need = wanted.get(result)
            if need is not None and (place is not None or axis.join is not None):
                span = need if span is None else frame.hull(span, need)
                value, where = result, place
        if span is None:
            continue
        grain = axis.grain
        if aligned and region.rate(op) % slowest == 0 and axis.grain == 1:
            # Windows with strides downstream then start where they do in the whole.
            grain = region.rate(op) // slowest
        # What accumulates gets everything once.
        if where is not None and axis.form is not Form.EXPONENTIALS:
            span = frame.widen(span, grain, value, where)
        found[op] = span
        for operand, along in zip(op.operands, axis.operands, strict=True):
            if along is not None and operand in region.cut:
                part = frame.need(along, span, operand).span
                old = wanted.get(operand)
                wanted[operand] = part if old is None else frame.hull(old, part)
    return found


def _exactly(op: Op, region: Region, frame: Frame, span: Span) -> Work:
    needs = tuple(
        None if along is None else frame.need(along, span, operand)
        for operand, along in zip(op.operands, region.axes[op].operands, strict=True)
    )
    if region.axes[op].form is Form.RESIZE:
        return _resized(op, region, needs) or Work(span, needs)
    return Work(span, needs)


def _resized(op: Op, region: Region, needs: tuple[Need | None, ...]) -> Work | None:
    """A resize gives as much as its operand holds, whatever is needed of it."""
    factor = factor_of(op, region.axes[op].results[0] or 0)
    need = needs[0]
    if factor is None or need is None:
        return None
    return Work(Span(_times(need.span.lo, factor), _times(need.span.hi, factor)), needs)


def _times(bound: Bound, factor: int) -> Bound:
    if isinstance(bound, Step):
        return Step(bound.a * factor, bound.b * factor, bound.i)
    return None if bound is None else bound * factor


def _loosely(op: Op, region: Region, frame: Frame, held: Mapping[Value, Span], need: Span) -> Work | None:
    """Compute what the operands hold; `None` where that cannot be said, or nothing is held yet."""
    axis = region.axes[op]
    if axis.join is not None:
        return None
    have = [held[v] for v, a in zip(op.operands, axis.operands, strict=True) if a is not None and v in held]
    if not have:
        return None
    common = have[0]
    for other in have[1:]:
        common = least(common, other)
    if axis.form is Form.SAME and axis.grain == 1:
        if any(a is not None and not a.is_identity for a in axis.operands):
            return None
        part = Need(common, None, None)
        return Work(common, tuple(None if a is None else part for a in axis.operands))
    if axis.form is Form.PADS:
        return _window(op, axis, frame, common)
    if axis.form is Form.RESIZE:
        return _resized(op, region, (Need(common, None, None), *(None,) * (len(op.operands) - 1)))
    return None


def _window(op: Op, axis: Axis, frame: Frame, have: Span) -> Work | None:
    """A window with the whole's padding on a part of the operand."""
    place = axis.results[0] or 0
    window = window_of(op, place - 2)
    if window is None or op.attrs.get("ceil_mode"):
        return None
    size, stride, dilation, before, after = window
    lo = _divided(have.lo, stride)
    if lo is None:
        return None
    if ends_at(frame, have.hi, op.operands[0], place):
        hi: Bound = frame.end(op.results[0], place)
    else:
        reach = before + after - (size - 1) * dilation - 1
        hi = _count(have, stride, reach, lo)
        if hi is None or not frame.allows(hi, op.results[0], place):
            return None
    needs = (Need(Span(have.lo, have.hi), None, None), *(None,) * (len(op.operands) - 1))
    return Work(Span(lo, hi), needs)


def _divided(bound: Bound, by: int) -> Bound:
    if isinstance(bound, Step):
        return Step(bound.a // by, bound.b // by, bound.i) if bound.a % by == 0 and bound.b % by == 0 else None
    return None if bound is None or bound % by else bound // by


def _count(have: Span, stride: int, reach: int, lo: Bound) -> Bound:
    """Where a window's results end: lo + (length + reach) // stride + 1."""
    if isinstance(have.lo, int) and isinstance(have.hi, int) and isinstance(lo, int):
        return lo + (have.hi - have.lo + reach) // stride + 1
    if isinstance(have.hi, Step) and have.hi.a % stride == 0:
        start = have.lo.b if isinstance(have.lo, Step) else have.lo or 0
        if start % stride:
            return None
        return Step(have.hi.a // stride, start // stride + (have.hi.b - start + reach) // stride + 1, have.hi.i)
    return None


__all__ = ["Along", "DoesNotFitError", "Work", "needs_of", "work_of"]
