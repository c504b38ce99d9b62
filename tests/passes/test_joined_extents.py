"""The two arms of a U-Net of any size: joined where only a run knows that they are as large, and tiled together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from memoptc.ir.core import Graph
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import write_onnx
from memoptc.ir.parser import parse
from memoptc.pass_base import Context
from memoptc.passes.memory._tile.equal_extents import equate_joined
from memoptc.passes.memory.fit import Fit
from memoptc.runtime.memory.liveness import peak
from memoptc.testing import run_pass

UNET = """
graph @unet(%x: f32[N,3,H,W]) -> (f32[*]) {
  %w1 = const() {value=RANDOM16x3x3x3} : f32[16,3,3,3]
  %w2 = const() {value=RANDOM8x16x3x3} : f32[8,16,3,3]
  %w3 = const() {value=RANDOM8x16x2x2} : f32[8,16,2,2]
  %w4 = const() {value=RANDOM2x32x3x3} : f32[2,32,3,3]
  %a = Conv(%x, %w1) {pads=[1,1,1,1]}
  %skip = Relu(%a)
  %small = MaxPool(%skip) {kernel_shape=[2,2], strides=[2,2]}
  %smaller = MaxPool(%small) {kernel_shape=[2,2], strides=[2,2]}
  %deep = Conv(%smaller, %w2) {pads=[1,1,1,1]}
  %mean = GlobalAveragePool(%deep)
  %centred = Sub(%deep, %mean)
  %up = ConvTranspose(%centred, %w3) {strides=[2,2]}
  %inner = Concat(%small, %up) {axis=1}
  %channels = const() {value=[1]} : i64[1]
  %sum = ReduceMean(%inner, %channels) {keepdims=1}
  %mixed = Mul(%small, %sum)
  %w5 = const() {value=RANDOM16x16x2x2} : f32[16,16,2,2]
  %upper = ConvTranspose(%mixed, %w5) {strides=[2,2]}
  %both = Concat(%skip, %upper) {axis=1}
  %y = Conv(%both, %w4) {pads=[1,1,1,1]}
  return %y
}
"""
PLANNED = {"N": 1, "H": 128, "W": 64}


def unet() -> Graph:
    random = np.random.default_rng(0)
    text = UNET
    for word in sorted({word for word in text.replace("}", " ").replace("=", " ").split() if "RANDOM" in word}):
        shape = [int(n) for n in word.removeprefix("RANDOM").split("x")]
        drawn = 0.1 * random.standard_normal(np.prod(shape))
        text = text.replace(word, str([float(v) for v in drawn.astype(np.float32)]))
    graph = parse(text)
    infer_shapes(graph)
    return graph


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A U-Net, and what `fit` made of it."""
    folder, graph = tmp_path_factory.mktemp("unet"), unet()
    write_onnx(graph, folder / "whole.onnx")
    before = peak(graph, PLANNED).peak_bytes
    run_pass(Fit(slowdown=10.0, ignore=1 << 10), graph, Context(dims=PLANNED))
    write_onnx(graph, folder / "tiled.onnx")
    # The skip, and what comes up beside it, are half of what was alive: neither exists together with what joins them.
    assert peak(graph, PLANNED).peak_bytes < 0.65 * before
    return folder / "whole.onnx", folder / "tiled.onnx"


def run(path: Path, shape: tuple[int, ...], *, optimize: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    return onnxruntime.InferenceSession(str(path), options).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "shape", [(1, 3, 128, 64), (0, 3, 130, 66), (2, 3, 64, 20), (1, 3, 236, 12), (1, 3, 4, 4), (3, 3, 16, 128)]
)
@pytest.mark.parametrize("optimize", [False, True])
def test_arms_that_fit_give_the_same_numbers(
    models: tuple[Path, Path], shape: tuple[int, ...], *, optimize: bool
) -> None:
    expected, found = (run(path, shape, optimize=optimize) for path in models)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height", [129, 130, 131, 255])
def test_arms_that_do_not_fit_fail_as_before(models: tuple[Path, Path], height: int) -> None:
    for path in models:
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
            run(path, (1, 3, height, 64), optimize=True)


def test_a_joined_extent_is_the_simplest_of_the_operands() -> None:
    graph = unet()
    both = next(op for op in graph.walk("Concat") if op.result.name == "both").result
    assert str(both.type.shape[2]) not in ("H", "None")  # type: ignore[union-attr, index]
    put_in = equate_joined(graph)
    assert [str(d) for d in both.type.shape] == ["N", "32", "H", "W"]  # type: ignore[union-attr]
    assert len(put_in) == 6
    assert "H" not in put_in


def test_of_a_weight_that_was_split_only_the_parts_are_left() -> None:
    graph = unet()
    stats = run_pass(Fit(slowdown=10.0, ignore=1 << 10), graph, Context(dims=PLANNED))
    assert stats["products split"] == 1
    assert [op.result.name for op in graph.ops if op.is_const and not op.result.has_uses] == []
