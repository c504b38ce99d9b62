"""Ranges are those of numpy, in bounded memory, and wrong requests are named."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_models import convolutions, mlp, normal, parse, weight

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import checkpoint as checkpoints
from memoptc.runtime import probe as probes
from memoptc.runtime.calibrate import FEWEST, Range, calibrate
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.histogram import CELLS, Accumulator, Histogram
from memoptc.runtime.observers import AUTO_POWER, OBSERVERS, squared_error

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
    bin_width = 2 * values.max() / CELLS
    assert found.max == pytest.approx(float(np.quantile(values, 0.99)), abs=3 * float(bin_width))
    assert found.histogram is not None
    assert found.histogram.counts.sum() == values.size == found.count


def test_groups_of_tensors_give_the_same() -> None:
    names = ["x", "a", "b", "y"]
    whole = calibrate(mlp(), names, FEEDS, "percentile")
    parts = calibrate(mlp(), names, FEEDS, "percentile", budget=1)
    assert list(parts) == names
    assert all((whole[n].min, whole[n].max) == (parts[n].min, parts[n].max) for n in names)


def test_large_tensors_are_seen_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, columns and channels of different scale; the extremes are single elements that a walk misses."""
    scales = np.linspace(1, 9, 32, dtype=np.float32).reshape(1, 32, 1)
    feeds = [{"x": normal(8, 32, 512, seed=i) * scales} for i in range(3)]
    for i, feed in enumerate(feeds):
        feed["x"][i, 1, 501] = 90.0 + i
    model = parse("g (float[8,32,512] x) => (float[8,32,512] y) { b = Relu(x) y = Neg(b) }")
    whole = calibrate(model, ["x", "b", "y"], feeds, "percentile", percentile=99.0)
    runs: list[int] = []
    run = Evaluator.run
    monkeypatch.setattr(Evaluator, "run", lambda self, feed: (runs.append(len(self.outputs)), run(self, feed))[1])
    parts = calibrate(model, ["x", "b", "y"], feeds, "percentile", percentile=99.0, budget=1)
    assert len(runs) == len(feeds) + 1  # one that tells sizes
    for name in whole:
        assert parts[name].extremes == whole[name].extremes
        assert parts[name].count < 2 * FEWEST * len(feeds) < whole[name].count
        assert (parts[name].min, parts[name].max) == pytest.approx((whole[name].min, whole[name].max), rel=0.05)
    monkeypatch.undo()
    roots = parse("g (float[8,32,512] x) => (float[8,32,512] y) { b = Sqrt(x) y = Relu(b) }")
    feeds = [{"x": np.ones((8, 32, 512), np.float32)} for _ in range(3)]
    feeds[2]["x"][7, 30, 500] = -1.0
    with pytest.raises(InputError, match="sample 2: the tensor 'b' holds NaN or Inf"):
        calibrate(roots, ["b"], feeds, "percentile", budget=1)


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
    assert calibrate(model, ["z"], [{"x": normal(0)}]) == {}


@pytest.mark.parametrize("opset", [10, 18])
def test_a_large_tensor_that_is_empty_in_one_sample(opset: int) -> None:
    """Its extremes are reductions of nothing there."""
    model = parse("g (float[N, 64] x) => (float[N, 64] y) { r = Relu(x) y = Add(r, r) }", opset)
    full = [{"x": normal(rows, 64, seed=rows)} for rows in (300, 400)]
    empty = {"x": normal(0, 64)}
    expected = calibrate(model, ["r"], full, "mse", budget=1 << 12)
    assert expected["r"].count < FEWEST
    for feeds in ([full[0], empty, full[1]], [empty, *full]):
        found = calibrate(model, ["r"], feeds, "mse", budget=1 << 12)
        assert found["r"].extremes == expected["r"].extremes == (0.0, float(max(f["x"].max() for f in full)))
        assert found["r"].count == expected["r"].count
        assert np.array_equal(found["r"].histogram.counts, expected["r"].histogram.counts)


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


class Stopped(Exception):
    """What ends a calibration early."""


