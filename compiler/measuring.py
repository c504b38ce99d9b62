"""Measuring both models of a compile: need and latency, in stock onnxruntime and in Session."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from memoptc.ir.diagnostics import InputError
from memoptc.options import ProgressCallback
from memoptc.report import Report, Side
from memoptc.runtime.container import Unavailable, smallest_container
from memoptc.runtime.measure import Measured, Need, measure, measure_need, side_by_side
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.options import Feed, RunOptions
from memoptc.runtime.sizes import grown
from memoptc.runtime.slowdown import Slowdown

_PLANNED_SECONDS = 2.0
"""Seconds that timing the tier `planned` against the original may take."""

_CALLING_SECONDS = 2.0
"""Seconds that timing a call of `Session` may take."""

MOST_CALLING_MS = 0.1
"""Milliseconds that a call of `Session` is granted at most: what it takes beyond is the model's latency."""

_STEP_SECONDS = 5.0
"""Seconds that timing a decoding step may take."""

_CONTAINER_SECONDS = 90.0
"""Seconds that looking for one container may take."""

_NEAR = 1.1
"""Up to this ratio a need above the bound is measured again, before anything is taken back for it."""

_REMEASURED = "measuring again what is near a bound"
_RETIMED = "timing again what is near a bound"
_REPEATS = 2
"""Further fresh processes then, of each model; the one in the middle counts."""


Sizes: TypeAlias = tuple[int, int | None]
"""Bytes needed in stock onnxruntime, and in `Session`; `None` where that is not known."""


@dataclass(frozen=True)
class Needs:
    """Measured need of one model in stock onnxruntime, and in `Session` by default; `None` if it does not run there."""

    stock: Need
    session: Need | None

    @property
    def sizes(self) -> Sizes:
        """The bytes needed."""
        return self.stock.need_bytes, None if self.session is None else self.session.need_bytes


@dataclass(frozen=True)
class Times:
    """Original and candidate in stock onnxruntime, and the candidate in `Session`, timed in turns.

    Args:
        before: The original.
        after: The candidate.
        session: The candidate in `Session`, if it runs there.
        calling_ms: What a call of `Session` takes more than one of onnxruntime, whatever the model; 0 where it decides
            nothing.
        step: Both in stock onnxruntime at a decoding step; `None` for what is no decoder.
        beside: The original in the turns of the candidate in `Session`, where these were other ones.
    """

    before: Measured
    after: Measured
    session: Measured | None
    calling_ms: float = 0.0
    step: Times | None = None
    beside: Measured | None = None

    def control_of(self, side: Measured) -> Measured:
        """Give the original as it was timed in turns with the candidate, run in one of the two ways."""
        return self.beside if self.beside is not None and side is self.session else self.before

    def slowdown_of(self, side: Measured) -> Slowdown:
        """Compare the candidate, run in one of the two ways, with the original in stock onnxruntime."""
        return Slowdown.of(self.control_of(side).turns_ms, side.turns_ms)


@dataclass
class Containers:
    """Limits in bytes of the smallest containers that the models run in; `None` where none was found.

    Args:
        original: The original, in stock onnxruntime.
        candidate: The candidate, in stock onnxruntime.
        session: The candidate in `Session`.
        problem: Why some were not looked for, such as a kernel that sets no limits; `""` when all were.
    """

    original: int | None = None
    candidate: int | None = None
    session: int | None = None
    problem: str = ""


