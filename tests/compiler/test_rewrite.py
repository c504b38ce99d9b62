"""The rewrite engine: what patterns fit, what the driver guarantees, how rules fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graphs as random_graphs
from hypothesis import given, settings
from rewriting import F32, add_into, graph_of, kinds, relu_twice, run

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op, Value
from memoptc.ir.equality import same_structure
from memoptc.ir.types import DType, TensorType
from memoptc.ir.verifier import verify
from memoptc.rewrite import NoMatch, Rule, const, limit_rewrites, op, opt, rest, rewrite


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


def test_remaining_operands_come_last() -> None:
    with pytest.raises(TypeError, match="only the last operand"):
        op.Concat(rest("some"), "x")


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


def _two_roots() -> Rule:
    shared = op.Exp("x")

    @rewrite(op.Neg(shared), op.Add(shared, "y"))
    def both(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
        return b.Sin(x), b.Mul(x, y)

    return both


def test_the_replacement_stands_before_the_first_use_of_any_root() -> None:
    def build(b: Builder, x: Value, y: Value) -> Any:
        inner = b.Exp(x)
        negated = b.Neg(inner)
        between = b.Floor(negated)
        return negated, b.Add(inner, y), between

    graph = graph_of(build)
    assert run(graph, _two_roots())[0] == {"both": 1}
    assert kinds(graph) == ["Sin", "Mul", "Floor"]
    verify(graph)


def test_a_root_that_another_root_depends_on_leaves_no_place() -> None:
    def build(b: Builder, x: Value, y: Value) -> Any:
        inner = b.Exp(x)
        negated = b.Neg(inner)
        return negated, b.Add(inner, b.Floor(negated))

    graph = graph_of(build)
    assert run(graph, _two_roots())[1] == {"both: a result is used between the roots": 1}
    verify(graph)


def test_roots_that_share_something_far_below() -> None:
    shared = op.Exp("x", keep=True)

    @rewrite(op.Neg(op.Sin(shared)), op.Abs(op.Cos(shared)))
    def far(b: Builder, x: Value) -> tuple[Value, Value]:
        return b.Ceil(x), b.Floor(x)

    def build(b: Builder, x: Value, y: Value) -> Any:
        inner = b.Exp(x)
        return b.Neg(b.Sin(inner)), b.Abs(b.Cos(inner)), inner

    graph = graph_of(build)
    assert run(graph, far)[0] == {"far": 1}
    assert kinds(graph) == ["Exp", "Ceil", "Floor"]


def test_both_results_of_one_op_may_be_roots() -> None:
    halves = op.Split("x", attrs={"axis": 0})

    @rewrite(halves.out(0), halves.out(1))
    def cut(b: Builder, x: Value) -> tuple[Value, Value]:
        return b.Neg(b.Slice(x, [0], [1], [0])), b.Slice(x, [1], [2], [0])

    def build(b: Builder, x: Value, y: Value) -> Any:
        first, second = b.Split(x, axis=0, num_outputs=2, _outputs=2)
        return b.Relu(second), b.Relu(first)

    graph = graph_of(build)
    assert run(graph, cut)[0] == {"cut": 1}
    assert sorted(kinds(graph)) == ["Neg", "Relu", "Relu", "Slice", "Slice"]
    assert graph.outputs[1].op is not None
    assert graph.outputs[1].op.operand.op is not None
    assert graph.outputs[1].op.operand.op.op_type == "Neg"
    verify(graph)


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


def test_moving_many_ops_past_many_others_is_no_endless_chase() -> None:
    @rewrite(op.Neg(op.Relu("x")))
    def sink(b: Builder, x: Value) -> Value:
        return b.Relu(b.Neg(x))

    def build(b: Builder, x: Value, y: Value) -> Any:
        for _ in range(60):
            x = b.Relu(x)
        for _ in range(60):
            x = b.Neg(x)
        return x

    graph = graph_of(build)
    assert run(graph, sink)[0] == {"sink": 3600}
    assert kinds(graph) == ["Neg"] * 60 + ["Relu"] * 60


def test_a_rewrite_deep_below_makes_a_rule_fit_above() -> None:
    @rewrite(op.Abs(op.Neg(op.Sin("x"))))
    def tall(b: Builder, x: Value) -> Value:
        return b.Cos(x)

    @rewrite(op.Floor("x"))
    def to_sin(b: Builder, x: Value) -> Value:
        return b.Sin(x)

    graph = graph_of(lambda b, x, y: b.Abs(b.Neg(b.Floor(x))))
    assert run(graph, tall, to_sin)[0] == {"to-sin": 1, "tall": 1}


def test_what_was_known_of_the_type_is_kept() -> None:
    @rewrite(op.Neg("x"))
    def unknown(b: Builder, x: Value) -> Value:
        return b.op("Mystery", [x], domain="org.example").result

    graph = graph_of(lambda b, x, y: b.Neg(x))
    run(graph, unknown)
    assert graph.outputs[0].type == F32


@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.BFLOAT16, DType.INT32])
def test_constants_of_any_number_type(dtype: DType) -> None:
    @rewrite(op.Mul("x", const(2.0)))
    def twice(b: Builder, x: Value) -> Value:
        return b.Add(x, x)

    graph = Graph("g", ModelInfo())
    x = graph.add_input("x", TensorType(dtype, (2,)))
    b = Builder(graph)
    graph.set_outputs([b.Mul(x, b.const(2, dtype=dtype))])
    assert run(graph, twice)[0] == {"twice": 1}


LIBRARY = [relu_twice, add_into, _two_roots()]


@given(random_graphs())
@settings(max_examples=40)
def test_declining_everything_changes_nothing(graph: Graph) -> None:
    """Rules that build much and then decline leave the same graph, version and text included."""

    @rewrite(op.any()(rest("operands"), bind="node"))
    def never(b: Builder, operands: tuple[Value, ...], node: Op) -> Value:
        for value in operands:
            b.Relu(b.Identity(value))
        b.FusedConv(b.const(np.ones((1, 1, 1, 1), np.float32)), b.const(np.ones((1, 1, 1, 1), np.float32)))
        raise NoMatch("never")

    before, version = graph.clone(), graph.version
    _, declined = run(graph, never)
    assert same_structure(before, graph, names=True, locations=True, notes=True) is None
    assert graph.version == version
    assert sum(declined.values()) >= sum(1 for o in graph.walk() if o.results)


@given(random_graphs())
@settings(max_examples=40)
def test_rewriting_random_graphs_keeps_them_well_formed_and_reaches_a_fixed_point(graph: Graph) -> None:
    run(graph, *LIBRARY)
    verify(graph)
    version = graph.version
    again, _ = run(graph, *LIBRARY)
    assert not again
    assert graph.version == version


def test_rewrites_can_be_limited_for_bisection() -> None:
    graph = graph_of(lambda b, x, y: b.Relu(b.Relu(b.Relu(b.Relu(x)))))
    with limit_rewrites(2) as applied:
        run(graph, relu_twice)
    assert len(applied) == 2
    assert kinds(graph) == ["Relu", "Relu"]
