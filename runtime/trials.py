"""Trial runs of a model on inputs that were made up: kernels that check no ranks run in a process of their own.

Some kernels of onnxruntime (1.31) index the shape of an operand without asking for its rank: a wrong rank ends the
process, and no exception says so. Ranks are right where a model declares them. Where it leaves one open, trial runs go
to a worker: when that process ends, or one run takes too long, the trial has failed and the caller goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.ops import facts
from memoptc.runtime.child import end, python, send, worker_process
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.heap import available_bytes
from memoptc.runtime.memory.extents import bind_shapes, likely_extents
from memoptc.runtime.memory.liveness import peak
from memoptc.runtime.npz import save_feed
from memoptc.runtime.options import Feed
from memoptc.runtime.trial_worker import ANSWER, InProcess

_RUN_SECONDS = 30.0
"""Seconds that one run in a worker may take."""
_LOAD_SECONDS = 600.0
"""Seconds that a worker may take to start and to load the model."""
_MOST_CRASHES = 3
"""Workers that may crash, or be stopped, before trials are given up: each costs about a second."""
_SHARE = 0.5
"""Part of the free memory that a run at sizes of our own choice may be predicted to take."""


class Trial(Protocol):
    """Runs a model on one feed after another."""

    cpu_seconds: float
    """Time of processors that a run may take."""

    def restart(self) -> None:
        """Begin another search, which is not held to the crashes of those before."""

    def outputs_are_finite(self, feed: Feed) -> bool:
        """True if all outputs are finite numbers.

        Raises:
            MemoptcError: the model does not run on it.
        """


class TooManyCrashes(InputError):
    """Runs ended the process so often that no more are tried."""


@contextlib.contextmanager
def trial_runs(graph: Graph, original: Evaluator) -> Iterator[Trial]:
    """Give the way to try a model: in this process, or in a worker where a run may end it.

    Args:
        graph: The model with inferred types.
        original: The same model in onnxruntime.
    """
    if not may_crash_process(graph):
        yield _WithinMemory(graph, InProcess(original))
        return
    with TemporaryFolder("memoptc-trial-") as folder, contextlib.closing(_InWorker(original, Path(folder))) as trial:
        yield _WithinMemory(graph, trial)


def may_crash_process(graph: Graph) -> bool:
    """True if made-up inputs may reach a kernel that checks no ranks, or one that nobody described."""
    return any(_checks_no_ranks(op) and any(_rank_open(v) for v in op.operands) for op in graph.walk())


def _checks_no_ranks(op: Op) -> bool:
    return facts(op).unchecked_ranks or bool(op.domain)


def _rank_open(value: Value) -> bool:
    if value.omitted:
        return False
    return value.is_shapeless


class _WithinMemory:
    """Trials at sizes that nobody asked for, which is where their time is bounded: none begins that may not fit."""

    def __init__(self, graph: Graph, trial: Trial) -> None:
        self._graph, self._trial = graph, trial
        self._predicted: list[tuple[dict[str, int], int]] = []

    @property
    def cpu_seconds(self) -> float:
        return self._trial.cpu_seconds

    @cpu_seconds.setter
    def cpu_seconds(self, seconds: float) -> None:
        self._trial.cpu_seconds = seconds

    def restart(self) -> None:
        self._trial.restart()

    def outputs_are_finite(self, feed: Feed) -> bool:
        free = available_bytes() if self.cpu_seconds < math.inf else None
        if free is not None and (predicted := self._peak(feed, round(_SHARE * free))) > _SHARE * free:
            raise InputError(f"a run is predicted to take {predicted:,} bytes; {free:,} are free")
        return self._trial.outputs_are_finite(feed)

    def _peak(self, feed: Feed, most: int) -> int:
        """Bytes of activations at the sizes of a feed, or at larger ones that take no more than `most` bytes.

        0 for a model of one size. At new sizes all shapes of the model are inferred, which takes longer than a run.
        """
        dims = bind_shapes(self._graph, feed)
        if not dims:
            return 0
        for known, predicted in self._predicted:
            larger = known.keys() == dims.keys() and all(known[name] >= extent for name, extent in dims.items())
            if known == dims or (larger and predicted <= most):
                return predicted
        found = peak(self._graph, likely_extents(self._graph, dims)).peak_bytes
        self._predicted.append((dims, found))
        return found


class _InWorker:
    """A worker process, started for the first trial and again after one that crashed it."""

    def __init__(self, original: Evaluator, folder: Path) -> None:
        self._original, self._folder, self.cpu_seconds = original, folder, math.inf
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._crashes = 0

    def restart(self) -> None:
        """Count crashes anew."""
        self._crashes = 0

    def outputs_are_finite(self, feed: Feed) -> bool:
        if self._crashes >= _MOST_CRASHES:
            raise TooManyCrashes("Runs on made-up inputs ended onnxruntime's process too often to try more.")
        path = self._folder / "feed.npz"
        save_feed(path, feed)
        process = self._process
        if process is None:
            process = self._start()
            self._answer(_LOAD_SECONDS, "loading")
        send(process, [str(path), self.cpu_seconds])
        return bool(self._answer(_RUN_SECONDS, "a run")["finite"])

    def _answer(self, seconds: float, what: str) -> dict[str, Any]:
        """The worker's next answer; without one, or with one that says that it did not load, the worker is stopped."""
        try:
            answer, why = self._answers.get(timeout=seconds), f"{what} ends onnxruntime's process"
        except queue.Empty:
            answer, why = "", f"{what} takes longer than {seconds:g} seconds"
        if not answer:
            self.close()
            self._crashes += 1
            raise InputError(f"{self._original.label}: {why}.")
        found: dict[str, Any] = json.loads(answer)
        if found.get("ended"):
            self.close()
            self._crashes += 1
        if "error" in found:
            raise InputError(found["error"])
        return found

    def _start(self) -> subprocess.Popen[str]:
        request = {
            "model": self._original.on_disk(self._folder),
            "folder": self._original.folder,
            "label": self._original.label,
            "options": self._original.options.to_json(),
        }
        self._process = worker_process(python("-m", "memoptc.runtime.trial_worker"))
        send(self._process, request)  # where it crashed while it was starting, its answer, which is none, says so
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        return self._process

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            end(self._process)
            self._process = None


def _read(process: subprocess.Popen[str], answers: queue.SimpleQueue[str]) -> None:
    """Pass answers on; an empty one says that the process has ended. What operators print besides is no answer."""
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):
        for line in process.stdout:
            if line.startswith(ANSWER):
                answers.put(line.removeprefix(ANSWER))
    answers.put("")
