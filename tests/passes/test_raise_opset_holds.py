"""What raise-opset converts gives the same numbers under every extent, or stays in its opset."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fuzzing import difference, log
from onnx import helper
from samplers import SAMPLERS, Sampler, instance
from shape_oracle import deviates

from memoptc import compile
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.pass_base import Context
from memoptc.passes.simplify.raise_opset import RaiseOpset
from memoptc.runtime import same_outputs
from memoptc.runtime.evaluate import Evaluator, RunOptions
from memoptc.testing import run_pass

UNOPTIMIZED = RunOptions(optimize=False)
SEEDS, NIGHTLY_SEEDS, NIGHTLY_INSTANCES = 4, 60, 600
FROM, TO = range(7, 24), (11, 13, 15, 18, 19, 21, 22, 23, 24)
"""Opsets that models come from and go to."""
FAMILIES = sorted(SAMPLERS.keys() - {"contrib"})


def _converted(graph: Graph) -> bool:
    stats = run_pass(RaiseOpset(), graph, Context())
    return bool(stats["opsets raised"])


def _try(sampler: Sampler, seed: tuple[int, ...], counts: Counter[str]) -> str:
    """Raise an instance from any opset to any later one; says what is then different, "" when nothing is."""
    r = np.random.default_rng(seed)
    sample = sampler(r)
    if r.random() < 0.5:  # what onnxruntime refuses is no model
        sample.opset = int(r.choice(FROM))
    later = [to for to in TO if to > sample.opset]
    if sample.random or not later:
        return ""
    to = int(r.choice(later))
    made = instance(sample, r)
    made.model.graph.output.extend(helper.make_empty_tensor_value_info(v) for v in made.values)
    try:
        before = Evaluator(made.model, UNOPTIMIZED)
        before.run(made.feeds[0])
    except MemoptcError:
        return ""
    result = compile(made.model, passes=f"raise-opset{{to={to},below={to}}}", verify="off", measure=False)
    counts[f"{sample.op_type} {sample.opset}"] += 1
    if next(i.version for i in result.model.opset_import if not i.domain) != to:
        counts["stayed"] += 1
        return ""
    counts["raised"] += 1
    after = Evaluator(result.model, UNOPTIMIZED)
    graph = read_onnx(made.model)
    for feed in made.feeds:
        if any(deviates(op, feed) for op in graph.ops):
            continue
        try:
            expected = before.run(feed)
        except MemoptcError:
            continue
        if what := difference(expected, after, feed):
            shapes = {k: np.shape(v) for k, v in feed.items()}
            return f"{sample.op_type} {seed} {sample.opset} to {to}: {what} on {shapes}"
    return ""


def _hold(family: str, seeds: range) -> Counter[str]:
    counts: Counter[str] = Counter()
    samplers = list(enumerate(SAMPLERS[family]))
    faults = [f for seed in seeds for i, sampler in samplers if (f := _try(sampler, (seed, i), counts))]
    log({"raised": family, "seeds": [seeds[0], seeds[-1]], "counts": counts, "faults": faults})
    assert not faults, "\n".join(faults)
    return counts


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_conversions_hold(family: str) -> None:
    seeds = min(NIGHTLY_SEEDS, NIGHTLY_INSTANCES // len(SAMPLERS[family]))
    counts = _hold(family, range(1000, 1000 + seeds))
    assert counts["raised"] > counts["stayed"]


@pytest.mark.parametrize("name", ["resize", "softmax", "clip", "dropout"])
def test_conversions_hold_for_some(name: str) -> None:
    counts: Counter[str] = Counter()
    sampler = next(s for samplers in SAMPLERS.values() for s in samplers if s.__name__ == name)
    assert not [f for seed in range(SEEDS) if (f := _try(sampler, (seed,), counts))]
    assert counts


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
    assert _converted(graph)  # where no rank is declared, that of the weight is found by trying
    assert bool(asked) == (rank == "f32[*]")


def test_the_mask_of_a_dropout_keeps_its_type() -> None:
    """Numbers before opset 10, truth values from there on."""
    nodes = [helper.make_node("Dropout", ["x"], ["y", "mask"])]
    inputs = [helper.make_tensor_value_info("x", 1, ["n", 4])]
    outputs = [helper.make_empty_tensor_value_info(n) for n in ("y", "mask")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 9)], ir_version=7
    )
    assert not _converted(read_onnx(model))


def test_bodies_state_the_types_that_they_stated() -> None:
    """What a Loop collects in no trips at all has the shape that its body states."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["a"], ["item"])],
        "body",
        [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("d", 9, []), helper.make_empty_tensor_value_info("item")],
    )
    nodes = [helper.make_node("Loop", ["n", "go"], ["y"], body=body)]
    inputs = [helper.make_tensor_value_info("n", 7, []), helper.make_tensor_value_info("a", 1, ["k", 3])]
    weights = [helper.make_tensor("go", 9, [], [True])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    raised = compile(model, passes="raise-opset{to=18,below=18}", verify="off", measure=False).model
    assert raised.opset_import[0].version == 18
    feed = {"n": np.asarray(0), "a": np.zeros((2, 3), np.float32)}
    assert not difference(Evaluator(model, UNOPTIMIZED).run(feed), Evaluator(raised, UNOPTIMIZED), feed)


def test_an_infinity_hides_no_other_difference() -> None:
    one, two = np.array([np.inf, 1.0, np.nan]), np.array([np.inf, 999.0, np.nan])
    assert same_outputs._unlike(one, two, 1e-4) == "other numbers"
    assert same_outputs._unlike(one, one.copy(), 1e-4) is None
    assert same_outputs._unlike(one, np.array([-np.inf, 1.0, np.nan]), 1e-4) == "other numbers"
