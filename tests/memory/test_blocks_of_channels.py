"""The layout in blocks of channels on paper: copies, what convolutions take in, and the order that follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from native_models import usable

from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.ir.types import TensorType
from memoptc.runtime.memory.default_session import default_order
from memoptc.runtime.memory.layout import as_laid_out
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.profile import AS_PLANNED

SHUFFLE = """graph @g(%x: f32[1,32,24,24]) -> (f32[1,8,48,48]) {
  %w = const() {value=splat(0.5)} : f32[32,32,3,3]
  %c = Conv(%x, %w) {pads=[1,1,1,1]} : f32[1,32,24,24]
  %s = Sigmoid(%c) : f32[1,32,24,24]
  %m = Mul(%c, %s) : f32[1,32,24,24]
  %y = DepthToSpace(%m) {blocksize=2} : f32[1,8,48,48]
  return %y
}"""


def test_convolutions_in_blocks_are_copied_for_other_operators() -> None:
    graph = parse(SHUFFLE)
    before = str(graph)
    found = [op.op_type for op in as_laid_out(graph).ops if not op.is_const]
    assert found == ["ReorderInput", "Conv", "QuickGelu", "ReorderOutput", "DepthToSpace"]
    assert str(graph) == before
    assert "com.microsoft.nchwc" not in graph.info.opset_imports


def test_copies_for_other_operators_have_no_more_channels_than_the_result() -> None:
    text = "graph @g(%x: f32[1,3,8,8]) -> (f32[1,4,8,8]) {\n%w = const() {value=splat(0.5)} : f32[4,3,1,1]\n"
    laid_out = as_laid_out(parse(f"{text}%y = Conv(%x, %w) : f32[1,4,8,8]\nreturn %y\n}}"))
    types = [op.result.type for op in laid_out.ops if not op.is_const]
    assert [t.shape for t in types if isinstance(t, TensorType)] == [(1, 16, 8, 8), (1, 4, 8, 8)]


def block_of_convolutions(activation: str, joined: str = "%b") -> str:
    return f"""graph @g(%x: f32[1,32,24,24]) -> (f32[1,32,24,24]) {{
  %w = const() {{value=splat(0.5)}} : f32[32,32,3,3]
  %v = const() {{value=splat(0.25)}} : f32[32,32,3,3]
  %a = Conv(%x, %w) {{pads=[1,1,1,1]}} : f32[1,32,24,24]
  {activation}
  %c = Conv(%b, %v) {{pads=[1,1,1,1]}} : f32[1,32,24,24]
  %d = Add(%c, {joined}) : f32[1,32,24,24]
  %y = Conv(%d, %w) {{pads=[1,1,1,1]}} : f32[1,32,24,24]
  return %y
}}"""


HARD_SWISH = "%b = HardSwish(%a) : f32[1,32,24,24]"


BY_HARD_SIGMOID = """%s = HardSigmoid(%a) {alpha=0.16666667, beta=0.5} : f32[1,32,24,24]
  %b = Mul(%s, %a) : f32[1,32,24,24]"""


SELU = "%b = Selu(%a) : f32[1,32,24,24]"


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
@pytest.mark.parametrize(
    "text",
    [
        SHUFFLE,
        block_of_convolutions("%b = Relu(%a) : f32[1,32,24,24]"),
        block_of_convolutions(HARD_SWISH),
        block_of_convolutions(BY_HARD_SIGMOID),
        block_of_convolutions(BY_HARD_SIGMOID.replace("0.16", "0.26")),
        block_of_convolutions(SELU),
        block_of_convolutions(SELU, "%a"),
        block_of_convolutions(HARD_SWISH, "%c"),
    ],
)
def test_a_layout_allocates_what_onnxruntime_does(text: str) -> None:
    """Activations and sums in their convolutions, and what stays beside them."""
    graph = parse(text)
    feed = {"x": np.zeros((1, 32, 24, 24), np.float32)}
    session = NativeSession(to_proto(graph).SerializeToString(), replace(AS_PLANNED, optimize=True))
    _, trace = session.record(feed)
    assert max(liveness(as_laid_out(graph), {}).curve) == pytest.approx(trace.peak_bytes, rel=0.02)


CONVOLUTIONS = """
graph @g(%x: f32[1,32,H,W]) -> (f32[1,32,H,W]) {
  %w = const() {value=splat(1)} : f32[32,32,1,1]
  %a = Conv(%x, %w) : f32[1,32,H,W]
  %b = Relu(%a) : f32[1,32,H,W]
  %y = Conv(%b, %w) : f32[1,32,H,W]
  return %y
}
"""


def test_activations_are_computed_inside_their_convolutions() -> None:
    """Only those whose operand nobody else reads: where no shapes are known, the others have memory of their own."""
    fused, kept = (
        as_laid_out(parse(text)).walk("Relu")
        for text in (CONVOLUTIONS, CONVOLUTIONS.replace("%y = Conv(%b, %w)", "%y = Add(%a, %b)"))
    )
    assert len(list(fused)) == 0
    assert len(list(kept)) == 1


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
def test_what_the_optimizer_makes_comes_last_in_the_default_order() -> None:
    """Of two chains that are joined, the one that ends in a convolution runs first, wherever it stands."""
    graph = parse(
        """graph @g(%x: f32[1,32,24,24]) -> (f32[1,32,24,48]) {
  %w = const() {value=splat(0.5)} : f32[32,32,3,3]
  %v = const() {value=splat(0.5)} : f32[256,32,1,1]
  %u = const() {value=splat(0.5)} : f32[32,256,1,1]
  %a = Conv(%x, %v) : f32[1,256,24,24]
  %b = Conv(%a, %u) : f32[1,32,24,24]
  %c = Exp(%x) : f32[1,32,24,24]
  %d = Softmax(%c) : f32[1,32,24,24]
  %y = Concat(%b, %d) {axis=3} : f32[1,32,24,48]
  return %y
}"""
    )
    options = replace(AS_PLANNED, optimize=True, file_order=False)
    session = NativeSession(to_proto(graph).SerializeToString(), options)
    _, trace = session.record({"x": np.zeros((1, 32, 24, 24), np.float32)})
    laid_out = as_laid_out(graph)
    found = liveness(laid_out, {}, default_order(laid_out))
    assert max(found.curve) == pytest.approx(trace.peak_bytes, rel=0.02)
    order = [op.op_type for op in default_order(laid_out)]
    assert order.index("ReorderOutput") < order.index("Exp")
