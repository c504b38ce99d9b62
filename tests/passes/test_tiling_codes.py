"""Tiles of quantized nets stay on integers, also where only the run knows the extents and tiles stand in a branch."""

from __future__ import annotations

import numpy as np
from runtime_models import normal, parse

from memoptc.api import compile as compile_model
from memoptc.runtime.evaluate import Evaluator, RunOptions

TEXT = (
    "g (float[1, 1, h, w] x) => (float[1, 1, h, w] y) { "
    "a = Conv <pads=[2, 2, 2, 2]> (x, w1, b1) b = Relu(a) c = Conv <pads=[1, 1, 1, 1]> (b, w2, b2) d = Relu(c) "
    "y = Conv <pads=[1, 1, 1, 1]> (d, w3, b3) }"
)


def test_convolutions_in_branches_run_on_integers() -> None:
    weights = {
        "w1": normal(16, 1, 5, 5, seed=1, scale=0.2),
        "b1": normal(16, seed=2, scale=0.1),
        "w2": normal(16, 16, 3, 3, seed=3, scale=0.1),
        "b2": normal(16, seed=4, scale=0.1),
        "w3": normal(1, 16, 3, 3, seed=5, scale=0.1),
        "b3": normal(1, seed=6, scale=0.1),
    }
    feeds = [{"x": np.random.default_rng(i).normal(size=(1, 1, 96, 96)).astype(np.float32)} for i in range(3)]
    # 1.7 MB untiled, scratch of integer kernels included; forced, as nodes outweigh activations in so small a model
    found = compile_model(
        parse(TEXT, 13, **weights), 2, "int8", calibration=feeds, memory_budget="activations=500000", force=True
    )
    branches = list(found.graph.walk("If"))
    assert branches
    kernels = found.report.kernels
    assert kernels is not None
    assert kernels["integer"]["QLinearConv"] > 6
    assert not kernels["heavy_float"]
    assert not kernels["fallbacks"]
    # weights are stored once for both branches
    assert found.report.candidate.weight_bytes < 0.35 * found.report.control.weight_bytes
    assert found.report.verification["passed"]


def test_products_in_branches_decode_their_own_codes() -> None:
    """onnxruntime's optimizer refuses a model whose branches take codes of products from around them."""
    text = (
        "g (float[n, s, 64] x) => (float[n, s, 64] y) { "
        "a = Sigmoid(x) b = MatMul(a, w) c = Neg(b) d = MatMul(c, v) y = Add(d, a) }"
    )
    w = normal(64, 96, seed=1, scale=0.125)
    model = parse(text, 13, w=w, v=np.ascontiguousarray(w.T))
    # forced, as a branch weighs more than 16 rows of activations
    found = compile_model(model, 3, "mixed", verify="off", measure=False, force=True)
    (branch,) = found.graph.walk("If")
    assert [op for op in branch.walk() if op.is_a("DequantizeLinear")]
    feed = {"x": normal(2, 3, 64, seed=3)}
    one, two = (Evaluator(found.model, RunOptions(optimize=o)).run(feed)["y"] for o in (True, False))
    np.testing.assert_allclose(one, two, rtol=0, atol=0.1)
