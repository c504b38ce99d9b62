"""Runs pipelines. Everything beside running (time, checks, dumps, reproducers, bisection) hangs on hooks."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from memoptc.allowance import GATES, PASSES, Allowance
from memoptc.exception_origin import described, file_of
from memoptc.ir.budget import PassOverrun
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InternalError, MemoptcError
from memoptc.ir.mapped import stored_bytes
from memoptc.ir.tensors import nbytes
from memoptc.node_names import check_names, named_nodes, names_of
from memoptc.overrun import Rollback, Watch, bounded, describe
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Group, Pipeline
from memoptc.report.model import PassRecord
from memoptc.rewrite.driver import RulesWithoutEnd


class Instrument:
    """Hooks around each pass; override what you need. `index` counts passes as they run, from 0."""

    def should_run(self, index: int, pass_: Pass, graph: Graph) -> bool:
        """True if the pass runs at all."""
        return True

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        """Called before a pass."""

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Called after a pass; may fill in `record`, may raise to stop the compile."""

    def failed(self, index: int, pass_: Pass, graph: Graph, error: Exception) -> None:
        """Called when a pass, or an `after` hook, raised."""

    def overran(self, item: Pass | Group, graph: Graph, why: str) -> str:
        """Called when a pass, or a group, did not end within its bound; the graph is as it was before the pass.

        Returns:
            What the warning shall say besides.
        """
        return ""


class PassFailed(InternalError):
    """A pass broke: it raised, or what it left does not verify.

    Args:
        pass_: The pass.
        index: Which one of those that ran, from 0.
        cause: What was raised.

    Attributes:
        rest: What was left to run, beginning with the pass.
    """

    def __init__(self, pass_: Pass, index: int, cause: Exception) -> None:
        known = isinstance(cause, MemoptcError)
        super().__init__(
            f"Pass {pass_.name} failed: {cause if known else described(cause, file_of(type(pass_)))}",
            hint="This is a fault of memoptc or of a plug-in; leave the pass out with --passes to go on.",
        )
        self.pass_ = pass_
        self.index = index
        self.rest: tuple[Pass | Group, ...] = (pass_,)


