"""Edits of a pipeline that take back passes or put weaker ones in their place, and the search for the least of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memoptc.attempts import Attempt, Edit
from memoptc.pass_base import Pass

MOST_ATTEMPTS = 16
"""Compiles after which the search settles for the best that is known to hold."""

_HALFWAY = 0.5


def find_edit(
    changed: Sequence[int],
    holds: Callable[[Edit], bool],
    weaker: Iterable[Edit],
    most: int = MOST_ATTEMPTS,
    late: Callable[[], bool] = lambda: False,
) -> Edit | None:
    """Find an edit of a pipeline after which a promise holds, and that drops few passes.

    Taken for granted is what bisection takes for granted: that with more passes dropped it still holds.

    Args:
        changed: Positions of the passes that may be dropped, in the order in which they run.
        holds: Whether the promise holds after an edit; called at most once for each, and about `most` times in all.
        weaker: Edits to try before any pass is dropped.
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

    for edit in weaker:
        if late():
            break
        if holds(edit):
            return edit
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


NODE_WEIGHTS = (8.0, 64.0, 512.0)
"""How much more the bytes of nodes shall count, tried one after the other."""


def weaker_forms(passes: Sequence[Pass], changed: Sequence[int], asked: float, found: float) -> Iterator[Edit]:
    """Give edits that let passes slow a model down by less, where they take a bound on that.

    Args:
        passes: The passes of the pipeline.
        changed: Positions of those that changed the graph.
        asked: Slowdown that is allowed.
        found: Slowdown that was measured.
    """
    bounded = {i: p for i, p in enumerate(passes) if i in changed and _slowdown(p) > 1}
    if bounded and asked > 1:
        share = min(_HALFWAY, (asked - 1) / max(found - 1, 1e-6))
        yield Edit(replaced={i: _with_slowdown(p, 1 + share * (_slowdown(p) - 1)) for i, p in bounded.items()})
    free = {i: _with_slowdown(p, 1.0) for i, p in bounded.items()}
    if free:
        yield Edit(replaced=free)
    for factor in NODE_WEIGHTS[:2]:  # what costs nothing on paper does in fact: fewer of it
        lighter = _weighing(free, factor)
        if lighter:
            yield Edit(replaced={**free, **lighter})


def fewer_nodes(passes: Sequence[Pass], changed: Sequence[int], excess: float) -> Iterator[Edit]:
    """Give edits with which passes make fewer and fewer nodes, where they take a weight of these.

    Args:
        passes: The passes of the pipeline.
        changed: Positions of those that changed the graph.
        excess: Growth over the growth that is allowed; weights below are not tried.
    """
    for factor in (w for w in NODE_WEIGHTS if w >= min(excess, NODE_WEIGHTS[-1])):
        lighter = _weighing({i: p for i, p in enumerate(passes) if i in changed}, factor)
        if lighter:
            yield Edit(replaced=lighter)


def _weighing(passes: Mapping[int, Pass], factor: float) -> dict[int, Pass]:
    """Give those passes that take a weight of nodes, with so many times theirs."""
    weights = {i: getattr(p, "node_weight", None) for i, p in passes.items()}
    return {i: _replaced(passes[i], node_weight=factor * w) for i, w in weights.items() if isinstance(w, int | float)}


def fewer_copies(attempt: Attempt) -> Iterator[Edit]:
    """Give an edit with which weights stay codes in memory, where passes let onnxruntime decode them while it loads."""
    passes = list(attempt.pipeline.passes())
    copying = [i for i in attempt.compiled.changed if getattr(passes[i], "decode", "") == "load"]
    if copying:
        yield Edit(replaced={i: _replaced(passes[i], decode="run") for i in copying})


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
