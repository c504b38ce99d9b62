"""Names of values in a file: each taken once in a graph and what it sees, free again in the next region."""

from __future__ import annotations

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Output
from memoptc.ir.onnx_names import Names
from memoptc.ir.parser import parse
from memoptc.ir.types import DType, TensorType


def test_regions_side_by_side_take_the_same_names() -> None:
    branch = "_branch() -> (f32[2]) {\n %v = Neg(%x) : f32[2]\n %w = Abs(%v) : f32[2]\n return %w\n }\n"
    graph = parse(
        "graph @g(%c: bool[], %x: f32[2]) -> (f32[2]) {\n"
        f"  %y = If(%c)\n region then{branch} region else{branch}\n  return %y\n}}\n"
    )
    names = Names()
    names.assign(graph)
    (op,) = graph.walk("If")
    then, other = ([names.of[r] for inner in region.ops for r in inner.results] for region in op.regions.values())
    assert then == other
    assert not set(then) & {"c", "x", "y"}


def test_values_of_one_name_get_numbers_in_their_order() -> None:
    graph = Graph("g", ModelInfo())
    x = graph.add_input("x", TensorType(DType.FLOAT, (2,)))
    b = Builder(graph)
    for _ in range(2000):
        x = b.Neg(x)
        x.name = ""
    graph.set_outputs([x], [Output("Neg_7")])
    names = Names()
    names.assign(graph)
    found = [names.of[v] for op in graph.ops for v in op.results if op.op_type == "Neg"]
    numbers = [n for n in range(2001) if n not in (0, 7)]
    assert found == [*["Neg", *(f"Neg_{n}" for n in numbers)][:1999], "Neg_7"]
