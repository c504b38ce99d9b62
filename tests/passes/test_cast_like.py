"""CastLike as a Cast: for dtypes that onnxruntime has no kernel for, by the text alone."""

from __future__ import annotations

from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import parse as parse_pipeline

LIKE = """model {ir_version=12, opset={""=24}}
graph @g(%x: f32[N], %i: f8e8m0[2]) -> (f8e8m0[*]) {
  %b = CastLike(%x, %i) {round_mode="down"}
  return %b
}
"""


def test_a_cast_like_keeps_its_rounding() -> None:
    graph = parse(LIKE, file="like.mir")
    infer_shapes(graph)
    run_pipeline(parse_pipeline("simplify"), graph, Context())
    text = print_graph(graph)
    assert '= Cast(%x) {round_mode="down", to=24} : f8e8m0[N]' in text
    assert "CastLike" not in text
