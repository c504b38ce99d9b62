"""The batching front: together, in order, cancellable, errors to whom they belong, figures that add up."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from native_models import usable
from pool_models import alone, feed, write

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import Pool
from memoptc.runtime.admission import BatchAxis
from memoptc.runtime.batching import Batched

AXES = BatchAxis({"x": 0}, {"y": 0})


class Doubler:
    """Gives twice the input; keeps what came in; waits until it may go on; refuses negative numbers."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.go = threading.Event()
        self.entered = threading.Event()

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Run once."""
        self.calls.append(input_feed["x"][:, 0].tolist())
        self.entered.set()
        assert self.go.wait(20)
        if (input_feed["x"] < 0).any():
            raise ValueError("negative")
        return [2 * input_feed["x"]]


def one(value: float, samples: int = 1, width: int = 2) -> dict[str, Any]:
    """A request."""
    return {"x": np.full((samples, width), value, np.float32)}


def queued(front: Batched, runner: Doubler, requests: list[dict[str, Any]]) -> list[Future[list[Any]]]:
    """Queue requests behind one that is being run."""
    first = front.submit(None, one(0))
    assert runner.entered.wait(20)
    answers = [front.submit(None, request) for request in requests]
    return [first, *answers]


def test_requests_that_wait_run_together_in_order() -> None:
    runner = Doubler()
    with Batched(runner, AXES, 0.0, 4) as front:
        answers = queued(front, runner, [one(1), one(2, 2), one(3), one(4, 5), one(5, 1, 3), one(6)])
        runner.go.set()
        found = [a.result(20)[0] for a in answers]
    assert runner.calls == [[0], [1, 2, 2, 3], [4] * 5, [5], [6]]
    assert [f.tolist() for f in found[1:3]] == [[[2, 2]], [[4, 4], [4, 4]]]
    assert [f.shape for f in found[4:]] == [(5, 2), (1, 3), (1, 2)]
    figures = front.latencies()
    assert figures is not None
    assert figures.requests == 7
    assert figures.samples_per_run == pytest.approx(12 / 5)
    assert 0 <= figures.queue_p50 <= figures.p50 <= figures.p95 <= figures.p99
    assert figures.queue_p95 <= figures.p95


def test_an_error_goes_to_its_caller_only() -> None:
    runner = Doubler()
    with Batched(runner, AXES, 0.0, 8) as front:
        answers = queued(front, runner, [one(1), one(-1), one(2)])
        runner.go.set()
        assert answers[1].result(20)[0].tolist() == [[2, 2]]
        with pytest.raises(ValueError, match="negative"):
            answers[2].result(20)
        assert answers[3].result(20)[0].tolist() == [[4, 4]]


@pytest.mark.parametrize("others", [[], [1.0, 2.0]])
def test_what_failed_is_freed_without_the_garbage_collector(others: list[float]) -> None:
    runner = Doubler()
    gc.disable()
    try:
        with Batched(runner, AXES, 0.0, 8) as front:
            refused = one(-1)
            seen = weakref.ref(refused["x"])
            answers = queued(front, runner, [refused, *map(one, others)])
            del refused
            runner.go.set()
            answers[-1].exception(20)
            assert isinstance(answers[1].exception(20), ValueError)
            del answers
        assert seen() is None
    finally:
        gc.enable()


def test_outputs_that_are_no_samples_are_computed_one_by_one() -> None:
    class Mean(Doubler):
        def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
            return [*super().run(output_names, input_feed), input_feed["x"].mean(0, keepdims=True)]

        def get_outputs(self) -> list[Any]:
            return [SimpleNamespace(name="y"), SimpleNamespace(name="m")]

    runner = Mean()
    with Batched(runner, BatchAxis({"x": 0}, {"m": 0, "y": 0}), 0.0, 8) as front:
        answers = queued(front, runner, [one(1), one(3)])
        runner.go.set()
        assert [[v.tolist() for v in a.result(20)] for a in answers[1:]] == [[[[2, 2]], [[1, 1]]], [[[6, 6]], [[3, 3]]]]
    assert runner.calls == [[0], [1, 3], [1], [3]]


def test_what_is_cancelled_is_not_run() -> None:
    runner = Doubler()
    with Batched(runner, AXES, 0.0, 8) as front:
        answers = queued(front, runner, [one(1), one(2)])
        assert answers[1].cancel()
        assert not answers[0].cancel()
        runner.go.set()
        assert answers[2].result(20)[0].tolist() == [[4, 4]]
        last = front.submit(None, one(7))
        assert last.result(20)[0].tolist() == [[14, 14]]
    assert runner.calls == [[0], [2], [7]]


def test_closing_answers_what_is_queued_and_takes_no_more() -> None:
    runner = Doubler()
    front = Batched(runner, AXES, 60_000.0, 8)
    answer = front.submit(None, one(3))
    runner.go.set()
    front.close()
    assert answer.result(0)[0].tolist() == [[6, 6]]
    with pytest.raises(InputError, match="closed"):
        front.submit(None, one(1))


def test_requests_without_samples_in_common_are_refused() -> None:
    with Batched(Doubler(), BatchAxis({"x": 0, "z": 0}, {"y": 0}), 0.0, 8) as front:
        with pytest.raises(InputError, match="same number of samples"):
            front.submit(None, {"x": np.zeros((2, 1)), "z": np.zeros((3, 1))})


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
def test_a_pool_batches_and_keeps_the_bits(tmp_path: Path) -> None:
    path = write(tmp_path, "a", 0)
    with Pool(threads=1) as pool:
        session = pool.open(path)
        with pytest.raises(InputError, match="not known that the samples"):
            pool.batched(session)
        axes = BatchAxis({"h0": 0}, {session.loaded.get_outputs()[0].name: 0})
        with pool.batched(session, max_wait_ms=50, batch=axes) as front:
            answers = [front.submit(None, feed(n)) for n in (1, 3, 2, 3)]
            for answer, count in zip(answers, (1, 3, 2, 3), strict=True):
                assert answer.result(20)[0].tobytes() == alone(path, count)
