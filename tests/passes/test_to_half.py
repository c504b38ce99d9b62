"""to-half: numbers that leave a format's range, what stays float32 and why, kernels of the installed onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest
import zoo
from onnx import TensorProto, helper

from memoptc.api import Result, compile, compile_file
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.ir.types import DType, TensorType
from memoptc.manager import run_pipeline
from memoptc.passes.precision._half.table import FORMATS
from memoptc.pipeline import parse as parse_pipeline
from memoptc.runtime.devices import load_device
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

RNG = np.random.default_rng(0)
WIDTH = 64


def model(text: str) -> onnx.ModelProto:
    found = parse(text)
    infer_shapes(found)
    proto: onnx.ModelProto = to_proto(found)
    return proto


def listed(array: npt.NDArray[Any]) -> str:
    """A constant's text."""
    shape = ",".join(map(str, array.shape))
    return f"const() {{value=[{','.join(repr(float(v)) for v in array.reshape(-1))}]}} : f32[{shape}]"


def layers(factors: list[float]) -> onnx.ModelProto:
    """Layers of product, Relu and normalization; each factor says how large a layer's numbers are in between."""
    lines, last = [], "x"
    for i, factor in enumerate(factors):
        weight = (RNG.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        lines += [
            f"%w{i} = {listed(weight)}",
            f"%k{i} = const() {{value={factor!r}}} : f32[]",
            f"%one{i} = {listed(np.ones(WIDTH, np.float32))}",
            f"%p{i} = MatMul(%{last}, %w{i})",
            f"%m{i} = Mul(%p{i}, %k{i})",
            f"%r{i} = Relu(%m{i})",
            f"%n{i} = LayerNormalization(%r{i}, %one{i}) {{axis=-1}}",
        ]
        last = f"n{i}"
    body = "\n".join(lines)
    return model(f"graph @g(%x: f32[N,{WIDTH}]) -> (f32[*]) {{\n{body}\nreturn %{last}\n}}")


def ops_in(graph: Graph, dtype: DType) -> list[str]:
    """Operators whose first result has an element type, without Casts and constants."""
    return [
        op.op_type for op in graph.ops
        if op.results and not op.is_const and not op.is_a("Cast")
        and isinstance(op.result.type, TensorType) and op.result.type.dtype == dtype
    ]  # fmt: skip


def samples(count: int = 4, rows: int = 8) -> list[dict[str, npt.NDArray[np.float32]]]:
    return [{"x": RNG.standard_normal((rows, WIDTH)).astype(np.float32)} for _ in range(count)]


def decibels(before: onnx.ModelProto, found: Result, feeds: list[dict[str, npt.NDArray[np.float32]]]) -> float:
    """Signal to difference over all outputs; nothing may be NaN or Inf."""
    old, new = Evaluator(before), Evaluator(found.model)
    signal = noise = 0.0
    for feed in feeds:
        for name, value in old.run(feed).items():
            other = new.run(feed)[name]
            assert np.isfinite(other).all(), name
            assert other.dtype == value.dtype
            signal += float(np.square(value, dtype=np.float64).sum())
            noise += float(np.square(value - other, dtype=np.float64).sum())
    return float(10 * np.log10(signal / noise)) if noise else np.inf


def reasons(found: Result) -> list[str]:
    return [f"{d.what}: {d.why}" for d in found.report.decisions if d.step == "to-half"]


WHOLE = "raise-opset{to=17,below=17},to-half{whole=true},drop-dead"


def test_only_what_leaves_the_range_of_half_stays_float32() -> None:
    """The second of three layers holds numbers of about 1e6; its neighbours run in float16."""
    before, feeds = layers([1.0, 1e6, 1.0]), samples()
    found = compile(before, 1, "float16", passes=WHOLE, calibration=feeds, validation=samples())
    assert ops_in(found.graph, DType.FLOAT) == ["Mul", "Relu", "LayerNormalization"]
    assert ops_in(found.graph, DType.FLOAT16).count("MatMul") == 3
    assert decibels(before, found, samples()) > 50
    (constant,) = [r for r in reasons(found) if "Relu" in r]
    assert "reaches" in constant
    assert "beyond 0.25 of 65504" in constant


def test_without_the_measured_ranges_it_would_overflow() -> None:
    """The control of the test above: in float16 as a whole the same model gives no numbers."""
    naive = parse(
        "graph @g(%x: f16[N,4]) -> (f16[*]) {\n %k = const() {value=[60000.0]} : f16[1]\n"
        " %a = Mul(%x, %k)\n %b = Mul(%a, %k)\n return %b\n}"
    )
    infer_shapes(naive)
    with np.errstate(over="ignore"):
        found = Evaluator(to_proto(naive)).run({"x": np.ones((2, 4), np.float16)})
    assert np.isinf(next(iter(found.values()))).all()


@pytest.mark.parametrize("size", [1e6, 1e20, 1e30])
def test_bfloat16_reaches_as_far_as_float32(size: float) -> None:
    """What moves large numbers about runs in bfloat16, not in float16; neither gives NaN or Inf."""
    body = (
        f"%k = const() {{value={size!r}}} : f32[]\n %a = Mul(%x, %k)\n %b = Transpose(%a) {{perm=[1,0]}}\n"
        " %c = Concat(%b, %b, %b, %b) {axis=0}\n %d = Transpose(%c) {perm=[1,0]}\n"
        " %s = const() {value=[0]} : i64[1]\n %e = const() {value=[8]} : i64[1]\n %f = Slice(%d, %s, %e)\n"
        " %h = Div(%f, %k)\n"
    )
    before = model(f"graph @g(%x: f32[N,{WIDTH}]) -> (f32[*]) {{\n {body} return %h\n}}")
    moves = 'raise-opset{to=13,below=13},to-half{format="%s"},drop-dead'
    made = {
        name: compile(before, 1, name, passes=moves % name, calibration=samples(), validation=samples())
        for name in ("bfloat16", "float16")
    }
    assert ops_in(made["bfloat16"].graph, DType.BFLOAT16) == ["Transpose", "Concat", "Transpose", "Slice"]
    assert not ops_in(made["float16"].graph, DType.FLOAT16)
    assert decibels(before, made["bfloat16"], samples()) > 45
    assert decibels(before, made["float16"], samples()) > 100


def test_a_value_that_only_grows_large_on_the_data_is_seen_there() -> None:
    """Made-up inputs stay small: what the calibration data shows decides."""
    before = model(
        f"graph @g(%x: f32[N,{WIDTH}]) -> (f32[*], f32[*]) {{\n"
        f" %w = {listed(np.eye(WIDTH, dtype=np.float32))}\n"
        " %a = MatMul(%x, %w)\n %b = Tanh(%a)\n %c = Neg(%b)\n return %a, %c\n}"
    )
    large = [{"x": f["x"] * np.float32(1e5)} for f in samples()]
    made_up = compile(before, 1, "float16", passes=WHOLE, verify="off")
    measured = compile(before, 1, "float16", passes=WHOLE, calibration=large)
    assert "MatMul" in ops_in(made_up.graph, DType.FLOAT16)
    assert "MatMul" in ops_in(measured.graph, DType.FLOAT)
    assert decibels(before, measured, large) > 40


@pytest.mark.parametrize("target", ["float16", "bfloat16", "float8"])
def test_the_level_two_pipeline_keeps_names_dtypes_and_numbers(target: str) -> None:
    before, feeds = layers([1.0, 3e3, 1.0]), samples()
    found = compile(before, 2, target, calibration=feeds)
    after = found.model
    for old, new in ((before.graph.input, after.graph.input), (before.graph.output, after.graph.output)):
        assert [v.name for v in old] == [v.name for v in new]
        assert {v.type.tensor_type.elem_type for v in new} == {TensorProto.FLOAT}
    least = {"float16": 55, "bfloat16": 35, "float8": 20}[target]
    assert decibels(before, found, samples()) > least
    share = {"float16": 0.55, "bfloat16": 0.55, "float8": 0.35}[target]
    assert found.report.candidate.weight_bytes < share * found.report.control.weight_bytes


def test_weights_beyond_the_range_stay_and_are_named() -> None:
    weight = np.full((WIDTH, WIDTH), 1e5, np.float32)
    before = model(
        f"graph @g(%x: f32[N,{WIDTH}]) -> (f32[*]) {{\n %big = {listed(weight)}\n %y = MatMul(%x, %big)\n return %y\n}}"
    )
    found = compile(before, 1, "float16", calibration=samples())
    (line,) = [r for r in reasons(found) if "%big" in r]
    assert "1e+05 is beyond 0.25 of 65504" in line
    assert found.report.candidate.weight_bytes == found.report.control.weight_bytes
    scaled = compile(before, 1, "float8", calibration=samples())
    assert scaled.report.candidate.weight_bytes < 0.3 * found.report.control.weight_bytes


def test_scales_of_codes_stay_float32() -> None:
    """A scale belongs to its codes: a narrow one would change what they stand for."""
    narrow = 'to-half{format="float8",smallest=0}'
    text = f"raise-opset{{to=19,below=19}},{narrow},drop-dead,{narrow},drop-dead"
    twice = compile(layers([1.0]), 1, "float8", passes=text, verify="off")
    decoders = [op for op in twice.graph.ops if op.op_type == "DequantizeLinear"]
    assert len(decoders) >= 1
    assert all(op.operands[1].tensor is not None for op in decoders)


def test_options_are_checked() -> None:
    for text in (
        'format="posit"',
        "share=0.0",
        "share=1.5",
        'format="float8",whole=true',
        "storage=true,whole=true",
        'format="bfloat16",whole=true',
    ):
        with pytest.raises(InputError):
            parse_pipeline(f"to-half{{{text}}}")


# -- what the installed onnxruntime does -------------------------------------------------------------

SHAPES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Clip": ([(4, 4)], {}),
    "Compress": ([(4, 4), np.array([True, False, True, True])], {"axis": 0}),
    "Concat": ([(4, 4), (4, 4)], {"axis": 0}),
    "Expand": ([(4, 1), np.array([4, 4])], {}),
    "Flatten": ([(4, 4)], {}),
    "Gather": ([(4, 4), np.array([1, 2])], {}),
    "GatherElements": ([(4, 4), np.zeros((4, 4), np.int64)], {}),
    "GatherND": ([(4, 4), np.zeros((2, 1), np.int64)], {}),
    "Identity": ([(4, 4)], {}),
    "LayerNormalization": ([(4, 4), (4,)], {}),
    "Max": ([(4, 4), (4, 4)], {}),
    "Min": ([(4, 4), (4, 4)], {}),
    "RMSNormalization": ([(4, 4), (4,)], {}),
    "Reshape": ([(4, 4), np.array([2, 8])], {}),
    "ReverseSequence": ([(4, 4), np.full(4, 2, np.int64)], {}),
    "RotaryEmbedding": ([(1, 2, 4, 8), (4, 4), (4, 4), np.zeros((1, 4), np.int64)], {}),
    "Round": ([(4, 4)], {}),
    "ScatterElements": ([(4, 4), np.zeros((4, 4), np.int64), (4, 4)], {}),
    "ScatterND": ([(4, 4), np.zeros((2, 1), np.int64), (2, 4)], {}),
    "Sign": ([(4, 4)], {}),
    "Slice": ([(4, 4), np.array([0]), np.array([2])], {}),
    "Split": ([(4, 4)], {"num_outputs": 1}),
    "Squeeze": ([(1, 4)], {}),
    "TensorScatter": ([(1, 4, 4), (1, 1, 4), np.array([1])], {}),
    "Transpose": ([(4, 4)], {}),
    "Unsqueeze": ([(4, 4), np.array([0])], {}),
}
"""Operator -> operands (a shape is one in the format) and attributes."""


