"""What was asked of a coarser model, and whether a copy of it meets that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.pass_base import Context
from memoptc.passes._quantize.observe import pool_of
from memoptc.passes._quantize.tradeoff import Ladder, Layer, Move, needed, shortest
from memoptc.passes._quantize.trial import Trials
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.inputs import InputMaker, find_feeds
from memoptc.runtime.quality import Examiner, Quality, decibels, top1

MADE_UP = 6
"""Feeds to make up where there is no data to measure with."""

_QUICK = 1.0
"""Decibels by which a quick look may miss what is asked for."""


class Wanted:
    """Holds copies of a graph against it: on validation data, else on that of the calibration, else on made-up inputs.

    Args:
        graph: The graph as it is right.
        context: Of the compile.
        min_sqnr: Least signal to difference of every output, in decibels; `None` for any.
        max_loss: Largest accepted loss of the metric; `None` for any.
        fallback: Whether layers may leave what was asked for.

    Raises:
        InputError: the graph does not run on the data, or no inputs were found on which it runs.
    """

    def __init__(
        self, graph: Graph, context: Context, min_sqnr: float | None, max_loss: float | None, *, fallback: bool
    ) -> None:
        self.min_sqnr, self.max_loss, self.fallback, self.context = min_sqnr, max_loss, fallback, context
        metric = top1 if context.metric is None and max_loss is not None else context.metric
        pool = pool_of(context)
        path = pool.write(graph, "float.onnx")
        data = context.validation if context.validation is not None else context.calibration
        self.made_up = data is None
        if data is None:
            data = [Sample(feed, None, "made up") for feed in made_up(graph, path, context, MADE_UP)]
        self.examiner = Examiner(path, data, metric)
        self.trials = Trials(self.examiner, pool)

    def good(self, quality: Quality) -> bool:
        """Whether what was asked for is met."""
        if self.min_sqnr is not None and quality.sqnr_db < self.min_sqnr:
            return False
        return self.max_loss is None or self.loss(quality) <= self.max_loss + 1e-12

    def loss(self, quality: Quality) -> float:
        """How much of the metric is lost."""
        assert quality.metric is not None
        assert self.examiner.metric is not None
        return self.examiner.metric - quality.metric

    def choose(
        self, steps: Ladder, layers: Sequence[Layer], make: Callable[[Mapping[str, str]], Graph], before: Quality
    ) -> tuple[Mapping[str, str], Quality]:
        """Find the cheapest states that are good enough.

        Args:
            steps: The moves there are.
            layers: What each layer does alone.
            make: Gives a copy of the graph with its layers in some states.
            before: Quality of the states that the steps start from, which are not good enough.

        Returns:
            The states, and their quality. With `--force` the start, when nothing is good enough.

        Raises:
            GateError: nothing is.
        """
        last, known = before, dict[frozenset[tuple[str, str]], Quality | None]()

        def good(chosen: Sequence[Move]) -> bool:
            nonlocal last
            states = steps.states(chosen)
            key = frozenset(states.items())
            if key not in known:
                known[key] = self._look(make(states))
            found = known[key]
            last = found or last
            return found is not None and self.good(found)

        guess = 1 if self.min_sqnr is None else needed(layers, steps, 10 ** (-self.min_sqnr / 10))
        chosen = shortest(steps.moves, good, guess) if steps.moves else None
        if chosen is None:
            return steps.states(), self.refuse(last, layers)
        states = steps.states(chosen)
        quality = known[frozenset(states.items())]
        assert quality is not None
        return states, quality

    def _look(self, graph: Graph) -> Quality | None:
        """Examine a copy on all data; `None` where few samples show already that it will not do."""
        if self.min_sqnr is not None and not self.examiner.quick_is_full:
            if self.trials.quick(graph).sqnr_db < self.min_sqnr - _QUICK:
                return None
        return self.trials.full(graph)

    def refuse(self, reached: Quality, layers: Sequence[Layer]) -> Quality:
        """Give up, or with `--force` only say so.

        Raises:
            GateError: saying what was asked for, what was reached, and which layers cost most.
        """
        wanted, got = [], []
        if self.min_sqnr is not None:
            wanted.append(f"{self.min_sqnr:g} dB")
            got.append(f"{reached.sqnr_db:.1f} dB")
        if self.max_loss is not None:
            wanted.append(f"a loss of {self.max_loss:g}")
            got.append(f"a loss of {self.loss(reached):.4g}")
        worst = sorted(layers, key=lambda layer: -layer.worst)[:3]
        names = ", ".join(f"{la.name} ({decibels(la.worst):.1f} dB alone)" for la in worst)
        costs = f"; what costs most: {names}" if names else ""
        message = f"{' and '.join(wanted)} was asked for, {' and '.join(got)} was reached{costs}."
        if not self.context.force:
            hint = "Leave --no-fallback out, so that such layers stay in float." if not self.fallback else ""
            raise GateError(message, hint=hint or "Ask for less, or use --force.")
        self.context.warnings.append(f"{message} Written all the same (--force).")
        return reached

    def reached(self, quality: Quality, setting: str) -> dict[str, object]:
        """What came of it, for the report."""
        found: dict[str, object] = {"sqnr_db": quality.sqnr_db, "samples": quality.samples, "setting": setting}
        if quality.metric is not None:
            found |= {"metric_before": self.examiner.metric, "metric": quality.metric}
        return found


def made_up(graph: Graph, path: Path, context: Context, count: int) -> list[dict[str, Any]]:
    """Make up feeds for a graph that was written to a file, at the extents of the compile if it runs with them.

    Raises:
        InputError: no inputs were found on which it runs.
    """
    classes, evaluator = InputMaker(graph).classes, Evaluator(path)
    dims = {name: extent for name, extent in context.dims.items() if name in classes}
    if dims:
        try:
            return [found.feed for found in find_feeds(graph, evaluator, count=count, dims=dims)]
        except InputError:
            pass
    return [found.feed for found in find_feeds(graph, evaluator, count=count)]
