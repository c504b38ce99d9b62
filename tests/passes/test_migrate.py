"""equalize and smooth: outputs keep their bits, and 8-bit codes afterwards err less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.core import Graph
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.pass_base import Context
from memoptc.passes.precision.equalize import Equalize
from memoptc.passes.precision.quantize import Quantize
from memoptc.passes.precision.smooth import Smooth
from memoptc.runtime.data import Data
from memoptc.testing import run_pass

Feed = dict[str, np.ndarray]


def run(model: onnx.ModelProto, feeds: list[Feed], *, optimize: bool = False) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.concatenate([o.ravel() for o in session.run(None, feed)]) for feed in feeds]


def sqnr(wanted: list[np.ndarray], got: list[np.ndarray]) -> float:
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in wanted)
    return float(10 * np.log10(signal / sum(float(np.square(a - b).sum()) for a, b in zip(wanted, got, strict=True))))


def read(model: onnx.ModelProto) -> Graph:
    graph = read_onnx(model)
    infer_shapes(graph)
    return graph


def context(graph: Graph, feeds: list[Feed], folder: Path) -> Context:
    return Context(calibration=Data(feeds, {v.name: v.type for v in graph.inputs}), scratch=folder)


def norm_and_products(rng: np.random.Generator) -> onnx.ModelProto:
    """LayerNormalization with two loud channels, two products that read it, a third that reads the input."""
    gain = np.ones(32, np.float32)
    gain[[3, 17]] = 60.0
    tensors = {"gain": gain, "shift": rng.normal(size=32).astype(np.float32)}
    for name in ("w1", "w2", "w3"):
        tensors[name] = rng.normal(size=(32, 16)).astype(np.float32)
    # what reads loud channels has small weights, as trained models do
    for name in ("w1", "w2"):
        tensors[name][[3, 17]] /= 60.0
    tensors["w3"][5] /= 80.0
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"]),
        helper.make_node("MatMul", ["n", "w1"], ["a"]),
        helper.make_node("MatMul", ["n", "w2"], ["b"]),
        helper.make_node("MatMul", ["x", "w3"], ["c"]),
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["ab", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def loud_inputs(rng: np.random.Generator, count: int) -> list[Feed]:
    feeds = []
    for _ in range(count):
        x = rng.normal(size=(8, 32)).astype(np.float32)
        x[:, 5] *= 80.0
        feeds.append({"x": x})
    return feeds


def test_smooth_keeps_every_bit_and_makes_codes_better(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model, feeds = norm_and_products(rng), loud_inputs(rng, 24)
    wanted = run(model, feeds[16:])
    graph = read(model)
    facts = context(graph, feeds[:16], tmp_path)
    stats = run_pass(Smooth(), graph, facts)
    assert stats["moved before MatMul"] == 2
    assert stats["Mul put in"] == 1
    assert "factors per channel moved at 2 places" in facts.decisions[0].what
    for a, b in zip(wanted, run(to_proto(graph), feeds[16:]), strict=True):
        np.testing.assert_array_equal(a, b)

    plain = read(model)
    run_pass(Quantize(), plain, context(plain, feeds[:16], tmp_path))
    run_pass(Quantize(), graph, facts)
    before, after = (sqnr(wanted, run(to_proto(g), feeds[16:])) for g in (plain, graph))
    assert after > before + 6.0


def test_smooth_puts_nothing_in_when_told_not_to(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    graph = read(norm_and_products(rng))
    stats = run_pass(Smooth(insert=0), graph, context(graph, loud_inputs(rng, 4), tmp_path))
    assert stats["Mul put in"] == 0
    assert stats["moved before MatMul"] == 1


def uneven_convolutions(rng: np.random.Generator) -> onnx.ModelProto:
    """Filters whose results differ a hundredfold, as batch normalization leaves them once folded in."""
    spread = 10.0 ** rng.uniform(-1, 1, 16)
    first = (rng.normal(size=(16, 3, 3, 3)) * spread.reshape(-1, 1, 1, 1)).astype(np.float32)
    second = (rng.normal(size=(8, 16, 3, 3)) / spread.reshape(1, -1, 1, 1)).astype(np.float32)
    tensors = {"w": first, "b": (rng.normal(size=16) * spread).astype(np.float32), "v": second}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 8])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("blind", [False, True])
def test_equalize_keeps_every_bit_and_makes_codes_better(blind: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    model = uneven_convolutions(rng)
    feeds = [{"x": rng.normal(size=(1, 3, 12, 12)).astype(np.float32)} for _ in range(12)]
    wanted = run(model, feeds[8:])
    graph = read(model)
    facts = context(graph, feeds[:8], tmp_path)
    if blind:
        stats = run_pass(Equalize(), graph)
    else:
        stats = run_pass(Equalize(), graph, facts)
    assert stats["moved before Conv"] == 1
    for a, b in zip(wanted, run(to_proto(graph), feeds[8:]), strict=True):
        np.testing.assert_array_equal(a, b)

    plain = read(model)
    run_pass(Quantize(), plain, context(plain, feeds[:8], tmp_path))
    run_pass(Quantize(), graph, facts)
    before, after = (sqnr(wanted, run(to_proto(g), feeds[8:])) for g in (plain, graph))
    assert after > before + 3.0


@pytest.mark.parametrize("name", ["blazeface_front128", "yunet_n_dynamic", "tabular_ft"])
def test_real_models_keep_every_bit(name: str, tmp_path: Path) -> None:
    if zoo.ZOO is None:
        pytest.skip("no zoo of real models (set MEMOPTC_ZOO)")
    model = onnx.load(zoo.ZOO.path(name))
    feeds = zoo.ZOO.samples(name, 12)[0]
    graph = read(model)
    facts = context(graph, feeds[:8], tmp_path)
    stats = run_pass(Equalize(), graph, facts) + run_pass(Smooth(), graph, facts)
    assert sum(n for key, n in stats.items() if key.startswith("moved")) >= 1
    for a, b in zip(run(model, feeds[8:]), run(to_proto(graph), feeds[8:]), strict=True):
        np.testing.assert_array_equal(a, b)
