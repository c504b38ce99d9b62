"""Measures memory of the whole process and latency: fresh processes, turns against each other."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from memoptc.ir.files import TemporaryFolder
from memoptc.runtime.measuring_process import InSession, Way, start_worker
from memoptc.runtime.npz import save_feed
from memoptc.runtime.options import STOCK, Feed, RunOptions
from memoptc.runtime.slowdown import TICK_MS, Slowdown

_ROUNDS = 9  # turns A B A B ...: enough for a median that one busy moment of the machine does not move
_DECIDING_ROUNDS = 5  # the fewest of which an interval holds the true slowdown as often as `_UNSURE` says
_TURN_SECONDS = 0.2  # then a turn takes about so long: many short turns tell more than few long ones
_SPREAD = 1.02  # what a slowdown in one process may differ from that in most
_TELLING_PROCESSES = 3  # the fewest whose slowdowns tell by how much these differ
_CERTAIN_PROCESSES = 5  # the fewest of whose slowdowns an interval holds the true one as often as `_UNSURE` says
_MOST_PROCESSES = 11  # of each model, until an interval leaves the bound that is asked about
_PATIENCE = 3.0  # times the seconds for runs: what that may take, loading included
_APART_ROUNDS = 5  # where each turn loads its model anew
_APART_DECIDING = 2  # the fewest of these after which it may be decided that a model is fast enough
_APART_SHARE = 2.0  # times the seconds for runs: what these turns may take, loading included
_MOST_RUNS = 100  # per turn
_TOGETHER = 256 << 20
"""Bytes that all models of one comparison may need together; larger ones are loaded one at a time."""

RUNS = 4
"""Runs that need is measured over: from the second on a default session allocates differently."""


@dataclass(frozen=True)
class Need:
    """Memory that a process needs for one model: bytes over those before the model is opened, to the end of the runs.

    Args:
        need_bytes: Highest resident bytes: loading, weights in every copy, activations, workspace, our own code.
        anonymous_bytes: Highest anonymous bytes: those that the kernel cannot evict; `None` where unknown. More than
            `need_bytes` where `Session` gave back more pages of onnxruntime's library than the model reads.
        load_peak_bytes: Highest resident bytes while loading.
        loaded_bytes: Resident bytes once loaded; negative where `Session` gave back pages that importing brought in.
        run_peak_bytes: Highest resident bytes during the runs, over the loaded model.
        ours_bytes: What importing `memoptc.runtime.session` took; 0 in plain onnxruntime.
        run_mapped_bytes: Mapped bytes that came in during the runs: weights and code read when first used.
        load_seconds: Time to load, imports not counted.
        memory_runs: Runs during which memory was watched.
        method: How memory was measured (see `memoptc.runtime.worker.PeakMeter`).
        tier: Tier of `memoptc.runtime.Session`; `""` for plain onnxruntime.
        warm_ms: Milliseconds of each of these runs but the first, which pays for reading weights.
    """

    need_bytes: int
    anonymous_bytes: int | None
    load_peak_bytes: int
    loaded_bytes: int
    run_peak_bytes: int
    ours_bytes: int
    run_mapped_bytes: int
    load_seconds: float
    memory_runs: int
    method: str
    tier: str
    warm_ms: tuple[float, ...] = ()

    def parts(self, activations: int | None = None) -> dict[str, int]:
        """Break `need_bytes` down; the parts add up to it.

        `weights` are those resident once loaded, in every copy, with the session's own structures, and mapped ones that
        runs read in; `activations` at most those planned, `workspace` the rest of what runs take (scratch of kernels
        that no plan knows, arenas larger than what is in them); `loading` is what loading takes beyond all of these,
        and gives back; `ours` is what importing `memoptc.runtime.session` takes.

        Args:
            activations: Bytes of activations planned for a run; all of what runs take when not known.
        """
        mapped = min(self.run_peak_bytes, self.run_mapped_bytes)
        kept = max(0, self.loaded_bytes + mapped)
        runs = max(0, min(self.need_bytes - kept, self.run_peak_bytes - mapped))
        ours = min(self.ours_bytes, kept)
        used = runs if activations is None else min(runs, activations)
        return {
            "loading": self.need_bytes - kept - runs,
            "weights": kept - ours,
            "activations": used,
            "workspace": runs - used,
            "ours": ours,
        }

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {k: v for k, v in self.__dict__.items() if k != "warm_ms"}


@dataclass(frozen=True, kw_only=True)
class Measured(Need):
    """Need and latency of one model.

    Args:
        latency_ms: `p50`, `p95`, `p99` of one run.
        throughput_per_s: Runs per second, one after the other.
        runs: Runs that were timed.
        turns_ms: Median of each turn; the turns of models that were measured together belong together. One for each
            process where several were timed.
    """

    latency_ms: dict[str, float]
    throughput_per_s: float
    runs: int
    turns_ms: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {k: v for k, v in super().to_json().items() if k != "turns_ms"}


def measure(
    models: Sequence[str | os.PathLike[str]],
    feed: Feed | Sequence[Feed],
    *,
    options: Way | Sequence[Way] = STOCK,
    seconds: float = 10.0,
    bound: float | None = None,
    needs: Sequence[Need] | None = None,
    just_now: bool = False,
    ended: Callable[[], bool] = lambda: False,
) -> list[Measured]:
    """Measure models against each other.

    Memory is measured first, in one fresh process per model: baseline, load, then four runs (fewer when they
    would take too long). For time all models are loaded in a process each and run in turns A B A B ..., so that
    a change of the machine's speed meets all of them; only one runs at a time. Models that need more than 256 MiB
    together are loaded anew for each turn, so that one at a time is in memory.

    A process is fast or slow for as long as it lives, by where its memory came to lie (Kalibera and Jones, Rigorous
    benchmarking in reasonable time, 2013). Where a `bound` is asked about, further processes are therefore timed as
    long as it is undecided whether the slowdown lies above it; each process then counts once.

    Args:
        models: Paths of the models, usually control and candidate.
        feed: The inputs: the same for all, or one per model.
        options: How to run: one for all, or one per model.
        seconds: About how long all timed runs together may take. Every model runs at least 3 times; at least 5 times
            where a `bound` is asked about and all models are loaded together.
        bound: Time more processes, for up to three times `seconds`, until it is decided that the slowdown of one other
            model against the first lies above the bound, or of none.
        needs: What `measure_need` gave for each of the cases, where that is known already.
        just_now: That was one after the other, just now: for models that are loaded anew for each turn, the runs that
            memory was watched in are the first turn.
        ended: Says that there is no time for more processes.

    Raises:
        InputError: a model cannot be loaded or run.
    """
    each = [options] * len(models) if isinstance(options, RunOptions | InSession) else list(options)
    with _feeds(models, feed) as files:
        cases = list(zip(models, each, files, strict=True))
        just_now = just_now or needs is None
        needs = [_need(*case, seconds) for case in cases] if needs is None else needs
        if not side_by_side(needs):
            first = [list(need.warm_ms) for need in needs] if just_now else []
            times, turns = _times_apart(cases, seconds, bound, ended, first)
        elif bound is None or len(cases) < 2:
            times = _times(cases, seconds, _ROUNDS)
            turns = _medians(times)
        else:
            times, turns = _times_in_processes(cases, seconds, bound, ended)
    return [_result(*one) for one in zip(needs, times, turns, strict=True)]


def side_by_side(needs: Sequence[Need]) -> bool:
    """True if models need so little that all are held loaded while they are timed against each other."""
    return sum(need.need_bytes for need in needs) <= _TOGETHER


def measure_need(
    model: str | os.PathLike[str], feed: Feed, *, options: Way = STOCK, seconds: float = 10.0, repeats: int = 1
) -> Need:
    """Measure what a process needs for a model, without timing it.

    Args:
        model: Its path.
        feed: The inputs.
        options: How to run it.
        seconds: About how long the runs may take.
        repeats: Fresh processes to measure in; the smallest need counts, since noise only adds.

    Raises:
        InputError: the model cannot be loaded or run.
    """
    with _feeds([model], feed) as (file,):
        found = [_need(model, options, file, seconds) for _ in range(repeats)]
    return min(found, key=lambda n: n.need_bytes)


def measure_need_up_to(
    model: str | os.PathLike[str], feed: Feed, most: int, *, options: Way = STOCK, seconds: float = 10.0
) -> Need | None:
    """Measure what a process needs for a model; `None` as soon as it turns out to be more than `most` bytes.

    Raises:
        InputError: the model cannot be loaded or run.
    """
    with _feeds([model], feed) as (file,), start_worker(model, options, file) as ask:
        found = ask(do="need", runs=RUNS, seconds=seconds, most=most)
    if "above" in found or found["need"] > most:
        return None
    return need_of(found)


@contextmanager
def _feeds(models: Sequence[Any], feed: Feed | Sequence[Feed]) -> Iterator[list[Path]]:
    """Give a file with inputs per model."""
    with TemporaryFolder("memoptc-measure-") as folder:
        feeds = [feed] if isinstance(feed, Mapping) else list(feed)
        files = [Path(folder) / f"feed{i}.npz" for i in range(len(feeds))]
        for file, content in zip(files, feeds, strict=True):
            save_feed(file, content)
        yield files * len(models) if len(files) == 1 else files


def _need(model: str | os.PathLike[str], options: Way, feed: Path, seconds: float) -> Need:
    with start_worker(model, options, feed) as ask:
        found = ask(do="need", runs=RUNS, seconds=seconds)
    return need_of(found)


def need_of(found: Mapping[str, Any]) -> Need:
    """Read what a worker's `need` says."""
    return Need(
        need_bytes=max(0, found["need"]),
        anonymous_bytes=found["anonymous"],
        load_peak_bytes=max(0, found["load_peak"]),
        loaded_bytes=min(found["loaded"], max(0, found["need"])),
        run_peak_bytes=max(0, found["peak"]),
        ours_bytes=found["ours"],
        run_mapped_bytes=found["mapped_in_runs"],
        load_seconds=found["load_seconds"],
        memory_runs=found["runs"],
        method=found["method"],
        tier=found["tier"],
        warm_ms=tuple(found["ms"][1:]),
    )


