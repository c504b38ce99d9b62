"""Measured memory follows what a model really needs."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from runtime_models import mlp, normal, parse

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.measure import Need, measure, measure_need
from memoptc.runtime.measuring_process import InSession
from memoptc.runtime.options import RunOptions
from memoptc.runtime.slowdown import Slowdown
from memoptc.runtime.worker import PeakMeter

MB = 1 << 20
FRESH = 64 * MB  # above every threshold of malloc: pages that the process did not hold before


def chain(side: int) -> onnx.ModelProto:
    """Three tensors of side * side floats alive one after the other."""
    return parse(
        "g (float[N, 1] x) => (float y) { a = MatMul(x, w) b = Exp(a) c = Sin(b) y = ReduceMax <keepdims = 0> (c) }",
        w=normal(1, side),
    )


def test_memory_and_time_of_two_models(tmp_path: Path) -> None:
    for name, side in (("small", 64), ("large", 4096)):
        onnx.save(chain(side), tmp_path / f"{name}.onnx")
    paths = [tmp_path / "small.onnx", tmp_path / "large.onnx"]
    small, large = measure(paths, {"x": normal(1024, 1)}, options=RunOptions(optimize=False), seconds=1.0)
    assert large.run_peak_bytes > small.run_peak_bytes + 14 * MB  # a 16 MB tensor at least
    assert large.run_peak_bytes < 100 * MB
    assert small.runs == large.runs >= 3
    assert large.memory_runs >= 2
    for found in (small, large):
        assert found.load_peak_bytes > 0
        latency = found.latency_ms
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        assert found.throughput_per_s > 0
        assert found.need_bytes >= max(found.load_peak_bytes, found.loaded_bytes)
        assert found.need_bytes == sum(found.parts().values())
        assert set(found.to_json()) >= {"load_peak_bytes", "run_peak_bytes", "latency_ms", "throughput_per_s"}
    assert large.latency_ms["p50"] > small.latency_ms["p50"]


def test_loading_counts_the_weights(tmp_path: Path) -> None:
    onnx.save(parse("g (float[N, 4] x) => (float[N, 2097152] y) { y = MatMul(x, w) }", w=normal(4, 2 << 20)),
              tmp_path / "m.onnx")  # fmt: skip
    (found,) = measure([tmp_path / "m.onnx"], {"x": normal(1, 4)}, seconds=0.2)
    assert found.loaded_bytes > 30 * MB
    assert found.load_peak_bytes >= found.loaded_bytes


def test_element_types_numpy_does_not_know(tmp_path: Path) -> None:
    onnx.save(parse("g (bfloat16[N] x) => (float[N] y) { y = Cast <to = 1> (x) }"), tmp_path / "m.onnx")
    (found,) = measure([tmp_path / "m.onnx"], {"x": np.ones(3, ml_dtypes.bfloat16)}, seconds=0.1)
    assert found.runs >= 3


def test_a_model_that_does_not_run_is_named(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: onnxruntime cannot run it"):
        measure([tmp_path / "m.onnx"], {"x": normal(1, 5)}, seconds=0.1)


@pytest.mark.parametrize("method", ["VmHWM", "sampled"])
def test_the_meter_sees_a_peak(method: str) -> None:
    meter = PeakMeter()
    if meter.method != "VmHWM" and method == "VmHWM":
        pytest.skip("the kernel's high-water mark cannot be reset here")
    meter.method = method
    base = meter.start()
    block = np.ones(FRESH, np.uint8)
    time.sleep(0.05)
    del block
    peak = meter.stop()
    assert FRESH - 2 * MB < peak - base < FRESH + 16 * MB


def test_need_counts_loading_runs_and_what_session_adds(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(chain(4096), path)
    feed = {"x": normal(1024, 1)}
    stock, session = measure_need(path, feed), measure_need(path, feed, options=InSession())
    assert stock.need_bytes > 16 * MB  # a result of the MatMul at least
    assert (stock.tier, stock.ours_bytes) == ("", 0)
    assert session.tier
    assert session.ours_bytes > 0
    assert stock.anonymous_bytes is not None
    assert stock.anonymous_bytes <= stock.need_bytes
    for found in (stock, session):
        assert found.anonymous_bytes is not None
        assert found.anonymous_bytes > 16 * MB
        parts = found.parts(activations=4 * MB)
        assert sum(parts.values()) == found.need_bytes
        assert parts["activations"] == 4 * MB
        assert parts["workspace"] > 8 * MB  # what was planned is less than what runs take
    timed = measure([path, path], feed, options=InSession(), seconds=1e-3, bound=9.0, needs=[session, session])
    assert all(len(found.turns_ms) >= 5 for found in timed)  # fewer decide nothing


def test_weights_of_a_file_are_mapped(tmp_path: Path) -> None:
    """In a file of their own, weights that no kernel packs are read as they are used, and can be evicted."""
    model = parse("g (int64[N] x) => (float[N, 64] y) { y = Gather (w, x) }", w=normal(1 << 17, 64))  # 32 MiB
    onnx.save(model, tmp_path / "inline.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    feed = {"x": np.arange(0, 1 << 17, 8)}
    inline, external = (measure_need(tmp_path / name, feed) for name in ("inline.onnx", "m.onnx"))
    assert inline.anonymous_bytes is not None
    assert external.anonymous_bytes is not None
    assert inline.anonymous_bytes > 30 * MB
    assert external.anonymous_bytes < inline.anonymous_bytes - 24 * MB
    assert external.parts()["weights"] > 24 * MB
    assert external.run_mapped_bytes > 24 * MB


def test_parts_add_up_wherever_the_peak_is() -> None:
    def need(**figures: int) -> Need:
        zero = dict.fromkeys(
            ("need_bytes", "anonymous_bytes", "load_peak_bytes", "loaded_bytes", "run_peak_bytes", "ours_bytes",
             "run_mapped_bytes", "memory_runs"), 0
        )  # fmt: skip
        return Need(**{**zero, **figures}, load_seconds=0.0, method="", tier="")

    loading = need(need_bytes=100, load_peak_bytes=100, loaded_bytes=60, run_peak_bytes=30, ours_bytes=5)
    assert loading.parts(20) == {"loading": 10, "weights": 55, "activations": 20, "workspace": 10, "ours": 5}
    running = need(need_bytes=100, load_peak_bytes=70, loaded_bytes=60, run_peak_bytes=40, run_mapped_bytes=25)
    assert running.parts() == {"loading": 0, "weights": 85, "activations": 15, "workspace": 0, "ours": 0}


def test_a_slowdown_is_decided_by_its_interval() -> None:
    noisy = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.05, 0.95]
    same = Slowdown.of([1.0] * 9, noisy)
    assert same.low < 1 < same.high
    assert not same.above(1.05)
    slower = Slowdown.of([1.0] * 9, [2 * n for n in noisy])
    assert slower.above(1.05)
    assert Slowdown.of([1.0] * 3, [1.0, 1.0, 5.0]).high == 5.0  # of three, all count
    # The second smallest ratio lies below the bound; that the others lie so far above decides.
    assert Slowdown.of([1.0] * 9, [1.06, 1.18, 1.02, 1.15, 1.12, 1.09, 1.2, 1.04, 1.13]).above(1.05)
    assert Slowdown.of([1.0] * 2, [1.0, 2.0]) == Slowdown(math.sqrt(2), 1.0, 2.0)


def test_the_interval_of_a_slowdown_misses_as_often_as_it_says() -> None:
    """Ratios that lie symmetrically around 1 on a logarithmic scale: all ways to choose their signs are as likely."""
    sizes = [math.exp(0.01 * 1.3**i) for i in range(7)]
    signs = list(itertools.product((-1, 1), repeat=len(sizes)))
    found = [Slowdown.of([1.0] * len(sizes), [a**s for a, s in zip(sizes, one, strict=True)]) for one in signs]
    missed = sum(1 for slowdown in found if not slowdown.low <= 1 <= slowdown.high)
    assert 0.04 < missed / len(signs) <= 0.07


@pytest.mark.parametrize(
    ("slowdown", "broken"),
    [
        (Slowdown(1.12, 1.06, 1.19), True),
        (Slowdown(1.12, 1.04, 1.19), True),  # slow for certain, and too slow as far as one can tell
        (Slowdown(1.12, 0.90, 1.40), False),  # who knows
        (Slowdown(1.04, 1.03, 1.08), False),
    ],
)
def test_noise_breaks_no_promise(slowdown: Slowdown, broken: bool) -> None:
    assert slowdown.breaks(1.05) == broken


def timed_against(
    ratios: list[float], need: int, monkeypatch: pytest.MonkeyPatch, warm: Sequence[float] = ()
) -> tuple[Slowdown, int]:
    """Time a model, whose processes are so many times as slow as the other's: the slowdown, and how many they were."""
    started = Counter[str]()

    @contextmanager
    def start(model: str, *_: Any) -> Iterator[Any]:
        ms = 100 * (ratios[started[model] % len(ratios)] if model == "after" else 1)
        started[model] += 1
        yield lambda do, runs=0: {"ms": [ms] * runs}

    monkeypatch.setattr("memoptc.runtime.measure.start_worker", start)
    known = Need(need, *[0] * 6, load_seconds=0, memory_runs=4, method="", tier="")
    needs = [replace(known, warm_ms=(ms,)) for ms in warm] or [known, known]
    before, after = measure(["before", "after"], {}, seconds=9, bound=1.05, needs=needs, just_now=bool(warm))
    assert started["before"] == started["after"]
    assert len(before.turns_ms) == len(after.turns_ms)
    return Slowdown.of(before.turns_ms, after.turns_ms), started["after"]


