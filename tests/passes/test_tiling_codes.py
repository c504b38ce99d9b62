"""Tiles of quantized nets stay on integers, also where only the run knows the extents and tiles stand in a branch."""

from __future__ import annotations

import numpy as np
from runtime_models import normal, parse

from memoptc.api import compile as compile_model

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