def casts_inserted(model: onnx.ModelProto, written: Path) -> int | None:
    """How many Casts onnxruntime puts around a node for want of a kernel; `None` when it refuses the node."""
    options = RunOptions(optimize=False).session_options()
    options.optimized_model_filepath = str(written)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None
    operators = [node.op_type for node in onnx.load(written).graph.node]
    return operators.count("Cast") - (model.graph.node[0].op_type == "Cast")


@pytest.mark.parametrize("format_", ["float16", "bfloat16"])
def test_the_kernels_of_the_table_need_no_casts(format_: str, tmp_path: Path) -> None:
    """Every operator of the table runs as it is, between inputs and outputs of the format."""
    kernels, kind = load_device("cpu").half[format_], int(FORMATS[format_].dtype)
    assert set(kernels) <= set(SHAPES)
    refused = {}
    for name in kernels:
        operands, attrs = SHAPES[name]
        inputs = [
            helper.make_tensor_value_info(f"x{i}", kind, part)
            if isinstance(part, tuple)
            else helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(part.dtype), part.shape)
            for i, part in enumerate(operands)
        ]
        node = helper.make_node(name, [v.name for v in inputs], ["y"], **attrs)
        output = helper.make_tensor_value_info("y", kind, None)
        graph = helper.make_graph([node], "probe", inputs, [output])
        imports = [helper.make_opsetid("", max(18, kernels[name])), helper.make_opsetid("com.microsoft", 1)]
        casts = casts_inserted(helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "m.onnx")
        if casts != 0:
            refused[name] = casts
    assert not refused