@dataclass
class Bench:
    """Measures candidates against one original, which is measured once.

    Args:
        original: Its path.
        feed: What it is run with.
        threads: Intra-op threads; 0 leaves the choice to onnxruntime.
        bound: Slowdown that candidates are held to, in every way to run them; more turns are taken until they decide.
        step: A decoding step to time, too: most runs of a decoder are such.
        late: Whether the compile's time is over for something, which is noted as left out then.
    """

    original: Path
    feed: Feed
    threads: int
    bound: float
    step: Feed | None = None
    late: Callable[[str], bool] = lambda what: False
    _beside: Needs | None = field(default=None, init=False)
    """What the candidate needs that was measured directly after or before the original."""

    @cached_property
    def before(self) -> Needs:
        """Measured need of the original."""
        return self._needs(self.original, self.feed)

    def held_to(self, bound: float) -> Bench:
        """Copy with another bound, which keeps what was measured of the original."""
        other = replace(self, bound=bound)
        other.before = self.before
        return other

    def needs(self, path: Path, feed: Feed) -> Needs:
        """Measure what a candidate needs; what exceeds the original's by little is measured again, both of them.

        Raises:
            InputError: onnxruntime does not run it.
        """
        before = self.__dict__.get("before")
        found = self._needs(path, feed)
        if self._close(self.before.stock, found.stock) and not self.late(_REMEASURED):
            stock = RunOptions(threads=self.threads)
            self.before = Needs(self._usual(self.before.stock, self.original, self.feed, stock), self.before.session)
            found = Needs(self._usual(found.stock, path, feed, stock), found.session)
        found = self._usual_in_session(found, path, feed)
        self._beside = None if before is not None else found
        return found

    def needs_in_session(self, path: Path, feed: Feed, needs: Needs) -> Needs:
        """Measure what a candidate needs in `Session` anew, which runs it in another tier now; stock's need stays.

        Raises:
            InputError: `Session` does not run it.
        """
        found = Needs(needs.stock, measure_need(path, feed, options=self._way()))
        return self._usual_in_session(found, path, feed)

    def _usual_in_session(self, found: Needs, path: Path, feed: Feed) -> Needs:
        """Measure the need in `Session` again where it exceeds the original's by little."""
        if found.session is not None and self.before.session is not None:
            limit = max(self.before.stock, self.before.session, key=lambda n: n.need_bytes)
            if self._close(limit, found.session) and not self.late(_REMEASURED):
                way = self._way()
                session = self._usual(self.before.session, self.original, self.feed, way)
                self.before = Needs(self.before.stock, session)
                found = Needs(found.stock, self._usual(found.session, path, feed, way))
        return found

    def _needs(self, path: Path, feed: Feed) -> Needs:
        stock = measure_need(path, feed, options=RunOptions(threads=self.threads))
        try:
            return Needs(stock, measure_need(path, feed, options=self._way()))
        except InputError:  # what runs there are tensors
            return Needs(stock, None)

    @staticmethod
    def _close(before: Need, after: Need) -> bool:
        return grown(before.need_bytes, after.need_bytes) and after.need_bytes < _NEAR * before.need_bytes

    def _usual(self, first: Need, path: Path, feed: Feed, way: Way) -> Need:
        """The middle of three: with the same model, one process in some needs a tenth less."""
        again = [measure_need(path, feed, options=way) for _ in range(_REPEATS)]
        return sorted([first, *again], key=lambda n: n.need_bytes)[1]

    def largest(self, path: Path, feed: Feed, needs: Needs, budget: int) -> Sizes:
        """Give what a candidate needs at most: where a need is near its budget, in further processes, too.

        Args:
            path: The candidate.
            feed: What to run it with.
            needs: What it needed in one process.
            budget: Bytes that it may need.
        """

        def most(first: Need, way: Way) -> int:
            if not budget / _NEAR < first.need_bytes <= budget or self.late(_REMEASURED):
                return first.need_bytes
            return max(first.need_bytes, *(measure_need(path, feed, options=way).need_bytes for _ in range(_REPEATS)))

        session = None if needs.session is None else most(needs.session, self._way())
        return most(needs.stock, RunOptions(threads=self.threads)), session

    def times(self, path: Path, feed: Feed, needs: Needs) -> Times:
        """Time a candidate against the original.

        Args:
            path: The candidate.
            feed: What to run it with.
            needs: What it needs.
        """
        stock = RunOptions(threads=self.threads)
        paths, feeds, known = [self.original, path], [self.feed, feed], [self.before.stock, needs.stock]
        ways: list[Way] = [stock, stock]
        if needs.session is not None:
            paths, feeds, known = [*paths, path], [*feeds, feed], [*known, needs.session]
            ways.append(self._way())
        before, after, *others = measure(
            paths,
            feeds,
            options=ways,
            bound=self.bound,
            needs=known,
            just_now=needs is self._beside,
            ended=lambda: self.late(_RETIMED),
        )
        return self._granting_calls(Times(before, after, others[0] if others else None))

    def times_in_session(self, path: Path, feed: Feed, needs: Needs, times: Times) -> Times:
        """Time a candidate in `Session` anew, which runs it in another tier now; in stock onnxruntime it stays."""
        if needs.session is None:
            return replace(times, session=None, beside=None)
        before, session = measure(
            [self.original, path],
            [self.feed, feed],
            options=[RunOptions(threads=self.threads), self._way()],
            bound=self.bound,
            needs=[self.before.stock, needs.session],
            ended=lambda: self.late(_RETIMED),
        )
        return self._granting_calls(replace(times, session=session, beside=before, calling_ms=0.0))

    def _granting_calls(self, found: Times) -> Times:
        """Add what a call of `Session` takes with any model, where that may decide."""
        p50 = found.before.latency_ms["p50"]
        decides = found.session is not None and found.slowdown_of(found.session).ratio > self.bound
        if decides and not self.late(_REMEASURED) and (self.bound - 1) * p50 < MOST_CALLING_MS:
            return replace(found, calling_ms=self.calling_ms)
        return found

    @cached_property
    def calling_ms(self) -> float:
        """Milliseconds that a call of `Session` takes more than one of onnxruntime, with the original."""
        ways: list[Way] = [RunOptions(threads=self.threads), self._way()]
        needs = [self.before.stock, self.before.session or self.before.stock]
        stock, session = measure([self.original] * 2, self.feed, options=ways, seconds=_CALLING_SECONDS, needs=needs)
        more = (b - a for a, b in zip(stock.turns_ms, session.turns_ms, strict=True))
        return min(max(0.0, statistics.median(more)), MOST_CALLING_MS)

    def step_times(self, path: Path, step: Feed, needs: Needs) -> Times:
        """Time a candidate against the original at a decoding step, in stock onnxruntime."""
        assert self.step is not None
        before, after = measure(
            [self.original, path],
            [self.step, step],
            options=RunOptions(threads=self.threads),
            seconds=_STEP_SECONDS,
            bound=self.bound,
            needs=[self.before.stock, needs.stock],
        )
        return Times(before, after, None)

    def fill(self, report: Report, path: Path, feed: Feed, times: Times, containers: Containers) -> None:
        """Put the figures of a candidate, and the original's, into the report."""
        control, candidate = report.control, report.candidate
        before = self.before.session
        control.session = None if before is None else {before.tier: need_json(before, control)}
        control.measured = both_json(times.before, before, control) | {"container_bytes": containers.original}
        candidate.measured = both_json(times.after, times.session, candidate)
        candidate.measured["container_bytes"] = containers.candidate
        candidate.measured["slowdown"] = self._slowdown_json(times.before, times.after)
        if times.step is not None:
            control.measured["step_ms"] = times.step.before.latency_ms["p50"]
            candidate.measured["step_ms"] = times.step.after.latency_ms["p50"]
            candidate.measured["step_slowdown"] = self._slowdown_json(times.step.before, times.step.after)
        candidate.session = {}
        if times.session is not None:
            control_in_turns = times.control_of(times.session)
            slowdown = self._slowdown_json(control_in_turns, times.session) | {"calling_ms": times.calling_ms}
            figures = {"container_bytes": containers.session, "slowdown": slowdown}
            candidate.session[times.session.tier] = measured_json(times.session, candidate) | figures
        if "planned" not in candidate.session and (other := self._planned(path, feed, times)):
            first, found = other
            slowdown = self._slowdown_json(first, found)
            candidate.session[found.tier] = measured_json(found, candidate) | {"slowdown": slowdown}
        if containers.problem:
            report.warnings.append(f"No container was measured. {containers.problem}")

    def _slowdown_json(self, before: Measured, after: Measured) -> dict[str, float]:
        """Give the report's form, with the original's latency in the same turns and the bound that is promised."""
        slowdown = Slowdown.of(before.turns_ms, after.turns_ms)
        return {**vars(slowdown), "control_ms": before.latency_ms["p50"], "promised": self.bound}

    def containers(self, path: Path, feed: Feed, times: Times, progress: ProgressCallback) -> Containers:
        """Find the smallest containers: the original in stock onnxruntime, the candidate there and in `Session`."""

        def say(text: str) -> None:
            progress(f"container: trying {text}", 0.9)

        def smallest(model: Path, inputs: Feed, way: Way) -> int:
            return smallest_container(model, inputs, way=way, seconds=_CONTAINER_SECONDS, say=say).limit_bytes

        stock = RunOptions(threads=self.threads)
        found = Containers()
        if self.late("containers"):
            found.problem = "The time limit is over."
            return found
        try:
            found.original = smallest(self.original, self.feed, stock)
            found.candidate = smallest(path, feed, stock)
            if times.session is not None:
                found.session = smallest(path, feed, self._way())
        except Unavailable as problem:
            found.problem = problem.message
        return found

    def _planned(self, path: Path, feed: Feed, times: Times) -> tuple[Measured, Measured] | None:
        """Time the original and the tier `planned`; `None` without the C interface, or where what runs is no tensor.

        Nor for models that are loaded anew for each turn: nothing depends on what another tier than their own takes.
        """
        if not side_by_side([self.before.stock, times.after]) or self.late("timing the tier planned"):
            return None
        planned = self._way("planned")
        ways: list[Way] = [RunOptions(threads=self.threads), planned]
        try:
            needs = [self.before.stock, measure_need(path, feed, options=planned)]
            models, feeds = [self.original, path], [self.feed, feed]
            before, found = measure(models, feeds, options=ways, seconds=_PLANNED_SECONDS, needs=needs)
        except InputError:
            return None
        return before, found

    def _way(self, tier: str | None = None) -> InSession:
        return InSession(tier, {"threads": self.threads} if self.threads else {})


def need_json(found: Need, side: Side) -> dict[str, Any]:
    """Give the report's figures of a process, its parts included."""
    return {
        "need_bytes": found.need_bytes,
        "anonymous_bytes": found.anonymous_bytes,
        "parts": found.parts(side.planned_peak_bytes),
        "container_bytes": None,
        "load_peak_bytes": found.load_peak_bytes,
        "loaded_bytes": found.loaded_bytes,
        "run_peak_bytes": found.run_peak_bytes,
        "load_seconds": found.load_seconds,
        "memory_runs": found.memory_runs,
        "method": found.method,
    }


def measured_json(found: Measured, side: Side) -> dict[str, Any]:
    """Give the report's figures of a process with those of time."""
    times = {k: getattr(found, k) for k in ("latency_ms", "throughput_per_s", "runs")}
    return {**need_json(found, side), **times}


def both_json(stock: Measured, session: Need | None, side: Side) -> dict[str, Any]:
    """Give the report's `measured`: stock onnxruntime's figures, need and anonymous bytes of `Session` beside them."""
    found = measured_json(stock, side)
    for key in ("need_bytes", "anonymous_bytes"):
        found[key] = {"stock": found[key], "session": None if session is None else getattr(session, key)}
    return found
