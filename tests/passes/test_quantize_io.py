"""--quantize-io: who hands in codes gets what the float model gives, to the noise of the codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import zoo
from onnx import TensorProto

from memoptc.api import Result, compile
from memoptc.cli.main import main
from memoptc.coded_interface import Coded, read_coded_interface
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.ir.types import DType
from memoptc.runtime.evaluate import Evaluator

RNG = np.random.default_rng(0)
Feed = dict[str, npt.NDArray[Any]]

NET = """graph @g(%image: f32[N,3,8,8], %scale: f32[N,1]) -> (f32[*], f32[*]) {
  %w = WEIGHT
  %b = const() {value=splat(0.1)} : f32[4]
  %map = Conv(%image, %w, %b) {pads=[1,1,1,1]}
  %act = Relu(%map)
  %mean = GlobalAveragePool(%act)
  %flat = Flatten(%mean)
  %y = Mul(%flat, %scale)
  return %act, %y
}"""


def net() -> onnx.ModelProto:
    weight = RNG.standard_normal(4 * 3 * 3 * 3).astype(np.float32) / 5
    text = f"const() {{value=[{','.join(repr(float(v)) for v in weight)}]}} : f32[4,3,3,3]"
    graph = parse(NET.replace("WEIGHT", text))
    infer_shapes(graph)
    proto: onnx.ModelProto = to_proto(graph)
    return proto


def feeds(count: int = 4) -> list[Feed]:
    return [
        {
            "image": RNG.standard_normal((2, 3, 8, 8)).astype(np.float32),
            "scale": RNG.random((2, 1)).astype(np.float32),
        }
        for _ in range(count)
    ]


def kinds(found: Result) -> tuple[dict[str, int], dict[str, int]]:
    """Element types of inputs and outputs."""
    graph = found.model.graph
    return tuple({v.name: v.type.tensor_type.elem_type for v in side} for side in (graph.input, graph.output))  # type: ignore[return-value]


def decoded(name: str, found: Result, value: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Real numbers of an output, by what the model's own metadata says."""
    entry = {p.key: p.value for p in found.model.metadata_props}["memoptc.io"]
    coded = json.loads(entry)["outputs"].get(name)
    if coded is None or "scale" not in coded:
        return value.astype(np.float64)
    return (value.astype(np.float64) - coded["zero_point"]) * coded["scale"]


def assert_same_numbers(before: onnx.ModelProto, found: Result, least: float) -> None:
    old, new, interface = Evaluator(before), Evaluator(found.model), read_coded_interface(found.graph)
    for feed in feeds():
        got = new.run(interface.encode(feed))
        for name, value in old.run(feed).items():
            noise = np.square(value - decoded(name, found, got[name])).sum()
            assert 10 * np.log10(np.square(value).sum() / noise) > least, name


def reasons(found: Result) -> list[str]:
    return [f"{d.what}: {d.why}" for d in found.report.decisions if d.step == "quantize-io"]


def test_outputs_of_products_are_codes_and_extents_are_read_off_codes() -> None:
    weight = ",".join(repr(float(v)) for v in RNG.standard_normal(32).astype(np.float32))
    graph = parse(
        f"graph @g(%x: f32[N,8]) -> (f32[*], i64[*]) {{\n %w = const() {{value=[{weight}]}} : f32[8,4]\n"
        " %y = MatMul(%x, %w)\n %n = Shape(%x)\n return %y, %n\n}"
    )
    infer_shapes(graph)
    before, data = to_proto(graph), [{"x": RNG.standard_normal((3, 8)).astype(np.float32)} for _ in range(3)]
    found = compile(before, 1, "int8", calibration=data, quantize_io=True)
    assert kinds(found) == ({"x": TensorProto.UINT8}, {"y": TensorProto.UINT8, "n": TensorProto.INT64})
    assert [op.op_type for op in found.graph.ops if not op.is_const].count("DequantizeLinear") == 2
    got = Evaluator(found.model).run(read_coded_interface(found.graph).encode(data[0]))
    expected = Evaluator(before).run(data[0])
    assert np.abs(decoded("y", found, got["y"]) - expected["y"]).max() < 0.03 * np.abs(expected["y"]).max()
    assert (got["n"] == expected["n"]).all()
    assert found.report.kernels is not None
    assert found.report.kernels["integer"] == {"QLinearMatMul": 1}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_callers_hand_in_and_get_codes(level: int) -> None:
    before = net()
    found = compile(before, level, "int8", calibration=feeds(), quantize_io=True)
    inputs, outputs = kinds(found)
    assert inputs == {"image": TensorProto.UINT8, "scale": TensorProto.FLOAT}
    assert outputs == {"act": TensorProto.UINT8, "y": TensorProto.FLOAT}
    assert "output 'y' stays float32: nothing quantizes it as a whole" in reasons(found)
    assert found.report.verification["passed"]
    assert_same_numbers(before, found, 20)
    lines = reasons(found)
    assert any(line.startswith("input 'image' is uint8, scale ") for line in lines)
    assert "input 'scale' stays float32: nothing quantizes it as a whole" in lines
    assert not any(op.op_type == "QuantizeLinear" and op.operand.name == "image" for op in found.graph.ops)