@pytest.mark.parametrize(
    ("ratios", "processes", "broken"),
    [
        ([1.0], 1, False),
        ([1.3], 3, True),  # a process may be slow
        ([1.03], 3, False),  # another process may be slower by more than is left
        ([1.08], 3, True),
        ([1.3, 1.07, 1.3], 5, True),  # three differ by more than they are too slow
        ([1.10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 6, False),  # one slow process of many
        ([1.10, 1.03], 11, True),  # undecided to the end
    ],
)
def test_processes_are_timed_until_they_decide(
    ratios: list[float], processes: int, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is as fast as it is for as long as it lives; its turns say nothing of the next one."""
    slowdown, started = timed_against(ratios, MB, monkeypatch)
    assert (started, slowdown.breaks(1.05)) == (processes, broken)


@pytest.mark.parametrize(
    ("ratios", "processes", "broken"),
    [([1.0], 2, False), ([1.03], 3, False), ([1.08], 3, True), ([1.06, 1.0], 11, False), ([1.10, 1.03], 11, True)],
)
def test_large_models_are_loaded_anew_until_they_decide(
    ratios: list[float], processes: int, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowdown, started = timed_against(ratios, 1 << 30, monkeypatch)
    assert (started, slowdown.breaks(1.05)) == (processes, broken)


@pytest.mark.parametrize(
    ("warm", "ratios", "processes", "broken"),
    [((100, 101), [1.0], 1, False), ((100, 108), [1.08], 2, True), ((100, 130), [1.0], 10, False)],
)
def test_the_runs_that_memory_was_watched_in_are_the_first_turn_of_a_large_model(
    warm: tuple[float, float], ratios: list[float], processes: int, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowdown, started = timed_against(ratios, 1 << 30, monkeypatch, warm)
    assert (started, slowdown.breaks(1.05)) == (processes, broken)


WATCHED = """
import sys
import numpy as np
from memoptc.runtime.worker import Watch
watch = Watch()
if watch.known:
    watch.start()
    mapped = np.memmap(sys.argv[1], np.uint8, "r")
    assert mapped.sum()
    print(*watch.now())
    block = np.ones(int(sys.argv[2]), np.uint8)
    watch.stop()
    print(watch.anonymous_peak(0))
"""


def test_watching_tells_anonymous_from_mapped(tmp_path: Path) -> None:
    """In a process of its own: this one may hold free memory that blocks are made of, or give some back meanwhile."""
    file = tmp_path / "pages"
    file.write_bytes(b"x" * (16 * MB))
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, str(file), str(FRESH)], capture_output=True, text=True, check=True
    )
    if not run.stdout:
        pytest.skip("the system does not tell anonymous from mapped")
    anonymous, mapped, peak = map(int, run.stdout.split())
    assert mapped > 15 * MB
    assert anonymous < 8 * MB
    assert peak > FRESH - MB
