"""Models made to break a method of quantizing: the accuracy asked for holds on data that nothing has seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numbers_of import Feed, run
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.core import Graph
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.pass_base import Context
from memoptc.passes.precision.mix_weights import MixWeights
from memoptc.passes.precision.quantize_search import QuantizeSearch
from memoptc.passes.precision.scale_columns import ScaleColumns
from memoptc.runtime.data import Data
from memoptc.testing import run_pass

WIDTH = 64
Weights = dict[str, np.ndarray]


def outlier_channel(rng: np.random.Generator, w: Weights) -> None:
    """One column of what is read is 200 times the others."""
    w["gain"][7] = 200.0


def dead_channel(rng: np.random.Generator, w: Weights) -> None:
    """A column that is 0 for every input, and a row of weights that makes nothing."""
    w["gain"][3] = w["shift"][3] = 0.0
    w["w1"][:, 5] = 0.0


def huge_bias(rng: np.random.Generator, w: Weights) -> None:
    """A bias that no 32-bit code in steps of the product's scales can hold."""
    w["bias"][11] = 3e8


def zero_range(rng: np.random.Generator, w: Weights) -> None:
    """A tensor that is 0 everywhere, and the products of it."""
    w["gain"][:] = w["shift"][:] = 0.0


def shared_weight(rng: np.random.Generator, w: Weights) -> None:
    """Two products read one weight."""
    w["w2"] = w["w1"]


HARD = [outlier_channel, dead_channel, huge_bias, zero_range, shared_weight]


def hard(change: Callable[[np.random.Generator, Weights], None]) -> tuple[onnx.ModelProto, list[Feed], list[Feed]]:
    """A norm, a product with a bias, a Relu, a second product and a residual; samples to calibrate and to judge on."""
    rng = np.random.default_rng(5)
    weights: Weights = {
        "gain": np.ones(WIDTH, np.float32),
        "shift": rng.normal(size=WIDTH).astype(np.float32),
        "w1": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8,
        "bias": rng.normal(size=WIDTH).astype(np.float32),
        "w2": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8,
    }
    change(rng, weights)
    second = "w1" if weights["w2"] is weights["w1"] else "w2"
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"]),
        helper.make_node("MatMul", ["n", "w1"], ["a"], name="first"),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("MatMul", ["r", second], ["c"], name="second"),
        helper.make_node("Add", ["c", "x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hard",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(v, k) for k, v in weights.items() if k != "w2" or second == "w2"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feeds = [{"x": rng.normal(size=(16, WIDTH)).astype(np.float32)} for _ in range(12)]
    return model, feeds[:8], feeds[8:]


def read(model: onnx.ModelProto) -> Graph:
    graph = read_onnx(model)
    infer_shapes(graph)
    return graph


def context(graph: Graph, feeds: list[Feed], folder: Path) -> Context:
    return Context(calibration=Data(feeds, {v.name: v.type for v in graph.inputs}), scratch=folder)


def decibels(model: onnx.ModelProto, graph: Graph, feeds: list[Feed]) -> float:
    """Signal to difference of a graph against the model that it was."""
    found = [[run(g, feed) for feed in feeds] for g in (read(model), graph)]
    wanted, got = (np.concatenate([outputs["y"] for outputs in each if outputs is not None]) for each in found)
    signal = np.sum(np.square(wanted, dtype=np.float64))
    return float(10 * np.log10(signal / max(np.sum(np.square(np.subtract(wanted, got, dtype=np.float64))), 1e-30)))


def codes_of(graph: Graph) -> list[int]:
    """Bytes of the constants that are large enough to be weights in 4 bits."""
    found = [op.result.tensor.nbytes for op in graph.walk("const") if op.result.has_uses]
    return [nbytes for nbytes in found if nbytes >= WIDTH * WIDTH // 2]


@pytest.mark.parametrize("change", HARD, ids=lambda change: change.__name__)
def test_int8_holds_what_was_asked(change: Callable[[np.random.Generator, Weights], None], tmp_path: Path) -> None:
    model, seen, unseen = hard(change)
    graph = read(model)
    run_pass(QuantizeSearch(min_sqnr=25.0), graph, context(graph, seen, tmp_path))
    assert decibels(model, graph, unseen) > 24.0


@pytest.mark.parametrize("change", HARD, ids=lambda change: change.__name__)
def test_int4_holds_what_was_asked(change: Callable[[np.random.Generator, Weights], None], tmp_path: Path) -> None:
    model, seen, unseen = hard(change)
    graph = read(model)
    given = context(graph, seen, tmp_path)
    run_pass(ScaleColumns(), graph, given)
    assert decibels(model, graph, unseen) > 90.0
    run_pass(MixWeights(min_sqnr=15.0, smallest=1024), graph, given)
    assert decibels(model, graph, unseen) > 14.0
    assert max(codes_of(graph), default=0) < 4 * WIDTH * WIDTH
    if change is shared_weight:
        assert len(codes_of(graph)) == 1


@pytest.mark.parametrize(("count", "looked_at"), [(1, 9), (4, 12)])
def test_few_validation_samples_are_not_gone_by_alone(count: int, looked_at: int, tmp_path: Path) -> None:
    model, seen, unseen = hard(dead_channel)
    graph = read(model)
    given = context(graph, seen, tmp_path)
    given.validation = Data(unseen[:count], {v.name: v.type for v in graph.inputs})
    MixWeights(min_sqnr=15.0, smallest=1024).run(graph, given)
    assert given.artefacts.precision is not None
    assert given.artefacts.precision.reached["samples"] == looked_at


def test_columns_that_differ_within_blocks_are_evened_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    factors = (2.0 ** rng.uniform(-3, 3, WIDTH)).astype(np.float32)

    def spread(rng: np.random.Generator, w: Weights) -> None:
        w["gain"], w["shift"], w["w1"] = w["gain"] / factors, w["shift"] / factors, w["w1"] * factors[:, None]

    model, seen, unseen = hard(spread)
    for data in (True, False):
        found = []
        for scale in (False, True):
            graph = read(model)
            given = context(graph, seen, tmp_path)
            if not data:
                given.calibration = None
            if scale:
                run_pass(ScaleColumns(observe=data), graph, given)
            run_pass(MixWeights(min_sqnr=0.0, smallest=1024, rounding=data), graph, given)
            found.append(decibels(model, graph, unseen))
        assert found[1] > found[0] + 2.0