ZOO = ("digits_cnn", "digits_vit", "charlm", "tabular_ft")


@pytest.mark.parametrize("target", ["float16", "bfloat16", "float8"])
@zoo.each_model(skip=tuple(n for n in zoo.NAMES if n not in ZOO))
def test_real_models(name: str, target: str, tmp_path: Path) -> None:
    assert zoo.ZOO is not None
    feeds, _ = zoo.ZOO.samples(name, 4)
    found = compile_file(zoo.ZOO.path(name), tmp_path / "h.onnx", target=target, validation=feeds or None).report
    assert found.verification["passed"]
    assert found.candidate.weight_bytes < 0.75 * found.control.weight_bytes


@pytest.mark.parametrize("kind", ["seq", "optional"])
@pytest.mark.parametrize(("dtype", "passes"), [("float16", "widen-half{smallest=0}"), ("float", "to-half{smallest=0}")])
def test_what_is_inside_of_an_input_keeps_its_type(kind: str, dtype: str, passes: str) -> None:
    take = "SequenceAt (outer, first)" if kind == "seq" else "OptionalGetElement (outer)"
    text = f"g ({kind}({dtype}[N,2]) outer, int64 first) => ({dtype}[N,2] y) {{ x = {take} y = MatMul (x, w) }}"
    before = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    weight = RNG.standard_normal((2, 2)).astype("float16" if dtype == "float16" else "float32")
    before.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    x = RNG.standard_normal((3, 2)).astype(weight.dtype)
    feed = {"outer": [x] if kind == "seq" else x, "first": np.asarray(0)}
    expected = Evaluator(before).run(feed)["y"]
    found = Evaluator(compile(before, passes=f"{passes},lower", verify="off", measure=False).model).run(feed)["y"]
    assert found.dtype == expected.dtype
    assert np.allclose(found, expected, atol=5e-3)


def test_the_way_out_that_an_error_names_runs_a_bfloat16_model() -> None:
    """onnxruntime has no kernel for most operators on bfloat16, and Python cannot even hand such numbers in."""
    before = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (bfloat16[N,2] x) => (bfloat16[N,2] y) '
        "{ z = Mul (x, x) y = MatMul (z, w) }"
    )
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2, 2], [0.5, -1.0, 0.25, 2.0])
    before.graph.initializer.append(weight)
    with pytest.raises(InputError, match="interface=true") as caught:
        Evaluator(before)
    passes = caught.value.hint.split("'")[1]
    graph = read_onnx(before)
    run_pipeline(parse_pipeline(f"{passes},lower"), graph)
    x = RNG.standard_normal((3, 2)).astype(np.float32)
    found = Evaluator(to_proto(graph)).run({"x": x})["y"]
    assert np.allclose(found, (x * x) @ np.asarray([[0.5, -1.0], [0.25, 2.0]], np.float32))
