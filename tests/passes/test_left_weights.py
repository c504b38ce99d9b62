"""Weights that integers have no form for, or that several nodes read: codes are stored once, and never come on top."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numbers_of import Feed, run
from runtime_models import normal, parse

from memoptc.ir.core import Graph
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.pass_base import Context
from memoptc.passes.precision.quantize import Quantize
from memoptc.passes.precision.quantize_search import QuantizeSearch
from memoptc.passes.simplify.drop_dead import DropDead
from memoptc.runtime.data import Data

BRANCHES = (
    "g (bool c, float[4, 64] x) => (float[4, 64] y) { h = MatMul(x, w) y = If (c) <"
    "then_branch = t () => (float[4, 64] a) { a = MatMul(h, w) }, "
    "else_branch = e () => (float[4, 64] b) { b = MatMul(h, v) }> }"
)
TWICE = "g (float[4, 64] x) => (float[4, 64] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }"
TIED = (
    "g (int64[N] i) => (float[N, 512] y) "
    "{ a = Gather(table, i) h = MatMul(a, w) t = Transpose <perm=[1, 0]> (table) y = MatMul(h, t) }"
)
BESIDE = "g (float[4, 64] x) => (float[4, 64] y) { h = MatMul(x, w) s = ReduceMax <keepdims=1> (w) y = Add(h, s) }"
STEPS = (
    "g (float[9, 2, 32] x) => (float[9, 1, 2, 64] y) "
    "{ y, last = GRU <hidden_size=64, linear_before_reset=1> (x, gw, gr) }"
)
WEIGHTS = {
    "w": normal(64, 64, seed=1, scale=0.125),
    "v": normal(64, 64, seed=2, scale=0.125),
    "table": normal(512, 64, seed=3),
    "gw": normal(1, 192, 32, seed=4, scale=0.2),
    "gr": normal(1, 192, 64, seed=5, scale=0.125),
}


def model(text: str) -> onnx.ModelProto:
    return parse(text, **{k: v for k, v in WEIGHTS.items() if f"{k})" in text or f"{k}," in text})


def feeds(text: str) -> list[Feed]:
    rng = np.random.default_rng(6)
    found: list[Feed] = []
    for index in range(6):
        given: Feed = {"x": rng.normal(size=(9, 2, 32) if text is STEPS else (4, 64)).astype(np.float32)}
        given |= {"c": np.array(index % 2 == 0), "i": rng.integers(0, 512, 5)}
        found.append({k: v for k, v in given.items() if f" {k})" in text.split("=>")[0] or f" {k}," in text})
    return found


def weight_bytes(graph: Graph) -> int:
    return sum(op.result.tensor.nbytes for op in graph.walk("const") if op.result.has_uses)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(("text", "most"), [(BRANCHES, 0.3), (TWICE, 0.3), (TIED, 0.3), (STEPS, 0.3), (BESIDE, 1.0)])
def test_codes_are_stored_once(text: str, most: float, calibrated: bool, tmp_path: Path) -> None:
    graph = read_onnx(model(text))
    infer_shapes(graph)
    data = feeds(text)
    before = weight_bytes(graph)
    context = Context(calibration=Data(data, {v.name: v.type for v in graph.inputs}), scratch=tmp_path)
    if calibrated:
        QuantizeSearch(min_sqnr=25.0, recover=False).run(graph, context)
    else:
        Quantize(form="dynamic").run(graph, Context())
    DropDead().run(graph, Context())
    assert weight_bytes(graph) <= most * before
    wanted, found = (run(g, data[0]) for g in (read_onnx(model(text)), graph))
    assert wanted is not None
    assert found is not None
    error = np.square(wanted["y"] - found["y"]).mean() / np.square(wanted["y"]).mean()
    assert error < 10**-2.5