_Case: TypeAlias = tuple[str | os.PathLike[str], Way, Path]


_Times: TypeAlias = list[list[list[float]]]
"""Milliseconds of each run, by model and turn."""


def _times(
    cases: Sequence[_Case], seconds: float, most: int, fewest: int = 3, turn_seconds: float = math.inf
) -> _Times:
    """Take as many turns as fit into so many seconds, within these numbers; all models loaded."""
    with ExitStack() as stack:
        workers = [stack.enter_context(start_worker(*case)) for case in cases]
        for ask in workers:
            ask(do="load")
        warm = max(1e-6, sum(ask(do="time", runs=2)["ms"][-1] / 1e3 for ask in workers))
        rounds = max(fewest, min(most, int(seconds / warm)))
        count = max(1, min(_MOST_RUNS, int(min(seconds / rounds, turn_seconds) / warm)))
        found: _Times = [[] for _ in workers]
        for _ in range(rounds):
            for ask, turns in zip(workers, found, strict=True):
                turns.append(ask(do="time", runs=count)["ms"])
    return found


def _times_in_processes(
    cases: Sequence[_Case], seconds: float, bound: float, ended: Callable[[], bool]
) -> tuple[_Times, list[list[float]]]:
    """As `_times`, in further processes until these decide about the bound; and what they are compared by."""
    started = time.perf_counter()
    longest, parts = 0.0, list[_Times]()
    while True:
        begun = time.perf_counter()
        fewest = 3 if parts else _DECIDING_ROUNDS
        parts.append(_times(cases, seconds, _DECIDING_ROUNDS, fewest, _TURN_SECONDS * len(cases)))
        longest = max(longest, time.perf_counter() - begun)
        compared = _medians(parts[0]) if len(parts) == 1 else _one_each(parts)
        over = time.perf_counter() - started + longest > _PATIENCE * seconds
        if len(parts) >= _MOST_PROCESSES or _is_decided(compared, bound, len(parts)) or over or ended():
            return [[turn for part in parts for turn in part[i]] for i in range(len(cases))], compared