@pytest.mark.parametrize("method", ["minmax", "auto"])
@pytest.mark.parametrize("after", [0, 2, 5])
def test_interrupted_and_resumed_is_the_same(
    method: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    names = ["x", "b", "y"]
    whole = calibrate(mlp(), names, FEEDS, method, budget=1)
    runs = 0

    def load(self, extra, outputs):  # type: ignore[no-untyped-def]
        evaluator = original(self, extra, outputs)
        if not outputs[0].endswith(".size"):
            run = evaluator.run

            def counted(feed):  # type: ignore[no-untyped-def]
                nonlocal runs
                runs += 1
                if runs == after + 1:
                    raise Stopped
                return run(feed)

            evaluator.run = counted
        return evaluator

    original = probes.Probe.load
    stopped = after < len(FEEDS)
    with monkeypatch.context() as patch:
        patch.setattr(probes.Probe, "load", load)
        with pytest.raises(Stopped) if stopped else nullcontext():
            calibrate(mlp(), names, FEEDS, method, budget=1, checkpoint=tmp_path)
    assert (tmp_path / "calibration.json").exists() == (after > 0)
    runs, after = 0, 1000
    with monkeypatch.context() as patch:
        patch.setattr(probes.Probe, "load", load)
        resumed = calibrate(mlp(), names, FEEDS, method, budget=1, checkpoint=tmp_path)
    assert [summary(r) for r in resumed.values()] == [summary(r) for r in whole.values()]


def summary(found: Range) -> tuple[object, ...]:
    return found.min, found.max, found.count, found.method


def test_resumed_work_is_not_done_again_and_other_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)

    def broken():  # type: ignore[no-untyped-def]
        yield from FEEDS[:3]
        raise Stopped

    with pytest.raises(Stopped):
        calibrate(mlp(), ["b"], broken, checkpoint=tmp_path)
    other = [{"x": normal(300, 16, seed=i + 100)} for i in range(5)]
    with pytest.raises(InputError, match="about other samples"):
        calibrate(mlp(), ["b"], other, checkpoint=tmp_path)
    found = calibrate(mlp(), ["b"], FEEDS, checkpoint=tmp_path)["b"]
    assert summary(found) == summary(calibrate(mlp(), ["b"], FEEDS)["b"])
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(InputError, match="cannot be used as a checkpoint"):
        calibrate(mlp(), ["b"], FEEDS, checkpoint=tmp_path)


def test_auto_takes_the_least_error_and_says_which() -> None:
    found = {m: calibrate(mlp(), ["b"], FEEDS, m)["b"] for m in ("auto", *OBSERVERS)}
    values = relu_values().astype(np.float64)

    def coded(top: float, power: float) -> float:
        scale = top / 255
        return float(np.sum(np.abs(values - np.clip(np.round(values / scale), 0, 255) * scale) ** power))

    # the distribution stands for the elements: within a few percent of what coding them costs
    for best, power in (("auto", AUTO_POWER), ("mse", 2.0)):
        errors = {m: coded(r.max, power) for m, r in found.items()}
        assert errors[best] <= min(errors.values()) * 1.02
    histogram = found["auto"].histogram
    assert histogram is not None
    assert squared_error(histogram, (0.0, values.max()), 0.0, found["mse"].max) == pytest.approx(
        coded(found["mse"].max, 2.0), rel=0.03
    )


def test_an_outlier_is_clipped_where_that_costs_less() -> None:
    bulk = normal(100_000, seed=3)
    seen = Accumulator()
    assert seen.add(np.concatenate([bulk, np.float32([40.0])]))
    histogram, ends = seen.histogram(), (seen.low, seen.high)
    for name, observer in OBSERVERS.items():
        low, high = observer(histogram, ends, 99.99)
        assert (high == 40.0) == (name == "minmax"), name
        assert -5.0 < low < -1.5, name
        assert high > 3.0, name


