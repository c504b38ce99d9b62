"""Weights that hold NaN or Inf or next to nothing, values that overflow: named, left in float, the rest coded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper
from runtime_models import parse

import memoptc
from memoptc.ir.diagnostics import InputError
from memoptc.ir.not_finite import magnitude_of
from memoptc.runtime.calibrate import calibrate
from memoptc.runtime.channels import channel_statistics
from memoptc.runtime.evaluate import Evaluator

TEXT = """g (float[N,64] x) => (float[N,64] y) {
    a = MatMul(x, w1)
    r = Relu(a)
    c = MatMul(r, w2)
    e = Exp(x)
    d = MatMul(e, w4)
    s = Add(c, d)
    t = Tanh(s)
    y = MatMul(t, w3)
}"""
WEIGHTS = (("w1", (64, 128)), ("w2", (128, 64)), ("w3", (64, 64)), ("w4", (64, 64)))


def model_with(path: Path, changes: dict[str, float], name: str = "w1") -> Path:
    """Four products, with some elements of one weight changed, or all of them scaled (`all`)."""
    rng = np.random.default_rng(3)
    model = parse(TEXT)
    for weight, shape in WEIGHTS:
        content = (rng.normal(size=shape) / 8).astype(np.float32)
        if weight == name:
            for where, value in changes.items():
                if where == "all":
                    content *= np.float32(value)
                else:
                    content[int(where), 5] = value
        model.graph.initializer.append(numpy_helper.from_array(content, weight))
    onnx.save(model, path)
    return path


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)


@pytest.mark.parametrize("target", ["int8", "int4", "mixed"])
@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_stays_and_what_reads_its_results_codes_nothing(
    tmp_path: Path, value: float, data: bool, target: str
) -> None:
    source = model_with(tmp_path / "m.onnx", {"3": value})
    np.savez(tmp_path / "data.npz", x=rows(24))
    found = memoptc.compile(
        source, 2, target, calibration=tmp_path / "data.npz" if data else None, measure=False, verify="fast"
    )
    found.save(tmp_path / "out.onnx")
    for seed in range(1, 4):  # of Inf and NaN, positions alone are told apart
        before, after = (Evaluator(tmp_path / name).run({"x": rows(4, seed)})["y"] for name in ("m.onnx", "out.onnx"))
        assert np.array_equal(np.isfinite(before), np.isfinite(after))
    told = " ".join(found.report.warnings)
    assert "its weights hold NaN or Inf, which no code stands for" in told
    assert not any("sample" in warning for warning in found.report.warnings)


def test_an_overflow_inside_leaves_the_product_that_reads_it_in_float(tmp_path: Path) -> None:
    source = model_with(tmp_path / "m.onnx", {})
    x = rows(24)
    x[5, 7] = 200.0  # its exponential is infinite
    np.savez(tmp_path / "data.npz", x=x)
    found = memoptc.compile(source, 2, "int8", calibration=tmp_path / "data.npz", measure=False, verify="fast")
    warned = [warning for warning in found.report.warnings if "holds NaN or Inf though no input does" in warning]
    assert len(warned) == 1
    assert "'e'" in warned[0]
    assert "sample 5" in warned[0]


@pytest.mark.parametrize("method", ["minmax", "auto"])
def test_values_that_overflow_are_noted_or_refused(tmp_path: Path, method: str) -> None:
    model = model_with(tmp_path / "m.onnx", {})
    feeds = [{"x": rows(1, seed)} for seed in range(4)]
    feeds[1]["x"][0, 0] = 200.0
    noted: dict[str, str] = {}
    whole = calibrate(model, ["x", "e", "t"], feeds, method, infinite=noted, checkpoint=tmp_path / "kept")
    assert list(whole) == ["x", "t"]
    assert list(noted) == ["e"]
    assert "sample 1" in noted["e"]
    again: dict[str, str] = {}
    resumed = calibrate(model, ["x", "e", "t"], feeds, method, infinite=again, checkpoint=tmp_path / "kept")
    assert {name: seen.extremes for name, seen in resumed.items()} == {k: seen.extremes for k, seen in whole.items()}
    assert list(again) == ["e"]
    noted.clear()
    assert list(channel_statistics(model, {"x": 1, "e": 1}, feeds, infinite=noted)) == ["x"]
    assert list(noted) == ["e"]
    with pytest.raises(InputError, match="sample 1: the tensor 'e' holds NaN or Inf"):
        calibrate(model, ["x", "e"], feeds, method)
    with pytest.raises(InputError, match="an earlier sample: the tensor 'e' holds NaN or Inf"):
        calibrate(model, ["x", "e", "t"], feeds, method, checkpoint=tmp_path / "kept")


@pytest.mark.parametrize("target", ["int8", "int4"])
@pytest.mark.parametrize("data", [True, False])
def test_weights_next_to_nothing_stay_in_float(tmp_path: Path, target: str, data: bool) -> None:
    source = model_with(tmp_path / "m.onnx", {"all": 1e-39}, "w3")
    np.savez(tmp_path / "data.npz", x=rows(24))
    found = memoptc.compile(
        source, 2, target, calibration=tmp_path / "data.npz" if data else None, measure=False, verify="fast"
    )
    found.save(tmp_path / "out.onnx")
    before, after = (Evaluator(tmp_path / name).run({"x": rows(4, 9)})["y"] for name in ("m.onnx", "out.onnx"))
    scale = np.float64(np.abs(before).max())
    assert scale > 0
    assert float(np.abs(np.float64(after) - before).max()) < 0.2 * scale


@pytest.mark.parametrize("element", [t for t in onnx_ir.DataType if t.is_floating_point() and "FLOAT6" not in t.name])
def test_magnitudes_of_all_element_types(element: onnx_ir.DataType) -> None:
    """Also of one that has no zero, as scales of blocks have."""
    for content, wanted in (([0.5, 4.0], 4.0), (2.0, 2.0), ([], 0.0)):
        weight = onnx_ir.Tensor(np.array(content).astype(element.numpy()), dtype=element)
        assert magnitude_of(weight) == wanted