@dataclass
class _Run:
    graph: Graph
    context: Context
    instruments: Sequence[Instrument]
    peak: Callable[[Graph], int | None]
    records: list[PassRecord]
    watch: Watch
    index: int = 0
    changed: list[str] = field(default_factory=list)
    endless: set[str] = field(default_factory=set)
    names: Set[str] = frozenset()

    def __post_init__(self) -> None:
        self.rollback = Rollback(self.graph, self.context, lambda p: self.counted(p, Counter()))

    def items(self, items: Sequence[Pass | Group]) -> None:
        for position, item in enumerate(items):
            try:
                if isinstance(item, Group):
                    self.group(item)
                else:
                    self.one(item)
            except PassFailed as failure:
                failure.rest += tuple(items[position + 1 :])
                raise

    def group(self, group: Group) -> None:
        for done in range(group.rounds):
            version, before = self.graph.version, len(self.changed)
            try:
                self.items(group.items)
            except PassFailed as failure:
                left = None if group.limit is None else group.limit - done - 1
                failure.rest += () if left == 0 else (Group(group.items, left),)
                raise
            if self.graph.version == version:
                return
        if group.limit is None:
            names = ", ".join(dict.fromkeys(self.changed[before:]))
            why = f"{group} still changed the model after {group.rounds} rounds: {names} undo each other, or need more."
            self.warn(group, f"{why} The model stays as the last round left it.")

    @property
    def allowance(self) -> Allowance:
        """The time of the compile."""
        return self.context.allowance

    @staticmethod
    def part(pass_: Pass) -> float:
        """Part of the compile's time after which a pass is left out: numbers that were asked for may take more."""
        if pass_.kept or pass_.runs_late:
            return math.inf
        return GATES if pass_.changes_numbers or pass_.accuracy_target is not None else PASSES

    def warn(self, item: Pass | Group, why: str) -> None:
        """Tell the user what did not end; once each."""
        if not any(w.startswith(why) for w in self.context.warnings):
            more = [i.overran(item, self.graph, why) for i in self.instruments]
            self.context.warnings.append(" ".join([why, *filter(None, more)]))

    def counted(self, pass_: Pass, stats: Counter[str]) -> None:
        """Run a pass that counts in `stats`."""
        outer, self.context.stats = self.context.stats, stats
        try:
            pass_.run(self.graph, self.context)
        finally:
            self.context.stats = outer  # of the pass that runs this pipeline, where one does

    def one(self, pass_: Pass) -> None:
        index, self.index = self.index, self.index + 1
        if str(pass_) in self.endless or not all(i.should_run(index, pass_, self.graph) for i in self.instruments):
            return
        if self.allowance.leaves_out(pass_.name, self.part(pass_)):
            return
        for instrument in self.instruments:
            instrument.before(index, pass_, self.graph)
        stats: Counter[str] = Counter()
        nodes, version, start = count_nodes(self.graph), self.graph.version, time.perf_counter()
        try:
            check_names(pass_, self.graph, self.names)
            self.rollback.before()
            try:
                most = self.allowance.by_clock(self.part(pass_))
                with bounded(self.graph, self.context, nodes, self.watch, most):
                    self.counted(pass_, stats)
            except (PassOverrun, RulesWithoutEnd) as e:
                did = str(e) if isinstance(e, RulesWithoutEnd) else describe(e, stats)
                seconds = time.perf_counter() - start
                self.rollback.restore()
                self.endless.add(str(pass_))
                late = self.allowance.is_late(pass_.name, self.part(pass_))
                stats = Counter({"ended: did not end by itself": 1})
                why = f"Pass {pass_} did not end on {nodes} ops within {seconds:.1f} s: {did}."
                if not late:
                    self.warn(pass_, f"{why} Its work was taken back, and it is left out from here on.")
            else:
                seconds = time.perf_counter() - start
                if self.graph.version != version:
                    self.rollback.after(pass_, seconds)
                    self.changed.append(pass_.name)
            last = self.records[-1] if self.records else None
            changed = self.graph.version != version or last is None
            record = PassRecord(
                name=pass_.name,
                seconds=round(seconds, 4),
                nodes_before=nodes,
                nodes_after=count_nodes(self.graph),
                planned_peak_bytes=self.peak(self.graph) if changed or last is None else last.planned_peak_bytes,
                weight_bytes=weight_bytes(self.graph) if changed or last is None else last.weight_bytes,
                stats=dict(sorted(stats.items())),
            )
            for instrument in self.instruments:
                instrument.after(index, pass_, self.graph, record)
        except Exception as e:
            for instrument in self.instruments:
                instrument.failed(index, pass_, self.graph, e)
            if isinstance(e, MemoptcError) and not isinstance(e, InternalError):
                raise
            raise PassFailed(pass_, index, e) from e
        self.records.append(record)


def run_pipeline(
    pipeline: Pipeline,
    graph: Graph,
    context: Context | None = None,
    instruments: Sequence[Instrument] = (),
    peak: Callable[[Graph], int | None] = lambda graph: None,
) -> list[PassRecord]:
    """Run a pipeline on a graph, in place.

    Args:
        pipeline: What to run.
        graph: The top graph.
        context: Facts about the compile.
        instruments: Hooks, called in this order.
        peak: Gives the planned peak in bytes for the records.

    Returns:
        One record per pass that ran.

    Raises:
        PassFailed: a pass raised, or a hook found what it left to be wrong.
        MemoptcError: what a pass says about the input.
    """
    with Watch() as watch:
        context = context or Context()
        run = _Run(graph, context, instruments, peak, [], watch)
        if any(map(named_nodes, pipeline.passes())):
            run.names = names_of(graph) | (set() if context.original is None else names_of(context.original))
        run.items(pipeline.items)
    return run.records


def count_nodes(graph: Graph) -> int:
    """Number of operators in all graphs of a model; weights and markers are not counted."""
    return sum(1 for op in graph.walk() if op.domain or op.op_type not in ("const", "absent", "sparse_const"))


def weight_bytes(graph: Graph, *, shared: bool = True) -> int:
    """Bytes of all weights of a model, as stored, those of Constant nodes included.

    Args:
        graph: The model.
        shared: Equal ones are stored once, as in a data file; a model file stores each by itself.
    """
    weights = [op.attrs["value"] for op in graph.walk("const", "Constant") if "value" in op.attrs]
    return stored_bytes(weights) if shared else sum(map(nbytes, weights))