def test_twenty_thousand_samples_stay_in_bounded_memory(tmp_path: Path) -> None:
    """The peak of a fresh process, over what it needs for the model and one sample."""
    onnx.save(convolutions(), tmp_path / "m.onnx")
    script = f"""
import resource, sys
import numpy as np
from memoptc.runtime.calibrate import calibrate
def feeds(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {{"x": rng.standard_normal((1, 3, 16, 16), np.float32)}}
peaks = []
for count in (1, 20_000):
    calibrate({str(tmp_path / "m.onnx")!r}, ["x", "a", "b", "d"], lambda: feeds(count), "auto")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(found.stdout) * 1024 < 30e6


finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.lists(finite, max_size=30), min_size=1, max_size=6), seed=st.integers(0, 5))
def test_distributions_do_not_depend_on_order_or_batches(parts: list[list[float]], seed: int) -> None:
    values = np.array([v for part in parts for v in part], np.float32)
    whole, piecewise = Accumulator(), Accumulator()
    whole.add(np.random.default_rng(seed).permutation(values))
    for part in parts:
        piecewise.add(np.array(part, np.float32))
    assert piecewise.count == len(values)
    if not len(values):
        return
    assert (whole.low, whole.high) == (piecewise.low, piecewise.high) == (values.min(), values.max())
    assert (whole.exponent, whole.first, whole.zeros) == (piecewise.exponent, piecewise.first, piecewise.zeros)
    assert whole.counts.tolist() == piecewise.counts.tolist()
    assert len(whole.counts) <= CELLS
    histogram = whole.histogram()
    assert histogram.low <= values.min()
    assert values.max() < histogram.high
    assert histogram.counts.tolist() == np.histogram(values.astype(np.float64), histogram.edges)[0].tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=10), st.randoms())
def test_growth_is_what_the_extremes_of_all_exceed_those_of_a_random_half_by(ends: list[float], chance: Random) -> None:
    seen, shuffled = Accumulator(), Accumulator()
    for value in ends:
        seen.add(np.float32([value]))
    for value in chance.sample(ends, len(ends)):
        shuffled.add(np.float32([value]))
    assert seen.growth() == shuffled.growth()
    # each sample is in the half or not, with equal chances; an empty half counts as one of the least sample
    subsets = [[v for i, v in enumerate(ends) if bits >> i & 1] for bits in range(1 << len(ends))]
    highest = np.mean([max(half, default=min(ends)) for half in subsets])
    lowest = np.mean([min(half, default=max(ends)) for half in subsets])
    assert seen.growth() == pytest.approx((lowest - min(ends), max(ends) - highest), abs=1e-6)


def test_headroom_is_left_where_samples_reach_unequally_far(tmp_path: Path) -> None:
    onnx.save(convolutions(), tmp_path / "m.onnx")
    images = [normal(1, 3, 16, 16, seed=i).clip(-1, 1) * (1 + i % 5) for i in range(20)]
    for image in images:
        image[0, 0, 0, 0] = -7.0  # all reach as far down
    ranges = calibrate(str(tmp_path / "m.onnx"), ["x"], [{"x": image} for image in images])
    low, high = ranges["x"].with_headroom((ranges["x"].min, ranges["x"].max))
    assert low == -7.0
    assert 5.0 < high < 5.0 * 1.5
    one = calibrate(str(tmp_path / "m.onnx"), ["x"], [{"x": images[4]}])["x"]
    assert one.with_headroom((one.min, one.max)) == (one.min, one.max)


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


def test_what_lies_behind_the_tensors_is_not_run() -> None:
    fails = parse("""
        agraph (float[N, 4] x) => (float[2, 2] z)
        <int64[2] square = {2, 2}>
        {
            y = Relu(x)
            z = Reshape(y, square)
        }
    """)
    ranges = calibrate(fails, ["y"], [{"x": np.full((3, 4), 2.0, np.float32)}], "auto")  # twelve numbers in no square
    assert (ranges["y"].max, ranges["y"].count) == (2.0, 12)


def test_what_a_branch_reads_from_outside_is_run() -> None:
    outside = parse("""
        agraph (float[N, 4] x, bool c) => (float[N, 4] z)
        {
            y = Relu(x)
            z = If(c) <then_branch = g () => (float[N, 4] t) { t = Neg(y) },
                       else_branch = h () => (float[N, 4] e) { e = Identity(x) }>
        }
    """)
    feed = {"x": np.full((3, 4), 2.0, np.float32), "c": np.array(True)}
    assert calibrate(outside, ["z"], [feed], "auto")["z"].min == -2.0
