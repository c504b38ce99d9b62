"""A graph through `.mir` text and back."""

from __future__ import annotations

from typing import Any

from memoptc.ir.core import Graph
from memoptc.ir.equality import same_structure
from memoptc.ir.mir import print_graph
from memoptc.ir.parser import parse

TINY = """\
model {ir_version=10, opset={""=21}}

graph @tiny(%image: f32[N,3,224,224]) -> (f32[N,32,112,112]) {
  %w = const() {value=@conv0.weight} : i8[32,3,3,3]
  %s = const() {value=[0.0125]} : f32[1]
  %wf = DequantizeLinear(%w, %s) : f32[32,3,3,3] loc("/conv0/Conv")
  %c = Conv(%image, %wf) {pads=[1,1,1,1], strides=[2,2]} : f32[N,32,112,112]
  return %c
}
"""


def everything_equal(a: Graph, b: Graph) -> None:
    assert same_structure(a, b, names=True, locations=True, notes=True) is None


def round_trip(graph: Graph, **options: Any) -> Graph:
    text = print_graph(graph, **options)
    again = parse(text)
    everything_equal(graph, again)
    assert print_graph(again, **options) == text
    return again
