"""Edits of a pipeline that take back passes or put weaker ones in their place, and the search for the least of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memoptc.attempts import Attempt, Edit
from memoptc.pass_base import Pass
from memoptc.report.model import PassRecord

MOST_ATTEMPTS = 16
"""Compiles after which the search settles for the best that is known to hold."""

RUNGS = 8
"""Peaks, from the one that a pass reached to the one that it found, at which it may stop; three or four are tried."""


def find_edit(
    changed: Sequence[int],
    holds: Callable[[Edit], bool],
    weaker: Iterable[Sequence[Edit]],
    most: int = MOST_ATTEMPTS,
    late: Callable[[], bool] = lambda: False,
) -> Edit | None:
    """Find an edit of a pipeline after which a promise holds, and that drops few passes.

    Taken for granted is what bisection takes for granted: that with more passes dropped it still holds.

    Args:
        changed: Positions of the passes that may be dropped, in the order in which they run.
        holds: Whether the promise holds after an edit; called at most once for each, and about `most` times in all.
        weaker: Edits to try before any pass is dropped, in ladders: each from what takes back least to what takes back
            most.
        most: When to stop looking for a smaller edit than is known.
        late: Whether to stop for another reason, such as time; while nothing is known that holds, all passes are
            dropped at once then.

    Returns:
        The edit; `None` when not even dropping all passes helps.
    """
    known: dict[frozenset[int], bool] = {frozenset(): False}

    def without(dropped: frozenset[int]) -> bool:
        if dropped not in known:
            known[dropped] = holds(Edit(dropped))
        return known[dropped]

    for ladder in weaker:
        found = _first_that_holds(ladder, holds, late)
        if found is not None:
            return found
    culprits: frozenset[int] = frozenset()
    while True:
        rest = [c for c in changed if c not in culprits]

        def tail(count: int, rest: Sequence[int] = rest, culprits: frozenset[int] = culprits) -> frozenset[int]:
            return culprits | frozenset(rest[len(rest) - count :])

        low, high = -1, 0
        while not without(tail(high)):
            if high >= len(rest):
                return None
            low, high = high, len(rest) if late() else min(max(1, 2 * high), len(rest))
        while high - low > 1 and len(known) < most and not late():
            middle = (low + high) // 2
            low, high = (low, middle) if without(tail(middle)) else (middle, high)
        if high == 0 or len(known) >= most or late():
            return Edit(tail(high))
        culprits |= {rest[len(rest) - high]}


BOLDER = 4.0
"""Times as much slowdown as is asked for that such a pass may predict: without caches all is predicted too slow."""


def _first_that_holds(ladder: Sequence[Edit], holds: Callable[[Edit], bool], late: Callable[[], bool]) -> Edit | None:
    """Find the first edit of a ladder after which a promise holds, as if it then held after all that follow."""
    low, high = 0, len(ladder)
    while low < high and not late():
        middle = (low + high) // 2
        low, high = (low, middle) if holds(ladder[middle]) else (middle + 1, high)
    return ladder[high] if high < len(ladder) else None


NODE_WEIGHTS = (8.0, 64.0, 512.0)
"""How much more the bytes of nodes shall count, tried one after the other."""


def weaker_forms(
    passes: Sequence[Pass], changed: Sequence[int], records: Sequence[PassRecord]
) -> Iterator[Sequence[Edit]]:
    """Give ladders of edits that let passes slow a model down by less, where they take a bound on that.

    A pass that says down to which peak it goes on is let go less and less far, on predictions that count on no cache:
    what costs nothing on paper does in fact, and the cheapest way to a higher peak takes fewer and larger pieces. What
    that takes is measured.

    Args:
        passes: The passes of the pipeline.
        changed: Positions of those that changed the graph.
        records: What passes did.
    """
    bounded = {i: p for i, p in enumerate(passes) if i in changed and _slowdown(p) > 1}
    lowered = {i: peaks for i, p in bounded.items() if hasattr(p, "ignore") and (peaks := _peaks(p, records))}
    if lowered:
        yield [
            Edit(replaced={i: _stopping_at(bounded[i], peaks, rung / RUNGS) for i, peaks in lowered.items()})
            for rung in range(RUNGS)
        ]
    free = {i: _with_slowdown(p, 1.0) for i, p in bounded.items() if i not in lowered}
    if free:
        yield [Edit(replaced=free)]


def _peaks(pass_: Pass, records: Sequence[PassRecord]) -> tuple[int, int] | None:
    """Peak that a pass reached and the one that it had found, in bytes; `None` where its records do not say."""
    for record in reversed(records):
        saved = record.stats.get("bytes saved", 0)
        if record.name == pass_.name and saved > 0 and record.planned_peak_bytes:
            return record.planned_peak_bytes, record.planned_peak_bytes + saved
    return None


def _stopping_at(pass_: Pass, peaks: tuple[int, int], share: float) -> Pass:
    """Give a pass that stops at a share of the way back, by ratios, from the peak that it reached."""
    reached, before = peaks
    goal = round(reached * (before / reached) ** share)
    return _replaced(pass_, slowdown=round(1 + BOLDER * (_slowdown(pass_) - 1), 3), ignore=goal, caches=False)


def fewer_nodes(passes: Sequence[Pass], changed: Sequence[int], excess: float) -> Iterator[Sequence[Edit]]:
    """Give edits with which passes make fewer and fewer nodes, where they take a weight of these.

    Args:
        passes: The passes of the pipeline.
        changed: Positions of those that changed the graph.
        excess: Growth over the growth that is allowed; weights below are not tried.
    """
    for factor in (w for w in NODE_WEIGHTS if w >= min(excess, NODE_WEIGHTS[-1])):
        lighter = _weighing({i: p for i, p in enumerate(passes) if i in changed}, factor)
        if lighter:
            yield [Edit(replaced=lighter)]


def _weighing(passes: Mapping[int, Pass], factor: float) -> dict[int, Pass]:
    """Give those passes that take a weight of nodes, with so many times theirs."""
    weights = {i: getattr(p, "node_weight", None) for i, p in passes.items()}
    return {i: _replaced(passes[i], node_weight=factor * w) for i, w in weights.items() if isinstance(w, int | float)}


def fewer_copies(attempt: Attempt) -> Iterator[Sequence[Edit]]:
    """Give an edit with which weights stay codes in memory, where passes let onnxruntime decode them while it loads."""
    passes = list(attempt.pipeline.passes())
    copying = [i for i in attempt.compiled.changed if getattr(passes[i], "decode", "") == "load"]
    if copying:
        yield [Edit(replaced={i: _replaced(passes[i], decode="run") for i in copying})]


def with_weaker(edit: Edit, passes: Sequence[Pass]) -> Edit | None:
    """Give an edit with weaker passes in place of those that are dropped; `None` where none of them has one."""
    found = {i: weaker for i in edit.dropped if (weaker := passes[i].weaker()) is not None}
    return replace(edit, dropped=edit.dropped - found.keys(), replaced={**edit.replaced, **found}) if found else None


def _slowdown(pass_: Pass) -> float:
    found = getattr(pass_, "slowdown", 0.0)
    return float(found) if isinstance(found, int | float) else 0.0


def _with_slowdown(pass_: Pass, slowdown: float) -> Pass:
    return _replaced(pass_, slowdown=round(slowdown, 3))


def _replaced(pass_: Pass, **options: float | str) -> Pass:
    of: Any = pass_
    changed: Pass = replace(of, **options)
    return changed


@dataclass(frozen=True)
class Everywhere:
    """Drops passes wherever their names stand in a pipeline."""

    passes: Sequence[Pass]

    def __call__(self, edit: Edit) -> Edit:
        """Give the edit that drops all passes of the names that one drops."""
        names = {self.passes[i].name for i in edit.dropped}
        return Edit(frozenset(i for i, p in enumerate(self.passes) if p.name in names))
