"""Snapshots of a program along a pipeline, from which a pipeline that begins alike goes on instead of running it all.

What a gate takes back late leaves the passes before it as they were: those need not run again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from memoptc.instruments import Changes
from memoptc.ir.core import Graph
from memoptc.manager import Instrument, count_nodes
from memoptc.pass_base import Artefacts, Context, Pass
from memoptc.pipeline import Group, Pipeline
from memoptc.report.model import Decision, PassRecord

MOST = 4
"""Snapshots that are kept, the latest ones: each holds the weights that passes behind it replace."""
MOST_NODES = 10_000
"""Nodes above which none is made: a copy of a graph, weights aside, takes some kilobytes for each of them."""
COPY_SHARE = 20
"""Times as long as a copy takes that passes must have run since the last one: making them takes 5 % of the time."""


@dataclass(frozen=True)
class Snapshot:
    """A program between two items of a pipeline.

    Args:
        items: What had run.
        graph: The program; clone it before anything changes it.
        records: One for each pass that had run.
        changed: Positions of those that had changed it.
        warnings: What the user had been told.
        decisions: What had been decided.
        artefacts: What passes had made besides.
    """

    items: tuple[Pass | Group, ...]
    graph: Graph
    records: tuple[PassRecord, ...]
    changed: tuple[int, ...]
    warnings: tuple[str, ...]
    decisions: tuple[Decision, ...]
    artefacts: Artefacts

    def restore(self, context: Context) -> Graph:
        """Give the program, and what had been said of it by then, to a context that is new."""
        context.warnings[:], context.decisions[:] = self.warnings, self.decisions
        context.artefacts = _copied(self.artefacts)
        return self.graph.clone()


@dataclass
class Snapshots:
    """The snapshots of one compile: made while its first pipeline runs, used by those after it."""

    _made: list[Snapshot] = field(default_factory=list)
    _closed: bool = False

    def before(self, pipeline: Pipeline) -> Snapshot | None:
        """Give the latest snapshot of a pipeline that begins like this one; `None` where there is none."""
        fitting = (s for s in reversed(self._made) if pipeline.items[: len(s.items)] == s.items)
        return next(fitting, None)

    def recorder(self, pipeline: Pipeline, context: Context, changes: Changes) -> list[Instrument]:
        """Give the hook that makes snapshots: for the first pipeline only, as others are edits of it."""
        if self._closed:
            return []
        self._closed = True
        return [_Recorder(pipeline, context, changes, self._made)]


class _Recorder(Instrument):
    def __init__(self, pipeline: Pipeline, context: Context, changes: Changes, made: list[Snapshot]) -> None:
        self._items, self._context, self._changes, self._made = pipeline.items, context, changes, made
        firsts = [(next(Pipeline((item,)).passes(), None), i) for i, item in enumerate(pipeline.items)]
        self._starts: dict[int, int] = {}
        for pass_, i in firsts:
            if pass_ is not None:
                self._starts.setdefault(id(pass_), i)  # of one that stands there twice, where it runs first
        self._records: list[PassRecord] = []
        self._since, self._cost = time.perf_counter(), 0.0
        self._searched = False

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        """Make a snapshot where an item of the pipeline begins, and what ran since the last one took long enough.

        Behind passes that are held to an accuracy of their own there is none: their searches are kept by what they
        searched.
        """
        start = self._starts.pop(id(pass_), 0)
        self._searched = self._searched or pass_.accuracy_target is not None
        spent = time.perf_counter() - self._since
        if not start or self._searched or spent <= COPY_SHARE * self._cost or count_nodes(graph) > MOST_NODES:
            return
        begun, context = time.perf_counter(), self._context
        said = (tuple(context.warnings), tuple(context.decisions), _copied(context.artefacts))
        changed = tuple(self._changes.positions())
        self._made.append(Snapshot(self._items[:start], graph.clone(), tuple(self._records), changed, *said))
        del self._made[:-MOST]
        self._since = time.perf_counter()
        self._cost = self._since - begun

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Note what ran."""
        self._records.append(record)


def _copied(artefacts: Artefacts) -> Artefacts:
    return replace(artefacts, declined=artefacts.declined.copy())
