"""A batching front: requests that arrive together run as one batch of a size that fits."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.admission import BatchAxis, check_slices

if TYPE_CHECKING:
    import numpy.typing as npt

_KEPT = 4096
"""Requests whose times are kept for the figures."""


class Runner(Protocol):
    """Runs a batch of requests."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Run once."""


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of the last requests, from the call to the answer; and how long they waited to be run.

    Args:
        requests: How many these are.
        p50: Half of them took no longer.
        p95: 95 of 100 took no longer.
        p99: 99 of 100 took no longer.
        queue_p50: Half of them waited no longer.
        queue_p95: 95 of 100 waited no longer.
        samples_per_run: Mean of samples that ran together.
    """

    requests: int
    p50: float
    p95: float
    p99: float
    queue_p50: float
    queue_p95: float
    samples_per_run: float


@dataclass
class _Request:
    names: tuple[str, ...] | None
    feed: dict[str, npt.NDArray[Any]]
    samples: int
    key: tuple[Any, ...]
    answer: Future[list[Any]]
    arrived: float


class Batched:
    """Runs requests in the order of their arrival; those with equal shapes but for their samples run together.

    Args:
        session: Runs the batches.
        batch: Axes of samples, from the model's contract.
        max_wait_ms: How long the first request waits for others.
        max_samples: Most samples in one run.
    """

    def __init__(self, session: Runner, batch: BatchAxis, max_wait_ms: float, max_samples: int) -> None:
        self._session, self._batch = session, batch
        self._wait, self._most = max_wait_ms / 1e3, max_samples
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._times: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._runs: deque[int] = deque(maxlen=_KEPT)
        self._worker = threading.Thread(target=self._work, name="memoptc-batched", daemon=True)
        self._worker.start()

    def submit(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> Future[list[Any]]:
        """Queue a request; its future gives the outputs, or raises what went wrong with it. `cancel` takes it back.

        Raises:
            InputError: its inputs have no common number of samples, or the front is closed.
        """
        import numpy as np

        feed = {name: np.asarray(value) for name, value in input_feed.items()}
        samples = self._batch.samples({name: value.shape for name, value in feed.items()})
        if samples < 1:
            raise InputError(
                "The inputs of this request do not have the same number of samples.",
                hint=f"Samples lie along these axes: {dict(self._batch.inputs)}.",
            )
        request = _Request(
            None if output_names is None else tuple(output_names), feed, samples,
            self._key(output_names, feed), Future(), time.perf_counter(),
        )  # fmt: skip
        with self._changed:
            if self._closed:
                raise InputError("The batching front is closed.", hint="Make another one.")
            self._queue.append(request)
            self._changed.notify_all()
        return request.answer

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Queue a request and wait for its outputs. Raises as `submit` and the session's `run` do."""
        return self.submit(output_names, input_feed).result()

    def latencies(self) -> Latencies | None:
        """Figures of the last requests; `None` before the first."""
        import numpy as np

        with self._changed:
            times, runs = list(self._times), list(self._runs)
        if not times:
            return None
        whole, waited = (1e3 * np.array(column) for column in zip(*times, strict=True))
        p50, p95, p99 = (float(np.percentile(whole, q)) for q in (50, 95, 99))
        q50, q95 = (float(np.percentile(waited, q)) for q in (50, 95))
        return Latencies(len(times), p50, p95, p99, q50, q95, sum(runs) / len(runs))

    def close(self) -> None:
        """Answer what is queued and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    def __enter__(self) -> Batched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, names: Sequence[str] | None, feed: Mapping[str, npt.NDArray[Any]]) -> tuple[Any, ...]:
        """Key of requests that can run together: inputs that all samples share, too."""
        parts: list[Any] = [None if names is None else tuple(names)]
        for name, value in sorted(feed.items()):
            axis = self._batch.inputs.get(name)
            if axis is None:
                parts.append((name, value.dtype, value.shape, value.tobytes()))
            else:
                parts.append((name, value.dtype, value.shape[:axis], value.shape[axis + 1 :]))
        return tuple(parts)

    def _work(self) -> None:
        while (together := self._next()) is not None:
            if together:
                self._answer(together)

    def _next(self) -> list[_Request] | None:
        """Wait for requests that run together, those left out that were taken back; `None` when all are answered."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return None
            until = self._queue[0].arrived + self._wait
            while not self._closed and self._samples() < self._most and (left := until - time.perf_counter()) > 0:
                self._changed.wait(left)
            together: list[_Request] = []
            count = 0
            while self._queue and (not together or self._fits(self._queue[0], together[0], count)):
                request = self._queue.popleft()
                if request.answer.set_running_or_notify_cancel():
                    together.append(request)
                    count += request.samples
            return together

    def _samples(self) -> int:
        return sum(r.samples for r in self._queue)

    def _fits(self, request: _Request, first: _Request, count: int) -> bool:
        return request.key == first.key and count + request.samples <= self._most

    def _answer(self, together: list[_Request]) -> None:
        """Run requests as one batch; where that fails, one by one, so that an error goes to its caller only.

        The list is empty afterwards: frames that an error keeps must not hold the request whose answer it is.
        """
        started = time.perf_counter()
        outputs = None
        try:
            outputs = self._run(together[0].names, [r.feed for r in together], [r.samples for r in together])
        except Exception as error:
            if len(together) == 1:
                together.pop().answer.set_exception(error)
        if outputs is None:
            while together:
                self._answer([together.pop(0)])
            return
        ended = time.perf_counter()
        with self._changed:
            self._runs.append(sum(r.samples for r in together))
            self._times.extend((ended - r.arrived, started - r.arrived) for r in together)
        for values in outputs:
            together.pop(0).answer.set_result(values)

    def _names(self) -> tuple[str, ...]:
        """Names of all outputs, in the order in which runs give them."""
        ports = getattr(self._session, "get_outputs", None)
        return tuple(self._batch.outputs) if ports is None else tuple(port.name for port in ports())

    def _run(
        self, names: tuple[str, ...] | None, feeds: Sequence[Mapping[str, npt.NDArray[Any]]], samples: Sequence[int]
    ) -> list[list[Any]]:
        import numpy as np

        if len(feeds) == 1:
            return [self._session.run(names, feeds[0])]
        feed = {
            name: np.concatenate([f[name] for f in feeds], self._batch.inputs[name])
            if name in self._batch.inputs
            else value
            for name, value in feeds[0].items()
        }
        values = self._session.run(names, feed)
        *ends, total = itertools.accumulate(samples)
        parts = []
        for name, value in zip(names or self._names(), values, strict=True):
            axis = self._batch.outputs[name]
            check_slices(name, value, axis, total)
            parts.append(np.split(value, ends, axis))
        return [[np.ascontiguousarray(part[index]) for part in parts] for index in range(len(feeds))]
