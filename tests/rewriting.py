"""Graphs and rules for tests of the rewrite engine."""

from __future__ import annotations

from collections import Counter
from typing import Any

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op, Output, Value
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite import Rule, apply_rules, op, rewrite

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


@rewrite(op.Add(op.MatMul("a", "b_", bind="product"), "c"))
def add_into(b: Builder, a: Value, b_: Value, c: Value, product: Op) -> Value:
    return b.Gemm(a, b_, c)
