"""Measures memory of the whole process and latency: fresh processes, turns against each other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from memoptc.ir.files import TemporaryFolder
from memoptc.runtime.measuring_process import InSession, Way, start_worker
from memoptc.runtime.npz import save_feed
from memoptc.runtime.options import STOCK, Feed, RunOptions
from memoptc.runtime.slowdown import Slowdown

_ROUNDS = 9  # turns A B A B ...: enough for a median that one busy moment of the machine does not move
_MOST_ROUNDS = 60  # until an interval leaves the bound that is asked about
_DECIDING_ROUNDS = 5  # the fewest of which an interval holds the true slowdown as often as `_UNSURE` says
_TURN_SECONDS = 0.2  # then a turn takes about so long: many short turns tell more than few long ones
_APART_ROUNDS = 5  # where each turn loads its model anew
_APART_SHARE = 2  # times the seconds for runs: what these turns may take, loading included
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
        return dict(self.__dict__)


@dataclass(frozen=True)
class Measured(Need):
    """Need and latency of one model.

    Args:
        latency_ms: `p50`, `p95`, `p99` of one run.
        throughput_per_s: Runs per second, one after the other.
        runs: Runs that were timed.
        turns_ms: Median of each turn; the turns of models that were measured together belong together.
    """

    latency_ms: dict[str, float]
    throughput_per_s: float
    runs: int
    turns_ms: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {k: v for k, v in self.__dict__.items() if k != "turns_ms"}


def measure(
    models: Sequence[str | os.PathLike[str]],
    feed: Feed | Sequence[Feed],
    *,
    options: Way | Sequence[Way] = STOCK,
    seconds: float = 10.0,
    bound: float | None = None,
    needs: Sequence[Need] | None = None,
) -> list[Measured]:
    """Measure models against each other.

    Memory is measured first, in one fresh process per model: baseline, load, then four runs (fewer when they
    would take too long). For time all models are loaded in a process each and run in turns A B A B ..., so that
    a change of the machine's speed meets all of them; only one runs at a time. Models that need more than 256 MiB
    together are loaded anew for each turn, so that one at a time is in memory.

    Args:
        models: Paths of the models, usually control and candidate.
        feed: The inputs: the same for all, or one per model.
        options: How to run: one for all, or one per model.
        seconds: About how long all timed runs together may take. Every model runs at least 3 times; at least 5 times
            where a `bound` is asked about and all models are loaded together.
        bound: Take short turns, and more of them, up to three times `seconds`, until it is decided that the slowdown
            of one other model against the first lies above the bound, or of none.
        needs: What `measure_need` gave for each of the cases, where that is known already.

    Raises:
        InputError: a model cannot be loaded or run.
    """
    each = [options] * len(models) if isinstance(options, RunOptions | InSession) else list(options)
    with _feeds(models, feed) as files:
        cases = list(zip(models, each, files, strict=True))
        needs = [_need(*case, seconds) for case in cases] if needs is None else needs
        times = _times(cases, seconds, bound) if side_by_side(needs) else _times_apart(cases, seconds)
    return [_result(need, turns) for need, turns in zip(needs, times, strict=True)]


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
    )


_Case: TypeAlias = tuple[str | os.PathLike[str], Way, Path]


def _times(cases: Sequence[_Case], seconds: float, bound: float | None) -> list[list[list[float]]]:
    """Milliseconds of each run, by model and turn; all models loaded."""
    with ExitStack() as stack:
        workers = [stack.enter_context(start_worker(*case)) for case in cases]
        for ask in workers:
            ask(do="load")
        warm = max(1e-6, sum(ask(do="time", runs=2)["ms"][-1] / 1e3 for ask in workers))
        fewest = 3 if bound is None else _DECIDING_ROUNDS
        rounds = most = max(fewest, min(_ROUNDS, int(seconds / warm)))
        turn = seconds / rounds
        if bound is not None and len(cases) > 1:
            turn = min(turn, _TURN_SECONDS * len(cases))
            most = max(rounds, min(_MOST_ROUNDS, int(3 * seconds / max(turn, warm))))
        count = max(1, min(_MOST_RUNS, int(turn / warm)))
        found: list[list[list[float]]] = [[] for _ in workers]
        while len(found[0]) < most:
            for ask, turns in zip(workers, found, strict=True):
                turns.append(ask(do="time", runs=count)["ms"])
            if len(found[0]) >= rounds and (bound is None or _is_decided(_slowdowns(found), bound)):
                break
    return found


def _slowdowns(found: Sequence[Sequence[Sequence[float]]]) -> list[Slowdown]:
    """Compare every model with the first."""
    before, *others = ([statistics.median(turn) for turn in turns] for turns in found)
    return [Slowdown.of(before, after) for after in others]


def _is_decided(slowdowns: Sequence[Slowdown], bound: float) -> bool:
    """True if one model is slower than the bound allows, which is enough to know, or none is."""
    return any(s.above(bound) for s in slowdowns) or all(s.decided(bound) for s in slowdowns)


def _times_apart(cases: Sequence[_Case], seconds: float) -> list[list[list[float]]]:
    """As `_times`, with one model in memory at a time; loading counts, so that large models take fewer turns."""
    found: list[list[list[float]]] = [[] for _ in cases]
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
        round_seconds = (time.perf_counter() - started) / len(found[0])
        rounds = max(3, min(_APART_ROUNDS, int(_APART_SHARE * seconds / round_seconds)))
    return found


def _result(need: Need, turns: Sequence[Sequence[float]]) -> Measured:
    ms = [value for turn in turns for value in turn]
    p50, p95, p99 = (float(value) for value in np.percentile(ms, [50, 95, 99]))
    return Measured(
        **need.__dict__,
        latency_ms={"p50": p50, "p95": p95, "p99": p99},
        throughput_per_s=1e3 / statistics.fmean(ms),
        runs=len(ms),
        turns_ms=tuple(statistics.median(turn) for turn in turns),
    )
