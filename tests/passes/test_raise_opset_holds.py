"""What raise-opset converts gives the same numbers under every extent, or stays in its opset."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import helper
from samplers import SAMPLERS, Sampler, instance

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.pass_base import Context
from memoptc.passes.simplify.raise_opset import RaiseOpset
from memoptc.runtime import same_outputs
from memoptc.runtime.evaluate import Evaluator, RunOptions

UNOPTIMIZED = RunOptions(optimize=False)
SEEDS, NIGHTLY_SEEDS = 4, 300
CHANGED = (
    "resize",
    "upsample",
    "pool",
    "slice_",
    "pad",
    "softmax",
    "top_k",
    "batch_norm",
    "clip",
    "dropout",
    "scatter",
)
"""Samplers of operators that mean, or say, something else in later opsets."""


def _sampler(name: str) -> Sampler:
    return next(s for samplers in SAMPLERS.values() for s in samplers if s.__name__ == name)


def _converted(graph: Graph) -> bool:
    stats: Counter[str] = Counter()
    RaiseOpset().apply(graph, stats, Context())
    return bool(stats["opsets raised"])


def _hold(name: str, seeds: range) -> int:
    counted = 0
    for seed in seeds:
        r = np.random.default_rng(seed)
        sample = _sampler(name)(r)
        if sample.opset > 10:
            continue
        made = instance(sample, r)
        made.model.graph.output.extend(helper.make_empty_tensor_value_info(v) for v in made.values)
        try:
            before = Evaluator(made.model, UNOPTIMIZED)
        except MemoptcError:
            continue
        graph = read_onnx(made.model)
        if not _converted(graph):
            continue
        after = Evaluator(to_proto(graph), UNOPTIMIZED)
        for feed in made.feeds:
            try:
                expected = before.run(feed)
            except MemoptcError:
                continue
            found = after.run(feed)
            shapes = {k: v.shape for k, v in feed.items()}
            for key, value in expected.items():
                assert value.shape == found[key].shape, (seed, key, shapes)
                np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=f"{seed} {key} {shapes}")
            counted += 1
    return counted


@pytest.mark.parametrize("name", ["resize", "softmax", "clip"])
def test_conversions_hold(name: str) -> None:
    _hold(name, range(SEEDS))


@pytest.mark.nightly
@pytest.mark.parametrize("name", CHANGED)
def test_conversions_hold_at_length(name: str) -> None:
    assert _hold(name, range(1000, 1000 + NIGHTLY_SEEDS))


@pytest.mark.parametrize(
    ("scales", "converts"), [((0.6, 0.6), True), ((1.0, 0.6), True), ((1.3, 2.6), True), ((0.6, 2.0), False)]
)
def test_a_resize_to_the_nearest_of_opset_10(scales: tuple[float, float], converts: bool) -> None:
    text = f"%s = const() {{value=[1.0,1.0,{scales[0]},{scales[1]}]}} : f32[4]\n%y0 = Resize(%x0, %s)"
    head = 'model {opset={""=10}}\ngraph @g(%x0: f32[1,1,7,N]) -> (f32[*]) {'
    model = to_proto(parse(f"{head}\n{text}\nreturn %y0\n}}"))
    graph = read_onnx(model)
    assert _converted(graph) == converts
    before, after = Evaluator(model, UNOPTIMIZED), Evaluator(to_proto(graph), UNOPTIMIZED)
    name = next(iter(before.outputs))
    for extent in range(1, 20):
        feed = {"x0": np.arange(extent * 7, dtype=np.float32).reshape(1, 1, 7, extent)}
        try:
            expected = before.run(feed)[name]
        except MemoptcError:
            continue
        np.testing.assert_allclose(after.run(feed)[name], expected, rtol=1e-6)


@pytest.mark.parametrize("rank", ["f32[*]", "f32[N,3,8,8]"])
def test_trials_that_may_end_the_process_run_apart(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = same_outputs.isolated.ask
    monkeypatch.setattr(same_outputs.isolated, "ask", lambda *a: asked.append(a[0]) or real(*a))
    head = f'model {{opset={{""=9}}}}\ngraph @g(%x: {rank}) -> (f32[*]) {{'
    weight = "%w = const() {value=splat(0.5)} : f32[4,3,3,3]"
    graph = read_onnx(to_proto(parse(f"{head}\n{weight}\n%y = Conv(%x, %w)\nreturn %y\n}}")))
    assert _converted(graph) == (rank != "f32[*]")  # no inputs are found without the rank
    assert bool(asked) == (rank == "f32[*]")
