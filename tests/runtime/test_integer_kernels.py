"""What runs on integers, as onnxruntime's optimized graph says, and the reasons for what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from runtime_models import constant_text
from runtime_models import from_text as model

from memoptc.api import compile
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import write_onnx
from memoptc.ir.parser import parse
from memoptc.manager import run_pipeline
from memoptc.pipeline import parse as parse_pipeline
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.integer_kernels import IntegerRun, has_codes, integer_run, look

RNG = np.random.default_rng(0)
Feed = dict[str, npt.NDArray[Any]]


def constant(*shape: int) -> str:
    return constant_text(RNG, *shape)


def product(rows: str) -> onnx.ModelProto:
    """MatMul, bias, Relu, MatMul on an input of the given extents, the last one 8."""
    return model(f"""graph @g(%x: f32[{rows},8]) -> (f32[*]) {{
      %w = {constant(8, 16)}
      %b = {constant(16)}
      %v = {constant(16, 4)}
      %p = MatMul(%x, %w) name("first")
      %a = Add(%b, %p) name("bias")
      %r = Relu(%a)
      %y = MatMul(%r, %v) name("second")
      return %y
    }}""")


def chain() -> onnx.ModelProto:
    return model(f"""graph @g(%x: f32[N,4,8,8]) -> (f32[*]) {{
      %w = {constant(4, 4, 3, 3)}
      %v = {constant(4, 4, 1, 1)}
      %a = Conv(%x, %w) {{pads=[1,1,1,1]}} name("one")
      %r = Relu(%a)
      %b = Conv(%r, %v) name("two")
      %y = Add(%b, %r) name("residual")
      return %y
    }}""")


def feeds(*shape: int) -> list[Feed]:
    return [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(3)]


def kernels(proto: onnx.ModelProto, data: list[Feed], passes: str = "quantize,drop-dead,lower") -> dict[str, Any]:
    found = compile(proto, 0, "int8", calibration=data, passes=passes)
    assert found.report.kernels is not None
    plain = found.report.to_json()["kernels"]
    assert plain == found.report.kernels
    return dict(plain)


@pytest.mark.parametrize(
    ("rows", "shape"), [("N", (5, 8)), ("2,5", (2, 5, 8)), ("N,5", (2, 5, 8)), ("1,3,5", (1, 3, 5, 8))]
)
def test_products_with_a_bias_run_on_integers(rows: str, shape: tuple[int, ...]) -> None:
    """onnxruntime joins product and bias where it knows the extents, and would then run them in float."""
    before, data = product(rows), feeds(*shape)
    found = compile(before, 0, "int8", calibration=data, passes="quantize,drop-dead,lower")
    assert found.report.kernels is not None
    assert found.report.kernels["fallbacks"] == []
    assert found.report.kernels["heavy_float"] == {}
    assert sum(found.report.kernels["integer"].values()) == 2
    (a,), (b,) = (Evaluator(m).run(data[0]).values() for m in (before, found.model))
    assert np.abs(a - b).max() < 0.03 * np.abs(a).max()


def test_convolutions_and_what_lies_between_run_on_integers() -> None:
    found = kernels(chain(), feeds(1, 4, 8, 8))
    assert found["integer"]["QLinearConv"] == 2
    assert found["heavy_float"] == {}
    assert found["fallbacks"] == []


def test_codes_of_16_bits_fall_back_and_the_report_says_why() -> None:
    found = kernels(chain(), feeds(1, 4, 8, 8), 'quantize{activations="int16"},drop-dead,lower')
    assert "QLinearConv" not in found["integer"]
    assert {f["why"] for f in found["fallbacks"]} == {"there are no kernels for codes of 16 bits"}
    assert len(found["fallbacks"]) == 2


def test_weights_alone_in_codes_are_no_fallback() -> None:
    found = compile(chain(), 1, "int8")
    assert found.report.kernels is not None
    assert found.report.kernels["weights_only"] == 2
    assert found.report.kernels["fallbacks"] == []


HALF_DONE = """graph @g(%x: f32[1,4,8,8]) -> (f32[*]) {
  %s = const() {value=0.05} : f32[]
  %z = const() {value=128} : u8[]
  %wq = const() {value=splat(3)} : i8[4,4,1,1]
  %ws = const() {value=splat(0.1)} : f32[4]
  %wz = const() {value=splat(0)} : i8[4]
  %b = const() {value=splat(0.5)} : f32[4]
  %q = QuantizeLinear(%x, %s, %z)
  %d = DequantizeLinear(%q, %s, %z)
  %w = DequantizeLinear(%wq, %ws, %wz) {axis=0}
  %c = Conv(%d, WEIGHT) name("conv")
  %y = TAIL
  return %y
}"""


@pytest.mark.parametrize(
    ("weight", "tail", "why"),
    [
        ("%w", "Sin(%c)", "its result goes on in float, into Sin"),
        ("%w, %b", "QuantizeLinear(%c, %s, %z)", "its bias is no code"),
        ("%v", "QuantizeLinear(%c, %s, %z)", "its weight is no code"),
    ],
)
def test_reasons(weight: str, tail: str, why: str) -> None:
    """As the graph shows them; newer onnxruntimes code a lone weight or bias themselves."""
    text = HALF_DONE.replace("WEIGHT", weight).replace("TAIL", tail)
    if tail.startswith("Q"):
        text = text.replace("-> (f32", "-> (u8")
    if weight == "%v":
        text = text.replace("%q =", f"%v = {constant(4, 4, 1, 1)}\n  %q =")
    graph = parse(text)
    infer_shapes(graph)
    found = look(graph)
    assert [(f.name, f.why) for f in found.fallbacks] == [("conv", why)]
    assert found.borders == 3 + tail.startswith("Q")


def test_models_without_codes_are_not_asked() -> None:
    found = compile(chain(), 1)
    assert found.report.kernels is None
    assert not has_codes(found.graph)
    assert not any(d.step == "kernels" for d in found.report.decisions)


def test_a_model_that_does_not_load_has_no_answer(tmp_path: Any) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert integer_run(tmp_path / "broken.onnx") is None
    assert IntegerRun().to_json()["fallbacks"] == []


DECODED = """
graph @g(%q: u8[2,3], %c: bool[]) -> (f32[3,2]) {
  %s = const() {value=0.5} : f32[]
  %z = const() {value=3} : u8[]
  %shape = const() {value=[3,2]} : i64[2]
  %d = DequantizeLinear(%q, %s, %z) : f32[2,3]
  %r = Reshape(%d, %shape) : f32[3,2]
  %y = If(%c) : f32[3,2]
    region then_branch @then() -> (f32[3,2]) {
      %t = Relu(%r) : f32[3,2]
      return %t
    }
    region else_branch @else() -> (f32[3,2]) {
      %e = Neg(%r) : f32[3,2]
      return %e
    }
  return %y
}
"""


def test_a_view_of_decoded_values_that_a_body_uses(tmp_path: Any) -> None:
    """onnxruntime 1.32 ends the process that loads such a model as it is: it must not be ours, nor the user's."""
    onnx.save(model(DECODED), tmp_path / "plain.onnx")
    integer_run(tmp_path / "plain.onnx")
    graph = parse(DECODED)
    run_pipeline(parse_pipeline("lower"), graph)
    write_onnx(graph, tmp_path / "lowered.onnx")
    assert integer_run(tmp_path / "lowered.onnx") is not None
