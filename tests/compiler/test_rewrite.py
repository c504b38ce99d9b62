"""The rewrite engine: what patterns fit, what the driver guarantees, how rules fail."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op, Output, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite import NoMatch, Rule, apply_rules, const, limit_rewrites, op, opt, rest, rewrite

F32 = TensorType(DType.FLOAT, (2, 3))


def graph_of(build: Any) -> Graph:
    """A graph with inputs x and y; `build(b, x, y)` gives its outputs."""
    graph = Graph("g", ModelInfo())
    x, y = graph.add_input("x", F32), graph.add_input("y", F32)
    outputs = build(Builder(graph), x, y)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    graph.set_outputs(outputs, [Output(f"out{i}", v.type) for i, v in enumerate(outputs)])
    return graph


def kinds(graph: Graph) -> list[str]:
    return [o.op_type for o in graph.ops if not o.is_const]


def run(graph: Graph, *rules: Rule) -> tuple[Counter[str], Counter[str]]:
    stats: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    apply_rules(graph, rules, stats, declined)
    return stats, declined


@rewrite(op.Relu(op.Relu("x")))
def relu_twice(b: Builder, x: Value) -> Value:
    return b.Relu(x)


def test_a_chain_collapses_and_keeps_the_name_and_the_origin() -> None:
    graph = graph_of(lambda b, x, y: b.Relu(b.Relu(b.Relu(x, _name="p"), _name="q"), _name="r"))
    stats, _ = run(graph, relu_twice)
    (left,) = graph.ops
    assert stats == {"relu-twice": 2}
    assert left.result.name == "r"
    assert left.loc.rules == ("relu-twice",)
    assert left.result.type == F32


def test_inner_results_with_other_users_are_left_alone() -> None:
    def build(b: Builder, x: Value, y: Value) -> tuple[Value, ...]:
        inner = b.Relu(x)
        return b.Relu(inner), b.Neg(inner)

    graph = graph_of(build)
    stats, declined = run(graph, relu_twice)
    assert not stats
    assert declined == {"relu-twice: an inner result has other users": 1}


@rewrite(op.Add(op.MatMul("a", "b_", bind="product"), "c"))
def add_into(b: Builder, a: Value, b_: Value, c: Value, product: Op) -> Value:
    return b.Gemm(a, b_, c)


@pytest.mark.parametrize("flip", [False, True])
def test_commutative_operators_match_both_ways(flip: bool) -> None:
    def build(b: Builder, x: Value, y: Value) -> Any:
        product = b.MatMul(x, b.Transpose(y, perm=[1, 0]))
        bias = b.const(np.ones((2, 2), np.float32))
        return b.Add(bias, product) if flip else b.Add(product, bias)

    graph = graph_of(build)
    run(graph, add_into)
    assert kinds(graph) == ["Transpose", "Gemm"]


def test_a_decline_leaves_nothing_behind() -> None:
    @rewrite(op.Neg("x"))
    def change_of_mind(b: Builder, x: Value) -> Value:
        b.FusedMatMul(x, b.const(np.ones((3, 3), np.float32)))
        raise NoMatch("thought better of it")

    graph = graph_of(lambda b, x, y: b.Neg(x))
    before = [o.op_type for o in graph.ops]
    stats, declined = run(graph, change_of_mind)
    assert [o.op_type for o in graph.ops] == before
    assert graph.info.opset_imports == {"": 21}
    assert not stats
    assert declined == {"change-of-mind: thought better of it": 1}


def test_attributes_count_with_their_defaults() -> None:
    @rewrite(op.Softmax("x", attrs={"axis": -1}))
    def last_axis(b: Builder, x: Value) -> Value:
        return b.Identity(x)

    graph = graph_of(lambda b, x, y: (b.Softmax(x), b.Softmax(x, axis=0)))
    assert run(graph, last_axis)[0] == {"last-axis": 1}


def test_constants_by_value() -> None:
    @rewrite(op.Mul("x", const(1.0)))
    def times_one(b: Builder, x: Value) -> Value:
        return x

    def build(b: Builder, x: Value, y: Value) -> Any:
        return b.Mul(b.const(np.float32(1)), x), b.Mul(x, b.const(np.float32(2)))

    graph = graph_of(build)
    assert run(graph, times_one)[0] == {"times-one": 1}
    assert graph.outputs[0] is graph.inputs[0]


def test_optional_and_remaining_operands() -> None:
    seen: list[Any] = []

    @rewrite(op.Gemm("a", "w", opt("c")))
    def look(b: Builder, a: Value, w: Value, c: Value | None) -> Value:
        seen.append(c)
        raise NoMatch("only looking")

    @rewrite(op.Concat("first", rest("others")))
    def look_at_rest(b: Builder, first: Value, others: tuple[Value, ...]) -> Value:
        seen.append(len(others))
        raise NoMatch("only looking")

    def build(b: Builder, x: Value, y: Value) -> Any:
        turned = b.Transpose(y, perm=[1, 0])
        return b.Gemm(x, turned), b.Concat(x, y, x, axis=0)

    run(graph_of(build), look, look_at_rest)
    assert seen == [None, 2]


def test_the_same_name_twice_means_the_same_value() -> None:
    @rewrite(op.Sub("x", "x"))
    def nothing_left(b: Builder, x: Value) -> Value:
        return b.Identity(x)

    graph = graph_of(lambda b, x, y: (b.Sub(x, y), b.Sub(x, x)))
    assert run(graph, nothing_left)[0] == {"nothing-left": 1}


def test_several_roots_that_share_a_part() -> None:
    shared = op.Exp("x")

    @rewrite(op.Neg(shared), op.Abs(shared))
    def both(b: Builder, x: Value) -> tuple[Value, Value]:
        return b.Sin(x), b.Cos(x)

    def build(b: Builder, x: Value, y: Value) -> Any:
        inner = b.Exp(x)
        return b.Neg(inner), b.Abs(inner)

    graph = graph_of(build)
    assert run(graph, both)[0] == {"both": 1}
    assert kinds(graph) == ["Sin", "Cos"]


def test_a_use_between_the_roots_leaves_no_place() -> None:
    shared = op.Exp("x")

    @rewrite(op.Neg(shared), op.Abs(shared))
    def both(b: Builder, x: Value) -> tuple[Value, Value]:
        return b.Sin(x), b.Cos(x)

    def build(b: Builder, x: Value, y: Value) -> Any:
        inner = b.Exp(x)
        negated = b.Neg(inner)
        between = b.Floor(negated)
        return negated, b.Abs(inner), between

    graph = graph_of(build)
    assert run(graph, both)[1] == {"both: a result is used between the roots": 1}


def test_another_type_is_a_fault_of_the_rule() -> None:
    @rewrite(op.Neg("x"))
    def widen(b: Builder, x: Value) -> Value:
        return b.Cast(x, to=int(DType.DOUBLE))

    with pytest.raises(InternalError, match="rule widen replaces"):
        run(graph_of(lambda b, x, y: b.Neg(x)), widen)


def test_rules_that_chase_each_other_are_named() -> None:
    @rewrite(op.Sin("x"))
    def to_cos(b: Builder, x: Value) -> Value:
        return b.Cos(x)

    @rewrite(op.Cos("x"))
    def to_sin(b: Builder, x: Value) -> Value:
        return b.Sin(x)

    with pytest.raises(InternalError, match="undo each other without end: to-cos, to-sin"):
        run(graph_of(lambda b, x, y: b.Sin(x)), to_cos, to_sin)


def test_rules_work_inside_subgraphs_but_not_across() -> None:
    graph = Graph("g", ModelInfo())
    x = graph.add_input("x", F32)
    outer = graph.append(Op("Relu", [x], [F32]))
    cond = graph.add_input("cond", TensorType(DType.BOOL, ()))
    branch = Graph("then")
    inside = Builder(branch)
    branch.set_outputs([inside.op("Relu", [outer.result], type=F32).result])
    graph.append(Op("If", [cond], [F32], regions={"then_branch": branch}))
    graph.set_outputs([next(o for o in graph.ops if o.op_type == "If").result])
    assert run(graph, relu_twice)[1] == {"relu-twice: crosses a subgraph": 1}


def test_captures_are_checked_when_the_rule_is_made() -> None:
    with pytest.raises(TypeError, match="captures no 'z'; it captures x"):

        @rewrite(op.Relu("x"))
        def misspelt(b: Builder, z: Value) -> Value:
            return z

    with pytest.raises(TypeError, match="capture 'y' is not used"):

        @rewrite(op.Add("x", "y"))
        def forgotten(b: Builder, x: Value) -> Value:
            return x

    with pytest.raises(TypeError, match="'conv' is bound to a Op"):

        @rewrite(op.Conv("_x", "_w", bind="conv"))
        def mistyped(b: Builder, conv: Value) -> Value:
            return conv


def test_rewrites_can_be_limited_for_bisection() -> None:
    graph = graph_of(lambda b, x, y: b.Relu(b.Relu(b.Relu(b.Relu(x)))))
    with limit_rewrites(2) as applied:
        run(graph, relu_twice)
    assert len(applied) == 2
    assert kinds(graph) == ["Relu", "Relu"]
