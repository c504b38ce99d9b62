"""Memory and time of models in stock onnxruntime, each in a fresh process, control and candidate in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.runtime import worker
from memoptc.runtime.evaluate import STOCK, Feed, RunOptions
from memoptc.runtime.npz import save_feed

_ROUNDS = 9  # turns A B A B ...: enough for a median that one busy moment of the machine does not move
_MOST_RUNS = 100  # per turn


@dataclass(frozen=True)
class Measured:
    """What one model needs, measured.

    Args:
        load_peak_bytes: Highest resident memory while loading, over the interpreter with onnxruntime imported.
        loaded_bytes: Resident memory once loaded, over the same.
        run_peak_bytes: Highest resident memory during the runs, over the loaded model.
        load_seconds: Time to load.
        latency_ms: `p50`, `p95`, `p99` of one run.
        throughput_per_s: Runs per second, one after the other.
        runs: Runs that were timed.
        memory_runs: Runs during which memory was watched.
        method: How memory was measured (see `memoptc.runtime.worker.PeakMeter`).
    """

    load_peak_bytes: int
    loaded_bytes: int
    run_peak_bytes: int
    load_seconds: float
    latency_ms: dict[str, float]
    throughput_per_s: float
    runs: int
    memory_runs: int
    method: str

    def to_json(self) -> dict[str, Any]:
        """Give the report's `measured` object."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class InSession:
    """Run in `memoptc.runtime.Session` instead of plain onnxruntime.

    Args:
        memory: Its tier.
        arguments: Its other arguments, as plain values.
    """

    memory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the session's keyword arguments."""
        return {"memory": self.memory, **self.arguments}


Way: TypeAlias = RunOptions | InSession
"""How a model is run."""


def measure(
    models: Sequence[str | os.PathLike[str]],
    feed: Feed | Sequence[Feed],
    *,
    options: Way | Sequence[Way] = STOCK,
    seconds: float = 10.0,
) -> list[Measured]:
    """Measure models against each other.

    Memory is measured first, in one fresh process per model: baseline, load, then four runs (fewer when they
    would take too long). For time all models are loaded in a process each and run in turns A B A B ..., so that
    a change of the machine's speed meets all of them; only one runs at a time.

    Args:
        models: Paths of the models, usually control and candidate.
        feed: The inputs: the same for all, or one per model.
        options: How to run: one for all, or one per model.
        seconds: About how long all timed runs together may take. Every model runs at least 3 times.

    Raises:
        InputError: a model cannot be loaded or run.
    """
    each = [options] * len(models) if isinstance(options, RunOptions | InSession) else list(options)
    with tempfile.TemporaryDirectory(prefix="memoptc-measure-") as folder:
        feeds = [feed] if isinstance(feed, Mapping) else list(feed)
        files = [Path(folder) / f"feed{i}.npz" for i in range(len(feeds))]
        for file, content in zip(files, feeds, strict=True):
            save_feed(file, content)
        cases = list(zip(models, each, files * len(models) if len(files) == 1 else files, strict=True))
        memory = [_memory(*case, seconds) for case in cases]
        times = _times(cases, seconds)
    return [_result(found, ms) for found, ms in zip(memory, times, strict=True)]


def _memory(model: str | os.PathLike[str], options: Way, feed: Path, seconds: float) -> dict[str, Any]:
    with _worker(model, options, feed) as ask:
        load = ask(do="load")
        first = ask(do="memory", runs=1)
        more = 3 if 3 * first["seconds"] < seconds else 1
        rest = ask(do="memory", runs=more)
    peak = max(first["peak"], rest["peak"])
    return {"load": load, "peak": peak, "runs": 1 + more, "method": rest["method"]}


def _times(cases: Sequence[tuple[str | os.PathLike[str], Way, Path]], seconds: float) -> list[list[float]]:
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(*case)) for case in cases]
        for ask in workers:
            ask(do="load")
        warm = [ask(do="time", runs=2)["ms"][-1] / 1e3 for ask in workers]
        rounds = max(3, min(_ROUNDS, int(seconds / max(sum(warm), 1e-6))))
        count = max(1, min(_MOST_RUNS, int(seconds / rounds / max(sum(warm), 1e-6))))
        found: list[list[float]] = [[] for _ in workers]
        for _ in range(rounds):
            for ask, ms in zip(workers, found, strict=True):
                ms.extend(ask(do="time", runs=count)["ms"])
    return found


def _result(memory: Mapping[str, Any], ms: Sequence[float]) -> Measured:
    p50, p95, p99 = (float(value) for value in np.percentile(ms, [50, 95, 99]))
    return Measured(
        load_peak_bytes=max(0, memory["load"]["peak"]),
        loaded_bytes=max(0, memory["load"]["loaded"]),
        run_peak_bytes=max(0, memory["peak"]),
        load_seconds=memory["load"]["seconds"],
        latency_ms={"p50": p50, "p95": p95, "p99": p99},
        throughput_per_s=1e3 / statistics.fmean(ms),
        runs=len(ms),
        memory_runs=memory["runs"],
        method=memory["method"],
    )


class _Ask:
    """A worker process that one may ask."""

    def __init__(self, process: subprocess.Popen[str], label: str) -> None:
        self.process, self.label = process, label

    def __call__(self, **order: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.send(order) or "{}")
        if not answer:
            code = self.process.wait()
            raise InternalError(f"{self.label}: the measuring process ended with code {code}.")
        if "error" in answer:
            raise InputError(f"{self.label}: onnxruntime cannot run it: {answer['error']}")
        return answer

    def send(self, order: Mapping[str, Any]) -> str:
        """Send one line and wait for the answer; `""` when the process is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self.process.stdout.readline()


@contextmanager
def _worker(model: str | os.PathLike[str], options: Way, feed: Path) -> Iterator[_Ask]:
    path = os.path.abspath(os.fspath(model))
    request: dict[str, Any] = {"model": path, "feed": str(feed)}
    if isinstance(options, InSession):
        request["session"] = options.to_json()
    else:
        request |= {"options": options.to_json(), "native": options.native()}
    process = subprocess.Popen(
        [sys.executable, worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        yield _Ask(process, Path(path).name)
    finally:
        process.kill()
        process.communicate()
