"""Models that are quantized already, in whole or in part; codes of 16 bits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import zoo
from runtime_models import constant_text
from runtime_models import from_text as model

from memoptc.api import Result, compile
from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.pipeline import parse as parse_pipeline
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

RNG = np.random.default_rng(0)
Feed = dict[str, npt.NDArray[Any]]
ONLY_QUANTIZE = "quantize,drop-dead"


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order_of_tests() -> None:
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def constant(*shape: int) -> str:
    return constant_text(RNG, *shape)


def net() -> onnx.ModelProto:
    """Two convolutions with a residual, and a product."""
    return model(f"""graph @g(%x: f32[N,4,8,8]) -> (f32[*]) {{
      %w1 = {constant(4, 4, 3, 3)}
      %b1 = {constant(4)}
      %w2 = {constant(4, 4, 3, 3)}
      %b2 = {constant(4)}
      %w3 = {constant(4, 5)}
      %a = Conv(%x, %w1, %b1) {{pads=[1,1,1,1]}} name("one")
      %b = Relu(%a)
      %c = Conv(%b, %w2, %b2) {{pads=[1,1,1,1]}} name("two")
      %d = Add(%b, %c) name("residual")
      %e = GlobalAveragePool(%d)
      %f = Flatten(%e)
      %y = MatMul(%f, %w3) name("head")
      return %y
    }}""")


def feeds(count: int = 4) -> list[Feed]:
    return [{"x": RNG.standard_normal((2, 4, 8, 8)).astype(np.float32)} for _ in range(count)]


def codes(graph: Graph) -> Counter[tuple[Any, ...]]:
    """Scale and zero point of each QuantizeLinear and DequantizeLinear, and the codes of weights, as bytes."""
    found: Counter[tuple[Any, ...]] = Counter()
    for op in graph.ops:
        if op.op_type in ("QuantizeLinear", "DequantizeLinear"):
            tensors = [v.tensor for v in op.operands]
            found[(op.op_type, *(None if t is None else t.numpy().tobytes() for t in tensors))] += 1
    return found


def operand_kinds(op: Op) -> list[str]:
    return [v.op.op_type if v.op is not None else "input" for v in op.operands]


def named(found: Result, name: str) -> Op:
    return next(op for op in found.graph.ops if op.name == name)


def decibels(a: onnx.ModelProto, b: onnx.ModelProto, data: list[Feed]) -> float:
    one, two = Evaluator(a), Evaluator(b)
    pairs = [(x, y) for f in data for x, y in zip(one.run(f).values(), two.run(f).values(), strict=True)]
    noise = sum(float(np.square(x - y).sum()) for x, y in pairs)
    return float(10 * np.log10(sum(float(np.square(x).sum()) for x, _ in pairs) / noise)) if noise else np.inf


def test_what_lacks_codes_gets_them_and_what_has_them_keeps_them() -> None:
    before = net()
    part = compile(
        before, 0, "int8", calibration=feeds(), passes='quantize{exclude=["two","residual","head"]},drop-dead'
    )
    assert operand_kinds(named(part, "two"))[1] == "const"
    whole = compile(part.model, 0, "int8", calibration=feeds(), passes=ONLY_QUANTIZE)
    assert not codes(part.graph) - codes(whole.graph)
    assert set(operand_kinds(named(whole, "two"))) == {"DequantizeLinear"}
    assert set(operand_kinds(named(whole, "residual"))) == {"DequantizeLinear"}
    assert operand_kinds(named(whole, "head"))[1] == "DequantizeLinear"
    assert decibels(before, whole.model, feeds()) > 25
    assert any("is completed" in w for w in whole.report.warnings)


def test_a_whole_model_stays_bit_for_bit() -> None:
    once = compile(net(), 0, "int8", calibration=feeds(), passes=ONLY_QUANTIZE)
    again = compile(once.model, 0, "int8", calibration=feeds(), passes=ONLY_QUANTIZE)
    assert codes(again.graph) == codes(once.graph)
    assert decibels(once.model, again.model, feeds()) == np.inf


def test_other_scales_of_the_same_data_are_not_taken_over() -> None:
    """A model trained with its own ranges keeps them where the calibration data would say otherwise."""
    once = compile(net(), 0, "int8", calibration=feeds(), passes=ONLY_QUANTIZE)
    wide = [{"x": f["x"] * np.float32(10)} for f in feeds()]
    again = compile(once.model, 0, "int8", calibration=wide, passes=ONLY_QUANTIZE)
    assert codes(again.graph) == codes(once.graph)


def test_codes_of_a_value_are_made_before_its_first_use_on_codes() -> None:
    before = model("""graph @g(%x: f32[2,4]) -> (f32[4,2], f32[2,4]) {
      %s = const() {value=0.05} : f32[]
      %z = const() {value=100} : u8[]
      %q = QuantizeLinear(%x, %s, %z)
      %d = DequantizeLinear(%q, %s, %z)
      %t = Transpose(%d) {perm=[1,0]}
      %y = Relu(%t)
      %i = const() {value=-28} : i8[]
      %p = QuantizeLinear(%d, %s, %i)
      %w = DequantizeLinear(%p, %s, %i)
      return %y, %w
    }""")
    data = [{"x": RNG.standard_normal((2, 4)).astype(np.float32)} for _ in range(4)]
    after = compile(before, 0, "int8", calibration=data, passes=ONLY_QUANTIZE)
    assert decibels(before, after.model, data) > 25


def test_weights_in_codes_get_coded_activations_and_biases() -> None:
    """Only the weights came as codes: the data gives the rest, and the product runs on integers."""
    text = f"""graph @g(%x: f32[N,4,8,8]) -> (f32[*]) {{
      %q = const() {{value=[{",".join(str(int(v)) for v in RNG.integers(-127, 128, 144))}]}} : i8[4,4,3,3]
      %s = const() {{value=[0.01,0.02,0.03,0.01]}} : f32[4]
      %z = const() {{value=splat(0)}} : i8[4]
      %b1 = {constant(4)}
      %w = DequantizeLinear(%q, %s, %z) {{axis=0}}
      %a = Conv(%x, %w, %b1) {{pads=[1,1,1,1]}} name("one")
      %y = Relu(%a)
      return %y
    }}"""
    before, data = model(text), feeds()
    found = compile(before, 0, "int8", calibration=data, passes=ONLY_QUANTIZE)
    assert operand_kinds(named(found, "one")) == ["DequantizeLinear"] * 3
    assert not codes(read_onnx(before)) - codes(found.graph)
    assert found.report.passes[0].stats["completed Conv"] == 1
    assert decibels(before, found.model, data) > 30


def kinds(found: Result) -> set[str]:
    """Element types of the codes of activations."""
    return {
        str(op.operands[2].tensor.numpy().dtype)
        for op in found.graph.ops
        if op.op_type == "QuantizeLinear" and op.operands[2].tensor is not None
    }


@pytest.mark.parametrize(("device", "expected"), [("x86-vnni", "uint8"), ("arm64", "int8")])
def test_new_codes_are_of_the_type_that_the_model_has(device: str, expected: str) -> None:
    """An integer kernel does not mix int8 with uint8 activations, and on x86 takes only these."""
    first = 'quantize{activations="int8",exclude=["two","residual","head"]},drop-dead'
    part = compile(net(), 0, "int8", calibration=feeds(), passes=first)
    assert kinds(part) == {"int8"}
    whole = compile(part.model, 0, "int8", calibration=feeds(), passes=f'quantize{{device="{device}"}},drop-dead')
    assert kinds(whole) == {expected}
    if expected == "uint8":
        assert whole.report.kernels is not None
        assert whole.report.kernels["integer"]["QLinearConv"] == 1
        (left,) = whole.report.kernels["fallbacks"]
        # The model's code is centred around 0, so half of it stands for what Relu cuts off.
        assert left["name"] == "one"
        assert left["why"].startswith("its Relu ends elsewhere than the code's range")


def test_codes_without_a_sign_are_the_same_numbers() -> None:
    once = compile(net(), 0, "int8", calibration=feeds(), passes='quantize{activations="int8"},drop-dead')
    again = compile(once.model, 0, "int8", passes='quantize{form="dynamic"},drop-dead')
    assert kinds(again) == {"uint8"}
    one, two = (Evaluator(m, RunOptions(optimize=False)) for m in (once.model, again.model))
    for feed in feeds():
        (a,), (b,) = one.run(feed).values(), two.run(feed).values()
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
def test_codes_of_activations(kind: str) -> None:
    before, data = net(), feeds()
    text = f'quantize{{activations="{kind}"}},drop-dead'
    found = compile(before, 0, "int8", calibration=data, passes=text)
    assert kinds(found) == {kind}
    assert decibels(before, found.model, data) > {"uint8": 30, "int8": 28, "uint16": 40, "int16": 40}[kind]


def test_codes_of_16_bits_at_an_old_opset() -> None:
    """Standard ONNX has them from opset 21 on; onnxruntime's own operators before."""
    before = onnx.version_converter.convert_version(net(), 17)
    data = feeds()
    found = compile(before, 0, "int8", calibration=data, passes='quantize{activations="int16"},drop-dead')
    domains = {op.domain for op in found.graph.ops if op.op_type == "QuantizeLinear"}
    assert domains == {"com.microsoft"}
    assert decibels(before, found.model, data) > 40


def test_unknown_words_are_refused_in_the_form_that_does_not_read_them_too() -> None:
    with pytest.raises(InputError, match=r"quantize has no method 'mimax'\."):
        compile(net(), 0, "int8", passes="quantize{form=dynamic,method=mimax},lower")


def test_unknown_codes_are_refused() -> None:
    with pytest.raises(InputError, match="quantize has no activations 'int4'"):
        compile(net(), 0, "int8", calibration=feeds(), passes=str(parse_pipeline('quantize{activations="int4"}')))


@zoo.each_model(skip=tuple(n for n in zoo.NAMES if n != "digits_cnn_qdq"))
def test_a_trained_model_keeps_its_codes(name: str) -> None:
    assert zoo.ZOO is not None
    data, _ = zoo.ZOO.samples(name, 16)
    found = compile(zoo.ZOO.path(name), 1, "int8", calibration=data)
    before = read_onnx(zoo.ZOO.path(name))
    assert {k for k in codes(before) if k[0] == "QuantizeLinear"} <= set(codes(found.graph))
    assert found.report.verification["passed"]
    stats = next(p.stats for p in found.report.passes if p.name == "quantize-search")
    assert stats["kept: quantized already"] >= 8
    assert not any(k.startswith("completed") for k in stats)
