"""Measured memory follows what a model really needs."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from runtime_models import mlp, normal, parse

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.evaluate import RunOptions
from memoptc.runtime.measure import measure
from memoptc.runtime.worker import PeakMeter

MB = 1 << 20


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
    block = np.ones(32 * MB, np.uint8)
    import time

    time.sleep(0.05)
    del block
    peak = meter.stop()
    assert 30 * MB < peak - base < 48 * MB
