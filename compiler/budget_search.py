"""Reaching a budget of the whole process, and spending it: less for activations until it fits, more where that is fast.

A first attempt takes what memory costs no time to save. One that does not fit gets budgets for its activations, smaller
and smaller. One that fits with room to spare, and is slower than its level accepts, gets larger ones: memory that was
granted is there to be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from memoptc.attempts import Attempt, Attempts
from memoptc.forms import loads_beside
from memoptc.ir.form_names import FormName
from memoptc.measuring import Bench
from memoptc.options import Options
from memoptc.pipeline import Pipeline
from memoptc.process_budget import MATTERS, Held, estimate_of
from memoptc.report.rows import size
from memoptc.steps import run

ROUNDS = 4
"""Pipelines with a budget of activations that are tried: what a process takes besides is only known afterwards."""

LESS = 0.9
"""Share of the last budget of activations that the next one is, at most."""

UNUSED = 0.15
"""Part of a budget that a slow result may leave unused."""

FASTER = 0.95
"""Ratio of latencies from which on an attempt counts as faster than another one."""


def slowdown_where_slow(attempt: Attempt, way: str, bench: Bench) -> float | None:
    """Time an attempt in one way of running: its latency over the original's, `None` where that is within the bound.

    Args:
        attempt: Measured for need.
        way: `stock` or `session`.
        bench: With the bound.
    """
    assert attempt.needs is not None
    times = bench.times(attempt.path, attempt.compiled.interface.encode(bench.feed), attempt.needs)
    side = times.session if way == "session" and times.session is not None else times.after
    slowdown = times.slowdown_of(side)
    return slowdown.ratio if slowdown.breaks(bench.bound) else None


def search_budget(
    attempts: Attempts,
    first: Attempt,
    needs: Callable[[Attempt], Held],
    slow: Callable[[Attempt, str], float | None] = lambda attempt, way: None,
) -> Attempt:
    """Give an attempt whose process fits its budget; where none does, the one that came nearest.

    Ends: at most one attempt with weights outside, `ROUNDS` with other budgets for activations, and the best again.

    Args:
        attempts: Makes attempts; its options carry the budget.
        first: The first one.
        needs: Tells what an attempt needs.
        slow: Tells how slow an attempt is in a way of running; `None` where it is as fast as its level promises.
    """
    budget = attempts.compilation.options.budget.process
    return first if budget is None else _Search(attempts, budget, needs, slow).run(first)


@dataclass(frozen=True)
class _Tried:
    """Figures of an attempt, whose graph and files are gone once the next one is made."""

    pipeline: Pipeline
    form: FormName
    given: float
    """Budget of its activations; infinite where there was none."""
    planned: int
    need: int
    share: float
    """What its activations must, or may, be multiplied by for the process to take its whole budget."""
    activations: int
    slowdown: float | None

    @property
    def activation_goal(self) -> float:
        """Activations with which the process would take its whole budget, as far as this attempt can tell."""
        return self.planned * self.share


@dataclass
class _Search:
    attempts: Attempts
    budget: int
    needs: Callable[[Attempt], Held]
    slow: Callable[[Attempt, str], float | None]
    tried: list[_Tried] = field(default_factory=list)

    def run(self, attempt: Attempt) -> Attempt:
        self._note(attempt, math.inf)
        compilation = self.attempts.compilation
        inside = compilation.options.external == "auto" and not attempt.choice.form.external
        if not self._fitting and inside and loads_beside(attempt.graph, compilation.options):
            compilation = replace(compilation, options=replace(compilation.options, external="always"))
            self.attempts.compilation = compilation
            attempt = self.attempts.build(attempt.pipeline)
            self.tried.clear()
            self._note(attempt, math.inf)
        for _ in range(ROUNDS if compilation.options.passes is None else 0):
            given = self._next()
            allowance = self.attempts.allowance
            if given is None or allowance.is_late("other budgets of activations", needs=allowance.attempt):
                break
            compilation.options.progress(f"fitting activations into {size(int(given))}", None)
            asked = self._options_for(given)
            attempt = self.attempts.build(run.pipeline_of(compilation, asked))
            self._note(attempt, given)
        best = self._best()
        if best is not self.tried[-1]:
            attempt = self.attempts.build(best.pipeline, form=best.form)
        level = compilation.options.level
        if best.given < math.inf and self._options_for(best.given).level > level:
            attempt.warnings.append(
                f"The budget took the passes of -O2; -O{level} has none that make activations smaller. What "
                f"-O{level} promises of the outputs is held all the same."
            )
        return attempt

    def _options_for(self, given: float) -> Options:
        options = self.attempts.compilation.options
        most = max(int(min(given, options.budget.activations or math.inf)), 1)
        return replace(options, level=max(options.level, 2), memory_budget=f"activations={most}", run_with=None)

    def _note(self, attempt: Attempt, given: float) -> None:
        found, planned = self.needs(attempt), attempt.written.planned_peak_bytes or 0
        estimate = estimate_of(found, attempt)
        activations = min(found.need, estimate.activations_bytes + estimate.workspace_bytes)
        # Sessions hold more than the plan, by a factor of their own.
        share = 1 - (found.need - self.budget) / activations if activations else 0.0
        roomy = found.need < self.budget * (1 - UNUSED)
        compared = roomy or (found.need <= self.budget and self._fitting)
        slowdown = self.slow(attempt, found.way) if compared else None
        form = attempt.choice.form.name
        tried = _Tried(attempt.pipeline, form, given, planned, found.need, share, activations, slowdown)
        self.tried.append(tried)

    @property
    def _fitting(self) -> list[_Tried]:
        return [t for t in self.tried if t.need <= self.budget]

    def _next(self) -> float | None:
        """Bytes that activations are to get next; `None` where nothing is to be gained."""
        return self._more() if self._fitting else self._less()

    def _more(self) -> float | None:
        """More than what fits takes, less than what did not fit: where memory is left and the result is slow."""
        latest = self.tried[-1]
        if latest.need <= self.budget and latest.slowdown is None:
            return None
        before = [t.slowdown for t in self._fitting if t is not latest and t.slowdown is not None]
        if latest.slowdown is not None and before and latest.slowdown > FASTER * min(before):
            return None
        largest = max(self._fitting, key=lambda t: t.planned)
        too_much = min((t.planned for t in self.tried if t.need > self.budget), default=math.inf)
        given = (
            largest.activation_goal
            if too_much == math.inf
            else min(largest.activation_goal, (largest.planned + too_much) / 2)
        )
        return given if given * LESS > largest.planned and largest.slowdown is not None else None

    def _less(self) -> float | None:
        """Less than what did not fit; once as little as can be, so that a refusal can say how far down it goes."""
        latest, least = self.tried[-1], min(t.need for t in self.tried)
        if latest.need > least / LESS or latest.given <= 1:
            return None
        given = min(latest.given * LESS, latest.activation_goal)
        if given >= 1:
            return given
        return 1 if latest.activations > MATTERS * latest.need else None

    def _best(self) -> _Tried:
        """Of those that fit the fastest, and of equally fast ones the smallest; where none fits, the smallest."""
        fitting = self._fitting
        if not fitting:
            return min(self.tried, key=lambda t: t.need)
        fastest = min(t.slowdown or 1.0 for t in fitting)
        return min((t for t in fitting if (t.slowdown or 1.0) * FASTER <= fastest), key=lambda t: t.need)