def _medians(times: _Times) -> list[list[float]]:
    return [[statistics.median(turn) for turn in turns] for turns in times]


def _one_each(parts: Sequence[_Times]) -> list[list[float]]:
    """One figure for each process: the first model's median, and of the others as much more as their slowdown says."""
    medians = [_medians(part) for part in parts]
    first = [statistics.median(before) for before, *_ in medians]
    others = [
        [ms * Slowdown.of(turns[0], turns[i]).ratio for ms, turns in zip(first, medians, strict=True)]
        for i in range(1, len(medians[0]))
    ]
    return [first, *others]


def _is_decided(turns: Sequence[Sequence[float]], bound: float, processes: int) -> bool:
    """True if one model is slower than the bound allows, which is enough to know, or none is.

    Args:
        turns: Milliseconds by model, the first of which the others are compared with.
        bound: The slowdown asked about.
        processes: How many of each model they come from. Of one or two nothing is too slow, and of few it must be by
            more than they differ among each other: on a busy machine a process may be slow for as long as it lives.
    """
    before, *others = turns
    before_ms = statistics.median(before)
    unsure = False
    for after in others:
        slowdown = Slowdown.of(before, after)
        spread = _SPREAD
        if processes >= _TELLING_PROCESSES:
            spread = slowdown.high / slowdown.low if processes < _CERTAIN_PROCESSES else 1.0
        if (slowdown.high * spread - bound) * before_ms <= TICK_MS:
            continue
        if processes >= _TELLING_PROCESSES and slowdown.low / spread > bound:
            return True
        unsure = True
    return not unsure


