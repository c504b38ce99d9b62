"""Q/DQ pairs around integer kernels take no float memory; around others they do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from native_models import usable

from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.runtime.memory.liveness import liveness, no_workspace, peak
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.profile import AS_PLANNED

CHAIN = """graph @g(%x: f32[1,4,16,16]) -> (f32[1,4,16,16]) {
  %s = const() {value=0.1} : f32[]
  %z = const() {value=0} : u8[]
  %w = const() {value=splat(1)} : i8[4,4,1,1]
  %ws = const() {value=splat(0.5)} : f32[4]
  %wz = const() {value=splat(0)} : i8[4]
  %wf = DequantizeLinear(%w, %ws, %wz) {axis=0} : f32[4,4,1,1]
  %xq = QuantizeLinear(%x, %s, %z) : u8[1,4,16,16]
  %xf = DequantizeLinear(%xq, %s, %z) : f32[1,4,16,16]
  %c = OPERATOR : f32[1,4,16,16]
  %r = Relu(%c) : f32[1,4,16,16]
  %q = QuantizeLinear(%r, %s, %z) : u8[1,4,16,16]
  %y = DequantizeLinear(%q, %s, %z) : f32[1,4,16,16]
  return %y
}"""


def test_an_integer_convolution_holds_codes_only() -> None:
    found = liveness(parse(CHAIN.replace("OPERATOR", "Conv(%xf, %wf)")), {}, workspace=no_workspace)
    # The codes of the result, and the float output: 1,024 + 4,096 bytes.
    assert max(found.curve) == 1024 + 4096


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
@pytest.mark.parametrize(("channels", "filters", "kernel"), [(3, 32, 5), (32, 3, 5), (32, 32, 3), (16, 32, 1)])
def test_scratch_of_a_convolution_that_is_fused_with_its_codes(channels: int, filters: int, kernel: int) -> None:
    text = CHAIN.replace("4,16,16", f"{channels},48,48").replace("4,4,1,1", f"{filters},{channels},{kernel},{kernel}")
    text = text.replace("OPERATOR", f"Conv(%xf, %wf) {{pads=[{','.join([str(kernel // 2)] * 4)}]}}")
    lines = text.replace("f32[4]", f"f32[{filters}]").replace("i8[4]", f"i8[{filters}]").splitlines()
    after = [line.replace(f"[1,{channels},48,48]", f"[1,{filters},48,48]") for line in lines[-5:]]
    head = lines[0].rsplit("(f32", 1)[0] + f"(f32[1,{filters},48,48]) {{"
    graph = parse("\n".join([head, *lines[1:-5], *after]))
    session = NativeSession(to_proto(graph).SerializeToString(), replace(AS_PLANNED, optimize=True))
    _, trace = session.record({"x": np.zeros((1, channels, 48, 48), np.float32)})
    # A plan has both transposed copies alive during the kernel, and its operand and result, too.
    copies = (channels + filters) * 48 * 48
    assert trace.peak_bytes <= peak(graph, {}).peak_bytes <= trace.peak_bytes + copies


def test_what_has_no_integer_kernel_runs_on_floats() -> None:
    found = peak(parse(CHAIN.replace("OPERATOR", "Erf(%xf)")), {})
    assert found.peak_bytes >= 2 * 4096


def test_a_result_with_other_users_exists_as_floats() -> None:
    text = CHAIN.replace("OPERATOR", "Conv(%xf, %wf)")
    text = text.replace("-> (f32[1,4,16,16])", "-> (f32[1,4,16,16], f32[1,4,16,16])")
    text = text.replace("return %y", "return %y, %c")
    assert peak(parse(text), {}).peak_bytes >= 2 * 4096


def test_a_weight_that_is_cast_when_the_model_is_loaded_takes_nothing_of_a_run() -> None:
    text = """graph @g(%x: f32[1,64]) -> (f32[1,64]) {
      %w = const() {value=splat(1)} : f16[64,64]
      %f = Cast(%w) {to=1} : f32[64,64]
      %y = MatMul(%x, %f) : f32[1,64]
      return %y
    }"""
    assert peak(parse(text), {}).peak_bytes == 64 * 4
    assert peak(parse(text.replace("%w)", "%x)").replace("f32[64,64]", "f32[1,64]")), {}).peak_bytes == 2 * 64 * 4


def test_a_body_runs_as_the_graph_around_it() -> None:
    """Without onnxruntime's optimizer a branch holds floats, too; and where no shape is known it overwrites nothing."""

    def most(body: str, **how: bool) -> int:
        graph = parse(
            f"graph @g(%x: f32[1,4,16,16], %on: bool[]) -> (f32[1,4,16,16]) {{\n  %o = If(%on) : f32[1,4,16,16]\n"
            f"  region then_branch() -> (f32[1,4,16,16]) {{\n{body}\n}}\n"
            "  region else_branch() -> (f32[1,4,16,16]) {\n  %e = Neg(%x) : f32[1,4,16,16]\n  return %e\n}\n"
            "  return %o\n}"
        )
        return max(liveness(graph, {}, workspace=no_workspace, **how).curve)

    coded = "\n".join(CHAIN.replace("OPERATOR", "Conv(%xf, %wf)").splitlines()[1:-1])
    assert most(coded) < most(coded, fused=False)
    steps = (("a", "Neg", "x"), ("b", "Tanh", "a"), ("c", "Relu", "b"), ("y", "Neg", "c"))
    plain = "".join(f"%{result} = {op}(%{of}) : f32[1,4,16,16]\n" for result, op, of in steps) + "return %y"
    assert most(plain) < most(plain, in_place=False)
