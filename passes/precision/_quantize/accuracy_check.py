"""Accuracy target of a quantized model, and whether a candidate meets it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.candidates import CandidateEvaluator
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.observe import pool_of
from memoptc.passes.precision._quantize.tradeoff import GIVE_BACK, Ladder, Layer, StateChange, needed, shortest
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.held_out import FollowedBy
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.metric import top1
from memoptc.runtime.prefixes import rows_enough
from memoptc.runtime.quality import Examiner, Quality, decibels
from memoptc.runtime.result_cache import ResultCache, fingerprint

MADE_UP = 6
"""Feeds to make up where there is no data to measure with."""

STRICTER = 10.0
"""Decibels by which more is asked for, at most, where a model fails its proof on other data: a third of the error."""

_BESIDE_MISSING = 1.0
"""Decibels by which more is asked for than was missing in the proof."""

_EXAMINED = 4
"""How many choices are examined on all data."""

_States: TypeAlias = frozenset[tuple[str, LayerPrecision]]

_QUICK = 1.0
"""Decibels by which a quick look may miss what is asked for."""


_UNSEEN = 200
"""How many of those held out two forms are compared on."""

_FEW, _BESIDE = 16, 16
"""Validation samples below which they alone say little, and how many of the calibration are looked at then."""


def further(missing: float | None) -> float:
    """Give the decibels by which more is asked of a search whose model failed its proof.

    The worst layers alone then get more bits: the search ended above what it was asked, and as much as is missing on
    the proof's data has to come on top of that.

    Args:
        missing: Decibels that the model lacked there; `None` where that is not known.
    """
    return STRICTER if missing is None else min(missing + _BESIDE_MISSING, STRICTER)


class AccuracyCheck:
    """Holds copies of a graph against it: on validation data, else on that of the calibration, else on made-up inputs.

    Fewer than 16 validation samples say little: the data of the calibration is looked at, too.

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
        both = context.validation is not None and context.calibration not in (None, context.validation)
        held_out = context.validation if context.validation is not None else ()
        self.few_held_out = sum(1 for _ in islice(held_out, _FEW)) < _FEW
        """Whether few samples are held out, or none, so that what others reach is hardly known."""
        if metric is None and both:
            data = FollowedBy(context.validation, context.calibration, _BESIDE if self.few_held_out else 0)
        self.made_up = data is None
        if data is None:
            data = [Sample(feed, None, "made up") for feed in made_up(graph, path, context, MADE_UP)]
        self.examiner = Examiner(path, data if self.made_up else rows_enough(data, graph), metric)
        self.trials = CandidateEvaluator(self.examiner, pool)
        if context.checkpoint is not None:
            named = getattr(metric, "__qualname__", type(metric).__name__)
            about = ResultCache.key(pool.digest(graph), fingerprint(data), named, self.examiner.metric)
            self.trials = CandidateEvaluator(self.examiner, pool, ResultCache(context.checkpoint), about)

    def good(self, quality: Quality, margin: float = 0.0) -> bool:
        """True if what was asked for is met, with so many decibels to spare."""
        return AccuracyTarget(self.min_sqnr, self.max_loss).met_by(quality, self.examiner.metric, margin)

    def loss(self, quality: Quality) -> float:
        """Loss of the metric."""
        assert quality.metric is not None
        assert self.examiner.metric is not None
        return self.examiner.metric - quality.metric

    def choose(
        self,
        steps: Ladder,
        layers: Sequence[Layer],
        make: Callable[[Assignment], Graph],
        before: Quality,
        give_back: int = GIVE_BACK,
        looks: int | None = None,
    ) -> tuple[Assignment, Quality]:
        """Find the cheapest states that are good enough.

        Args:
            steps: The moves there are.
            layers: What each layer does alone.
            make: Gives a copy of the graph with its layers in some states.
            before: Quality of the states that the steps start from, which are not good enough.
            give_back: Moves that are tried to take back at the end.
            looks: How many candidates are measured, about; any number when not given.

        Returns:
            The states, and their quality. With `--force` the start, when nothing is good enough.

        Raises:
            GateError: nothing is.
        """
        quickly = self.min_sqnr is not None and self.max_loss is None and not self.examiner.quick_is_full
        last, known, exact = before, dict[_States, Quality](), dict[_States, Quality]()
        margin, number = 0.0, 0

        def good(chosen: Sequence[StateChange]) -> bool:
            nonlocal last, number
            states = steps.states(chosen)
            key = frozenset(states.items())
            if key in exact:
                return self.good(exact[key])
            if key not in known:
                number += 1
                self.context.say(f"which layers, look {number}")
                known[key] = self.trials.quick(make(states)) if quickly else self.look(make(states))
            last = known[key] if not quickly else last
            return self.good(known[key], margin)

        guess = 1 if self.min_sqnr is None else needed(layers, steps, 10 ** (-self.min_sqnr / 10))
        for _ in range(_EXAMINED):
            chosen = shortest(steps.moves, good, guess, give_back, looks) if steps.moves else None
            if chosen is None:
                break
            states = steps.states(chosen)
            key = frozenset(states.items())
            if not quickly:
                return states, known[key]
            last = exact[key] = self.trials.full(make(states))
            if self.good(last):
                return states, last
            # what all samples say is less than few of them did: ask as much more of these
            margin = max(margin, known[key].sqnr_db - last.sqnr_db, 0.0) + _QUICK / 4
            guess, give_back = len(chosen) + 1, 0
        states = steps.states(steps.moves)
        last = self.trials.full(make(states)) if quickly and steps.moves else last
        return (states, last) if self.good(last) else (steps.states(), self.refuse(last, layers))

    def look(self, graph: Graph) -> Quality:
        """Examine a copy on all data, or on few samples where these show already that it will not do."""
        if self.min_sqnr is not None and self.max_loss is None and not self.examiner.quick_is_full:
            quality = self.trials.quick(graph)
            if quality.sqnr_db < self.min_sqnr - _QUICK:
                return quality
        return self.trials.full(graph)

    def unseen(self, graph: Graph) -> Quality:
        """Compare a copy on samples that nothing was chosen from: those held out where there are any, else on all."""
        held_out = self.context.validation
        if held_out is None:
            return self.look(graph)
        return self.trials.first(graph, sum(1 for _ in islice(held_out, _UNSEEN)))

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
        doubt = "" if self.max_loss is None or reached.hits is None else reached.hits.doubt(self.max_loss)
        worst = sorted(layers, key=lambda layer: -layer.worst)[:3]
        names = ", ".join(f"{la.name} ({decibels(la.worst):.1f} dB alone)" for la in worst)
        costs = f"; what costs most: {names}" if names else ""
        costs += f"; {doubt}" if doubt else ""
        message = f"{' and '.join(wanted)} was asked for, {' and '.join(got)} was reached{costs}."
        if not self.context.force:
            hint = "Leave --no-fallback out, so that such layers stay in float." if not self.fallback else ""
            raise GateError(message, hint=hint or "Ask for less, or use --force.")
        self.context.warnings.append(f"{message} Written all the same (--force).")
        return reached

    def reached(self, quality: Quality, setting: str) -> dict[str, object]:
        """Outcome, for the report."""
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
    dims = {name: extent for name, extent in context.run_dims.items() if name in classes}
    if dims:
        try:
            return [found.feed for found in find_feeds(graph, evaluator, count=count, dims=dims)]
        except InputError:
            pass
    return [found.feed for found in find_feeds(graph, evaluator, count=count)]