def _times_apart(
    cases: Sequence[_Case],
    seconds: float,
    bound: float | None,
    ended: Callable[[], bool],
    first: Sequence[Sequence[float]],
) -> tuple[_Times, list[list[float]]]:
    """As `_times_in_processes`, with one model in memory at a time, each turn in a process of its own.

    Args:
        cases: The models.
        seconds: As for `measure`.
        bound: As for `measure`.
        ended: As for `measure`.
        first: The first turn of each model, where it has run already.
    """
    found: _Times = [[list(turn)] for turn in first] if first and all(first) else [[] for _ in cases]
    known = len(found[0])
    rounds, count = _APART_ROUNDS, 0
    started = time.perf_counter()
    while len(found[0]) < rounds:
        for case, turns in zip(cases, found, strict=True):
            with start_worker(*case) as ask:
                ask(do="load")
                warm = ask(do="time", runs=1)["ms"][-1] / 1e3
                if warm < 1:  # long runs are not made steadier by a second one
                    warm = ask(do="time", runs=1)["ms"][-1] / 1e3
                if not count:
                    count = max(1, min(_MOST_RUNS, int(seconds / rounds / len(cases) / max(warm, 1e-6))))
                turns.append(ask(do="time", runs=count)["ms"])
        taken = time.perf_counter() - started
        number = len(found[0])
        rounds = max(3, min(_APART_ROUNDS, known + int(_APART_SHARE * seconds * (number - known) / taken)))
        if bound is not None and len(cases) > 1 and number >= _APART_DECIDING:
            over = taken * (1 + 1 / (number - known)) > _PATIENCE * seconds
            if _is_decided(_medians(found), bound, number):
                break
            if number >= rounds and number < _MOST_PROCESSES and not over and not ended():
                rounds = number + 1
    return found, _medians(found)


def _result(need: Need, times: Sequence[Sequence[float]], turns: Sequence[float]) -> Measured:
    ms = [value for turn in times for value in turn]
    p50, p95, p99 = (float(value) for value in np.percentile(ms, [50, 95, 99]))
    return Measured(
        **need.__dict__,
        latency_ms={"p50": p50, "p95": p95, "p99": p99},
        throughput_per_s=1e3 / statistics.fmean(ms),
        runs=len(ms),
        turns_ms=tuple(turns),
    )