def test_without_the_option_dtypes_stay() -> None:
    found = compile(net(), 2, "int8", calibration=feeds())
    assert set(kinds(found)[0].values()) | set(kinds(found)[1].values()) == {TensorProto.FLOAT}


def test_half_floats() -> None:
    before = net()
    found = compile(before, 2, "float16", calibration=feeds(), quantize_io=True)
    inputs, outputs = kinds(found)
    assert set(inputs.values()) | set(outputs.values()) == {TensorProto.FLOAT16}
    assert found.report.verification["passed"]
    assert_same_numbers(before, found, 50)


def test_measured_with_the_feeds_of_each_side() -> None:
    found = compile(net(), 1, "int8", calibration=feeds(), quantize_io=True, measure=True)
    for side in (found.report.control, found.report.candidate):
        assert side.measured is not None
        assert side.measured["latency_ms"]["p50"] > 0


def test_without_data_there_is_no_code_for_the_border() -> None:
    found = compile(net(), 2, "int8", quantize_io=True)
    assert "No input or output is quantized as a whole, so all keep their dtypes." in found.report.warnings
    assert set(kinds(found)[0].values()) == {TensorProto.FLOAT}


def test_a_model_that_takes_codes_already_goes_on_taking_them() -> None:
    once = compile(net(), 1, "int8", calibration=feeds(), quantize_io=True)
    again = compile(once.model, 1)
    assert kinds(again) == kinds(once)
    assert again.report.verification["bit_exact"]
    assert read_coded_interface(again.graph) == read_coded_interface(once.graph)


def test_wrong_codes_are_found() -> None:
    """The proof runs the result itself behind the codes that it declares: a wrong scale fails."""
    from memoptc.coded_interface import with_interface_of, write_coded_interface
    from memoptc.ir.onnx_io import read_onnx

    before = net()
    found = compile(before, 1, "int8", calibration=feeds(), quantize_io=True)
    original, interface = read_onnx(before), read_coded_interface(found.graph)
    right = with_interface_of(original, found.graph)
    interface.inputs["image"] = Coded(DType.UINT8, interface.inputs["image"].scale or 1.0 * 2, 0)
    write_coded_interface(found.graph, interface)
    wrong = with_interface_of(original, found.graph)
    (feed,) = feeds(1)
    expected, good, bad = (Evaluator(m).run(feed)["y"] for m in (before, to_proto(right), to_proto(wrong)))
    assert np.abs(good - expected).max() < 0.1 * np.abs(expected).max() < np.abs(bad - expected).max()


@pytest.mark.parametrize("target", ["float32", "int4", "bfloat16", "float8"])
def test_targets_without_codes_refuse(target: str) -> None:
    with pytest.raises(InputError, match="leaves inputs and outputs as they are"):
        compile(net(), 1, target, quantize_io=True)


def test_a_pipeline_of_ones_own_says_it_itself() -> None:
    with pytest.raises(InputError) as refusal:
        compile(net(), 1, "int8", quantize_io=True, passes="quantize")
    assert "quantize-io" in refusal.value.hint


@zoo.each_model(skip=tuple(n for n in zoo.NAMES if n not in ("digits_cnn", "squeezenet_fp32")))
def test_real_models(name: str, tmp_path: Path) -> None:
    assert zoo.ZOO is not None
    data, _ = zoo.ZOO.samples(name, 4)
    found = compile(zoo.ZOO.path(name), 2, "int8", calibration=data, quantize_io=True)
    assert found.report.verification["passed"]
    assert TensorProto.UINT8 in kinds(found)[0].values()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written takes codes, and `verify` holds it against the original all the same."""
    examples = Path(__file__).resolve().parents[2] / "examples" / "models"
    before, after, report = examples / "digits_cnn.onnx", tmp_path / "q.onnx", tmp_path / "r.json"
    data = str(examples / "digits_calibration.npz")
    asked = ["--target", "int8", "--calibration", data, "--quantize-io", "--no-measure", "--report", str(report)]
    assert main([str(before), "-o", str(after), *asked]) == 0
    ports = onnx.load(after).graph
    assert {v.type.tensor_type.elem_type for v in (*ports.input, *ports.output)} == {TensorProto.UINT8}
    found = json.loads(report.read_text())
    assert found["kernels"]["integer"]["QLinearConv"] == 7
    assert found["kernels"]["borders"] <= 2
    assert found["options"]["quantize_io"] is True
    capsys.readouterr()
    assert main(["verify", str(before), str(after), "--target", "int8", "--validation", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"][0]["sqnr_db"] > 20
