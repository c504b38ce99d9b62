"""Ranges are those of numpy, in bounded memory, and wrong requests are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_models import convolutions, mlp, normal, parse, weight

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import calibrate as calibration
from memoptc.runtime.calibrate import BINS, Histogram, calibrate

FEEDS = [{"x": normal(300, 16, seed=i)} for i in range(5)]


def relu_values() -> np.ndarray:
    w1 = weight(mlp(), "w1")
    return np.concatenate([np.maximum(f["x"] @ w1, 0) for f in FEEDS])


def test_minmax_is_exact() -> None:
    ranges = calibrate(mlp(), ["x", "b", "y"], FEEDS)
    x = np.concatenate([f["x"] for f in FEEDS])
    assert list(ranges) == ["x", "b", "y"]
    assert (ranges["x"].min, ranges["x"].max, ranges["x"].count) == (x.min(), x.max(), x.size)
    assert ranges["b"].min == 0.0
    assert ranges["b"].max == pytest.approx(relu_values().max(), rel=1e-6)


def test_percentile_follows_numpy() -> None:
    found = calibrate(mlp(), ["b", "a"], FEEDS, "percentile", percentile=99.0)["b"]
    values = relu_values()
    bin_width = values.max() / BINS
    assert found.max == pytest.approx(float(np.quantile(values, 0.99)), abs=3 * float(bin_width))
    assert found.histogram is not None
    assert found.histogram.counts.sum() == values.size == found.count


def test_batches_of_tensors_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["x", "a", "b", "y"]
    whole = calibrate(mlp(), names, FEEDS, "percentile")
    monkeypatch.setattr(calibration, "BATCH_BYTES", 1)
    parts = calibrate(mlp(), names, FEEDS, "percentile")
    assert list(parts) == names
    assert all((whole[n].min, whole[n].max) == (parts[n].min, parts[n].max) for n in names)


def test_data_is_read_as_a_stream() -> None:
    seen = []

    def feeds():  # type: ignore[no-untyped-def]
        for i in range(50):
            seen.append(i)
            yield {"x": normal(1, 16, seed=i)}

    ranges = calibrate(mlp(), ["a"], feeds(), "percentile")
    assert ranges["a"].count == 50 * 32
    assert len(seen) == 50


def test_external_weights_are_found(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    assert calibrate(tmp_path / "m.onnx", ["b"], FEEDS) == calibrate(mlp(), ["b"], FEEDS)


def test_constant_and_empty_tensors() -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) { z = Sub(x, x) y = Add(z, z) }",
    )
    ranges = calibrate(model, ["z"], [{"x": normal(4)}], "percentile")
    assert (ranges["z"].min, ranges["z"].max) == (0.0, 0.0)
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) > (1, 20):  # before, it cannot reduce nothing
        assert calibrate(model, ["z"], [{"x": normal(0)}]) == {}


def test_convolutional_net_and_half_precision() -> None:
    ranges = calibrate(convolutions(), ["a", "b", "d"], [{"x": normal(2, 3, 16, 16)}])
    assert ranges["b"].min == 0.0
    assert ranges["a"].max == ranges["b"].max
    half = parse("g (float16[N] x) => (float16[N] y) { y = Relu(x) }")
    assert calibrate(half, ["y"], [{"x": np.array([-1, 2], np.float16)}])["y"].max == 2.0


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        (["nope"], {}, "no tensor 'nope'"),
        (["a"], {"method": "guess"}, "is no method"),
        (["a"], {"method": "percentile", "percentile": 20.0}, "above 50"),
    ],
)
def test_wrong_requests(tensors: list[str], options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate(mlp(), tensors, FEEDS, **options)  # type: ignore[arg-type]


def test_nan_inside_the_model_is_named() -> None:
    model = parse("g (float[N] x) => (float[N] y) { z = Log(x) y = Relu(z) }")
    feeds = [{"x": np.ones(3, np.float32)}, {"x": np.array([1, -1, 2], np.float32)}]
    with pytest.raises(InputError, match="sample 1: the tensor 'z' holds NaN or Inf"):
        calibrate(model, ["z"], feeds)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200), part=st.floats(0.01, 0.99))
def test_quantile_is_within_a_bin_of_the_order_statistics(values: list[float], part: float) -> None:
    array = np.asarray(values)
    low, high = float(array.min()), float(array.max())
    if high <= low:
        return
    counts, _ = np.histogram(array, 64, (low, high))
    found = Histogram(low, high, counts).quantile(part)
    width = (high - low) / 64
    ordered = np.sort(array)
    below = ordered[max(0, int(np.floor(part * len(array))) - 1)]
    above = ordered[min(len(array) - 1, int(np.ceil(part * len(array))))]
    assert below - width <= found <= above + width
