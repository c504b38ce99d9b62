"""Find what broke the numbers: first the pass, then the single rewrite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from memoptc.instruments import StopAfter
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InternalError
from memoptc.manager import Instrument, run_pipeline
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Pipeline
from memoptc.report.model import PassRecord
from memoptc.rewrite.limit import limit_rewrites

_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Culprit:
    """The pass and rewrite after which numbers leave the original.

    Args:
        pass_: The pass, `None` when the numbers hold to the end.
        index: Which one of those that run, from 0.
        rewrite: Which rewrite inside it, as the rewriter describes it; `""` when it makes no counted ones.
    """

    pass_: Pass | None
    index: int = -1
    rewrite: str = ""

    def __str__(self) -> str:
        if self.pass_ is None:
            return "nothing"
        return f"pass {self.pass_}" + (f", rewrite {self.rewrite}" if self.rewrite else "")


def bisect(
    original: Graph,
    pipeline: Pipeline,
    good: Callable[[Graph], bool],
    make_context: Callable[[], Context] = Context,
    prepare: Callable[[Graph], None] = lambda graph: None,
) -> Culprit:
    """Find the first pass after which `good` no longer holds, by halving.

    Passes are deterministic, so that running the first n of them again gives the same graph; and what is
    bad is taken to stay bad, as in any bisection. A graph that is bad before any pass has no culprit.

    Args:
        original: The graph before any pass; not changed.
        pipeline: What to run.
        good: Whether a graph's numbers hold.
        make_context: Gives a fresh context for a run.
        prepare: Called on each fresh copy before passes run (shape inference, say).
    """

    def holds(graph: Graph) -> bool:
        try:
            return good(graph)
        except InternalError:  # what we wrote does not even run
            return False

    def after(count: int) -> tuple[Graph, list[Pass]]:
        graph, seen = original.clone(), _Seen()
        prepare(graph)
        run_pipeline(pipeline, graph, make_context(), [seen, StopAfter(count)])
        return graph, seen.passes

    every, passes = after(_NO_LIMIT)
    if holds(every) or not holds(after(0)[0]):
        return Culprit(None)
    low, high = 0, len(passes)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(after(middle)[0]):
            low = middle
        else:
            high = middle
    rewrite = _bisect_rewrites(original, pipeline, holds, high - 1, make_context, prepare)
    return Culprit(passes[high - 1], high - 1, rewrite)


class _Seen(Instrument):
    """Notes which passes come up, whether or not they run."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []

    def should_run(self, index: int, pass_: Pass, graph: Graph) -> bool:
        self.passes.append(pass_)
        return True


def _bisect_rewrites(
    original: Graph,
    pipeline: Pipeline,
    good: Callable[[Graph], bool],
    index: int,
    make_context: Callable[[], Context],
    prepare: Callable[[Graph], None],
) -> str:
    """Find the rewrite inside pass `index` that breaks the numbers; `""` when it makes none that are counted."""

    def bad_with(limit: int) -> tuple[bool, list[str]]:
        graph, only = original.clone(), _LimitIn(index, limit)
        prepare(graph)
        run_pipeline(pipeline, graph, make_context(), [only, StopAfter(index + 1)])
        return not good(graph), only.applied

    bad, applied = bad_with(_NO_LIMIT)
    if not bad or not applied or bad_with(0)[0]:
        return ""
    low, high = 0, len(applied)
    while high - low > 1:
        middle = (low + high) // 2
        if bad_with(middle)[0]:
            high = middle
        else:
            low = middle
    return f"{high} of {len(applied)}: {applied[high - 1]}"


class _LimitIn(Instrument):
    """Lets one pass make only so many counted changes."""

    def __init__(self, index: int, limit: int) -> None:
        self.index, self.limit = index, limit
        self.applied: list[str] = []
        self._guard: contextlib.AbstractContextManager[list[str]] | None = None

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        if index == self.index:
            self._guard = limit_rewrites(self.limit)
            self.applied = self._guard.__enter__()

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        self._leave()

    def failed(self, index: int, pass_: Pass, graph: Graph, error: Exception) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
            self._guard = None
