"""What the driver of rules refuses: rules that chase each other, change before they decline, or give another type."""

from __future__ import annotations

import pytest
from rewriting import graph_of, kinds, run

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.types import DType
from memoptc.rewrite import NoMatch, op, rewrite


def test_roots_that_share_nothing_are_no_rule() -> None:
    with pytest.raises(TypeError, match="Abs shares nothing"):

        @rewrite(op.Neg("x"), op.Abs("y"))
        def apart(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
            return x, y


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


def test_captures_are_checked_when_the_rule_is_made() -> None:
    with pytest.raises(TypeError, match="captures no 'z'; it captures x"):

        @rewrite(op.Relu("x"))
        def misspelt(b: Builder, z: Value) -> Value:
            return z

    with pytest.raises(TypeError, match="capture 'y' is not used"):

        @rewrite(op.Add("x", "y"))
        def forgotten(b: Builder, x: Value) -> Value:
            return x

    with pytest.raises(TypeError, match="'conv' is bound to Op, not Value"):

        @rewrite(op.Conv("_x", "_w", bind="conv"))
        def mistyped(b: Builder, conv: Value) -> Value:
            return conv


def test_rules_that_grow_the_graph_are_stopped() -> None:
    @rewrite(op.Sin("x"))
    def deeper(b: Builder, x: Value) -> Value:
        return b.Sin(b.Neg(x))

    with pytest.raises(InternalError, match="without end: deeper"):
        run(graph_of(lambda b, x, y: b.Sin(x)), deeper)


def test_another_shape_is_declined_since_models_state_wrong_ones() -> None:
    @rewrite(op.Neg("x"))
    def turn(b: Builder, x: Value) -> Value:
        return b.Transpose(x, perm=[1, 0])

    graph = graph_of(lambda b, x, y: b.Neg(x))
    assert run(graph, turn)[1] == {"turn: another shape": 1}
    assert kinds(graph) == ["Neg"]


def test_a_change_before_a_decline_is_a_fault_of_the_rule() -> None:
    @rewrite(op.LeakyRelu("_x", bind="node"))
    def hasty(b: Builder, node: Op) -> Value:
        node.set_attr("alpha", 2.0)
        raise NoMatch("too late")

    with pytest.raises(InternalError, match=r"hasty declined \(too late\) after it had changed the graph"):
        run(graph_of(lambda b, x, y: b.LeakyRelu(x, alpha=0.5)), hasty)


def test_building_on_what_is_replaced_is_a_fault_of_the_rule() -> None:
    @rewrite(op.Neg("_x", bind="node"))
    def ouroboros(b: Builder, node: Op) -> Value:
        return b.Relu(node.result)

    with pytest.raises(InternalError, match="ouroboros builds on"):
        run(graph_of(lambda b, x, y: b.Neg(x)), ouroboros)


def test_operators_that_do_not_exist_are_refused_at_import() -> None:
    with pytest.raises(AttributeError, match="no operator 'Reluu'; did you mean Relu"):
        op.Reluu("x")
    assert op.domain("org.example").Reluu("x").keys == ("org.example::Reluu",)
