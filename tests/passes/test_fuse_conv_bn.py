"""fuse-conv-bn where onnxruntime has no kernel to compare with."""

from __future__ import annotations

from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.passes.fuse.fuse_conv_bn import FuseConvBn
from memoptc.testing import run_pass

LEGACY = """model {ir_version=3, opset={""=6}}

graph @g(%x: f32[2,2]) -> (f32[2,2]) {
  %w = const() {value=[0.5,-1.0,2.0,0.25]} : f32[2,2]
  %k = const() {value=[2.0,4.0]} : f32[2]
  %p = MatMul(%x, %w)
  %y = Mul(%p, %k) {axis=0, broadcast=1}
  return %y
}"""


def test_constants_aligned_with_the_rows_stay() -> None:
    graph = parse(LEGACY)
    infer_shapes(graph)
    stats = run_pass(FuseConvBn(), graph)
    assert not stats
    assert [op.op_type for op in graph.ops if not op.is_const] == ["MatMul", "Mul"]
