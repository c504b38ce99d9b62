"""The data of one compile, and the extents that it implies."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.ir.dims import Sym
from memoptc.options import Options
from memoptc.pass_base import Searched
from memoptc.runtime.data import Data
from memoptc.runtime.design_points import DesignPoints, design_points, effort, smaller_points
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.held_out import SHARE, Part, can_hold_out
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.memory.observed import Observation, unsized_values
from memoptc.runtime.metric import Metric, load_metric
from memoptc.runtime.options import RunOptions
from memoptc.runtime.perplexity import Completed
from memoptc.runtime.spool import trim
from memoptc.runtime.trials import Trial, trial_runs
from memoptc.source import Source

_LARGER = 8.0
"""How often a run at larger extents may take what is affordable: a gigabyte, or some seconds."""
_PATIENCE = 10.0
"""Seconds after which no more inputs are tried where the compile goes on without: at chosen sizes, for observation."""
_RUN_SECONDS = 8.0
"""Time of processors after which a run at chosen sizes is broken off and smaller ones are taken: several times what is
meant to be affordable, for models whose tensors inside have sizes that are not known ahead."""
_PATIENCE_PART = 0.05
"""The same as a part of the time limit, where that is less."""


class Inputs:
    """The data of one compile: what to calibrate and verify with, and the extents it implies.

    Extents that neither the caller nor the data decide are chosen (`memoptc.runtime.design_points`): large ones to plan
    for, and affordable ones to run both models at.

    Args:
        source: The original.
        options: The options in force.
        seconds: Time limit of the compile.

    Raises:
        InputError: the data does not fit the model, or `dims` names no dimension of it.
    """

    def __init__(self, source: Source, options: Options, seconds: float = math.inf) -> None:
        graph = source.graph
        types = {v.name: v.type for v in graph.inputs}
        optional = [v.name for v in graph.defaults]
        self._source = source
        self._patience = min(_PATIENCE, _PATIENCE_PART * seconds)
        self.searched: dict[str, Searched] = {}
        """What searches did in earlier attempts."""
        self._asked = dict(options.dims) | dict(options.freeze)
        self._loaded: tuple[Evaluator, Trial] | None = None

        def samples(given: Any) -> Data | None:
            return None if given is None else Data(given, types, optional, Completed(graph))

        calibration, self.raw = _plain_path(options.calibration), _plain_path(options.validation)
        self.calibration: Data | None = samples(calibration)
        self.validation: Data | None = samples(self.raw)
        self.kind = "validation"
        self.warnings: list[str] = []
        """What the user must know of the data."""
        if self.calibration is not None and self.validation is None:
            self._hold_out(calibration, self.calibration)
        self.first: dict[str, Any] | None = None
        for data in (self.calibration, self.validation):
            if data is not None:
                self.first = next(iter(data)).feed
        self.points: DesignPoints | None = None
        if self.first is None:
            self.points = design_points(graph, self._asked)
        runs = options.measure or options.verify != "off"
        with self._one_original() if self.points is not None and runs else contextlib.nullcontext():
            if self.points is not None and runs:
                self._settle(graph, self.points)
            self.dims = dict(self.points.plan) if self.points is not None else self._extents(graph, runs)

    def _hold_out(self, raw: Any, data: Data) -> None:
        """Verify with samples that nothing is calibrated on, where there are enough."""
        if can_hold_out(data):
            held_out = Part(data, held_out=True)
            self.calibration, self.validation = Part(data, held_out=False), held_out
            self.raw, self.kind = held_out.feeds, "held-out"
            return
        self.raw, self.validation, self.kind = raw, data, "calibration"
        self.warnings.append(
            f"Fewer than {SHARE} samples: none was held out, so the numbers were verified on the calibration data. "
            "Give more, or --validation."
        )

    def metric(self, options: Options) -> Metric | None:
        """Metric that passes measure accuracy with: none where nobody says how much of it may be lost."""
        if options.metric is None or options.max_accuracy_loss is None:
            return None
        return load_metric(options.metric, self._source.graph)

    @property
    def check(self) -> Mapping[str, int] | None:
        """Extents chosen to run both models at; `None` where the caller or the data decide."""
        return None if self.points is None else self.points.check

    @property
    def small(self) -> Mapping[str, int] | None:
        """The smallest extents to expect, where neither the caller nor the data decide and they are known."""
        return None if self.points is None else self.points.small

    def _settle(self, graph: Graph, wanted: DesignPoints) -> None:
        """Take smaller points until the original runs on made-up inputs there, and say so where it takes that."""
        smaller = smaller_points(graph, self._asked, wanted)
        until = time.process_time() + 3 * self._patience
        while self.points is not None and not self._runs():
            self.points = next(smaller, None) if time.process_time() < until else None
        if self.points is wanted:
            return
        at = ", ".join(f"{name}={wanted.check[name]}" for name in wanted.chosen)
        what = f"at most at {self.points}" if self.points is not None else "only at the smallest sizes"
        self.warnings.append(
            f"No made-up inputs were found on which the original runs, in a few seconds, at {at} in the memory that is "
            f"free, so it is planned and verified {what}. "
            "Give real inputs with --validation, or say sizes that suit it with --dim."
        )

    def _runs(self) -> bool:
        """True if the original runs at the chosen extents: what operators require is not all that can be wrong."""
        try:
            return bool(self.feed)
        except InputError:
            return False

    def _extents(self, graph: Graph, runs: bool) -> dict[str, int]:
        """Extents for planning: asked for, else those of the data or of inputs on which it runs, else likely ones."""
        maker = InputMaker(graph, self._asked)
        found = next(maker.bindings(), {})
        if runs and self.first is None and maker.is_dynamic:
            found |= bind_shapes(graph, self.feed)
        for value in graph.inputs:
            array = (self.first or {}).get(value.name)
            if array is not None and value.shape is not None:
                for dim, extent in zip(value.shape, array.shape, strict=False):
                    if isinstance(dim, Sym) and dim.name is not None:
                        found[dim.name] = int(extent)
        return found | self._asked

    @cached_property
    def feed(self) -> dict[str, Any]:
        """One feed to measure with: at the extents asked for or chosen, else the first of the data."""
        if self.first is not None and not self._asked:
            return self.first
        dims = self._asked | dict(self.check or {})
        seconds, run = (self._patience, _RUN_SECONDS) if self.check is not None else (math.inf, math.inf)
        return self._made_up(dims, seconds, run)

    def _made_up(self, dims: Mapping[str, int] | None, seconds: float, run: float = math.inf) -> dict[str, Any]:
        """Make up a feed on which the original runs."""
        with self._one_original() as (original, trial):
            graph = self._source.graph
            found = find_feeds(graph, original, count=1, dims=dims, seconds=seconds, cpu_seconds=run, trial=trial)
            return found[0].feed

    @contextlib.contextmanager
    def _one_original(self) -> Iterator[tuple[Evaluator, Trial]]:
        """Load the original, once for all feeds that are made up meanwhile; it holds no more than is alive."""
        if self._loaded is not None:
            yield self._loaded
            return
        original = Evaluator(self._source.path, RunOptions(arena=False, mem_pattern=False), label="the original")
        try:
            with trial_runs(InputMaker(self._source.graph).typed, original) as trial:
                self._loaded = original, trial
                yield self._loaded
        finally:
            self._loaded = None
            del original
            trim(collect=False)

    def observe(self, graph: Graph) -> str:
        """Note sizes that inference leaves open as runs of the original show them; says how many, or why not.

        The original is run at the size to check at and at a likely one, once per compile; a run that fails is no fault.
        """
        if not unsized_values(graph, [self.dims]):
            return ""
        try:
            return self._observation.apply(graph)
        except MemoptcError as error:
            return f"Sizes that are not known were not observed: {error.message}"

    @cached_property
    def _observation(self) -> Observation:
        graph = self._source.graph
        with self._one_original():
            feeds = [self.feed]
            if self.first is not None or self._asked or self.check:  # else that is one at likely sizes
                with contextlib.suppress(InputError):
                    feeds.append(self._made_up(None, self._patience, _RUN_SECONDS))
        return Observation(self._source.path, feeds, [bind_shapes(graph, feed) for feed in feeds])

    def timed(self) -> list[dict[str, Any]]:
        """Feeds to time choices of how to run with, the commonest first.

        For a decoder that is one step behind `feed`: as many runs as a text has tokens. For other models it is `feed`,
        then one of four times its extents where nobody decided them and a run at those is affordable.
        """
        if self.step is not None:
            return [self.step, self.feed]
        graph = self._source.graph
        extents = bind_shapes(graph, self.feed)
        wanted = {name: 4 * extent for name, extent in extents.items() if name not in self._asked}
        return [self.feed, *(self._at(InputMaker(graph, self._asked), wanted, _LARGER) if wanted else ())]

    @cached_property
    def step(self) -> dict[str, Any] | None:
        """One decoding step behind `feed`; `None` for others, and where the sizes asked for leave none."""
        graph = self._source.graph
        maker, extents = InputMaker(graph, self._asked), bind_shapes(graph, self.feed)
        kinds = {name: kind for name, (kind, _) in maker.classes.items()}
        past, fresh = ([n for n in extents if kinds.get(n) == kind] for kind in ("past", "sequence"))
        if not past or not fresh:
            return None
        before = max(extents[n] for n in (*past, *fresh))
        wanted = {**extents, **dict.fromkeys(past, before), **dict.fromkeys(fresh, 1)}
        return next(iter(self._at(maker, wanted)), None)

    @staticmethod
    def _at(maker: InputMaker, wanted: Mapping[str, int], most: float = math.inf) -> list[dict[str, Any]]:
        """A feed of the extents wanted, as far as they agree; none where it cannot be made up, or takes too much."""
        try:
            found = maker.consistent(wanted)
            if found is None or (most < math.inf and effort(maker, found) > most):
                return []
            return [maker.make(found)]
        except InputError:
            return []


def _plain_path(data: Any) -> Any:
    return os.fspath(data) if isinstance(data, os.PathLike) else data
