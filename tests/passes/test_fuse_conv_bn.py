"""fuse-conv-bn where onnxruntime has no kernel to compare with."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("user", "shape", "weights"),
    [("Add", "1,8,1024", 0.2), ("Mul", "1,8,1024", 2.5), ("Add", "8,1024", 2.5)],
    ids=["declined", "scaled", "with a bias"],
)
def test_weights_are_copied_only_to_be_replaced(user: str, shape: str, weights: float) -> None:
    text = f"""graph @g(%x: f32[{shape}]) -> (f32[*]) {{
      %w = const() {{value=rand(1)}} : f32[1024,1024]
      %c = const() {{value=rand(2)}} : f32[1024]
      %p = MatMul(%x, %w)
      %y = {user}(%p, %c)
      return %y
    }}"""
    graph = parse(text)
    infer_shapes(graph)
    weight = next(op.result.tensor for op in graph.ops if op.is_const)
    assert weight is not None
    before = np.asarray(weight.numpy())
    tracemalloc.start()
    stats = run_pass(FuseConvBn(), graph)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bool(stats) == (weights > 1)
    assert peak < weights * before.nbytes
