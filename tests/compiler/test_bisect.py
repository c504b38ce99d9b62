"""Bisection finds a planted wrong pass, and the one wrong rewrite in it, from numbers alone."""

from __future__ import annotations

import numpy as np
import pytest

from memoptc import registry
from memoptc.bisect import bisect
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import parse as pipeline
from memoptc.rewrite import NoMatch, RulePass, counted, limit_rewrites, op, rewrite
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

NODES = 40


@rewrite(op.Add("x", "x"))
def add_to_double(b: Builder, x: Value) -> Value:
    return b.Mul(x, b.const(np.float32(2)))


@rewrite(op.Neg(op.Neg("x")), name="neg-neg")
def forget_negs(b: Builder, x: Value) -> Value:
    return x


@rewrite(op.Mul("x", "_c", bind="node"))
def half_wrong(b: Builder, x: Value, node: Op) -> Value:
    """Right everywhere but at one place."""
    if node.attrs:
        raise NoMatch("no")
    wrong = "n28" in node.loc.nodes
    return b.Add(x, b.Neg(x)) if wrong else b.Sum(x, x)


class Double(RulePass):
    rules = (add_to_double, forget_negs)


class HalfWrong(RulePass):
    rules = (half_wrong,)


class ByHand(Pass):
    """Counts its changes itself; the third is wrong."""

    def run(self, graph: Graph, context: Context) -> None:
        for node in list(graph.walk("Sum")):
            if not counted(f"split {node.result.name}"):
                continue
            context.stats["split"] += 1
            b = Builder(graph, before=node)
            x = node.operand
            node.result.replace_by(b.Add(x, b.Neg(x) if context.stats["split"] == 3 else x))
            node.erase()


class Uncounted(Pass):
    def run(self, graph: Graph, context: Context) -> None:
        node = next(graph.walk("Sum"))
        node.result.replace_by(node.operand)


class Idle(Pass):
    def run(self, graph: Graph, context: Context) -> None:
        pass


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[type[Pass]] = [Double, HalfWrong, ByHand, Uncounted, Idle]
    monkeypatch.setattr(registry, "_plugins", {p.name: p for p in made})


@pytest.fixture
def original() -> Graph:
    lines = ["graph @chain(%v0: f32[4]) -> (f32[4]) {"]
    for i in range(NODES):
        kind = f"Add(%v{i}, %v{i})" if i % 3 else f"Neg(%v{i})"
        lines.append(f'  %v{i + 1} = {kind} : f32[4] loc("n{i}")')
    return parse("\n".join([*lines, f"  return %v{NODES}", "}"]))


def numbers(graph: Graph) -> np.ndarray:
    model = Evaluator(to_proto(graph).SerializeToString(), RunOptions(), blame=InternalError)
    (value,) = model.run({"v0": np.linspace(-1, 1, 4, dtype=np.float32)}).values()
    return np.asarray(value)


def test_the_pass_and_the_rewrite_are_found(original: Graph) -> None:
    wanted, looked = numbers(original), 0

    def good(graph: Graph) -> bool:
        nonlocal looked
        looked += 1
        return bool(np.allclose(numbers(graph), wanted, rtol=1e-5, atol=1e-6))

    found = bisect(original, pipeline("idle,double,(idle)*,half-wrong,idle,idle,idle"), good)
    assert isinstance(found.pass_, HalfWrong)
    assert found.index == 3
    assert "half-wrong at Mul %v29" in found.rewrite
    assert str(found) == f"pass half-wrong, rewrite {found.rewrite}"
    assert looked < 16


def test_passes_that_count_by_hand_are_looked_into(original: Graph) -> None:
    wanted = numbers(original)
    steps = pipeline("double,by-hand")
    for node in list(original.walk("Add")):
        b = Builder(original, before=node, loc=node.loc)
        node.result.replace_by(b.Sum(node.operand, node.operand))
        node.erase()
    found = bisect(original, steps, lambda g: bool(np.allclose(numbers(g), wanted)))
    assert isinstance(found.pass_, ByHand)
    assert found.rewrite.startswith("3 of ")


def test_a_pass_that_counts_nothing_is_named_alone(original: Graph) -> None:
    wanted = numbers(original)
    for node in list(original.walk("Add"))[:1]:
        b = Builder(original, before=node)
        node.result.replace_by(b.Sum(node.operand, node.operand))
        node.erase()
    found = bisect(original, pipeline("idle,uncounted"), lambda g: bool(np.allclose(numbers(g), wanted)))
    assert str(found) == "pass uncounted"


def test_nothing_wrong_or_wrong_from_the_start_has_no_culprit(original: Graph) -> None:
    for answer in (True, False):
        found = bisect(original, pipeline("double,idle"), lambda g, answer=answer: answer)  # type: ignore[misc]
        assert found.pass_ is None
        assert str(found) == "nothing"


def test_what_does_not_run_any_more_counts_as_wrong(original: Graph) -> None:
    def good(graph: Graph) -> bool:
        if any(o.op_type == "Mul" for o in graph.ops):
            raise InternalError("onnxruntime cannot load it")
        return True

    found = bisect(original, pipeline("idle,double"), good)
    assert isinstance(found.pass_, Double)
    assert found.rewrite.startswith("1 of ")


def test_limits_nest_and_end_with_their_block(original: Graph) -> None:
    with limit_rewrites(1) as outer:
        assert counted("a")
        assert not counted("b")
        with limit_rewrites(2) as inner:
            assert counted("c")
        assert not counted("d")
    assert counted("e")
    assert (outer, inner) == (["a"], ["c"])
