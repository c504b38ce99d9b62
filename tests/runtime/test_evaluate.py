"""Every kind of value goes in and comes out, and onnxruntime's refusals become one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from runtime_models import mlp, normal, parse

from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.ir.types import DType, MapType, OptionalType, SequenceType, TensorType
from memoptc.runtime.evaluate import Evaluator, port_type
from memoptc.runtime.options import RunOptions


def identity(kind: onnx.TypeProto) -> onnx.ModelProto:
    x, y = (helper.make_value_info(name, kind) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=dtype).reshape(2, 3)
        for dtype in (
            np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64,
            np.uint8, np.uint16, np.uint32, np.uint64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
            ml_dtypes.float8_e5m2,
        )
    ]
    + [np.array([[True, False]]), np.zeros((0, 3), np.float32), np.zeros((0, 3), ml_dtypes.bfloat16)],
    ids=lambda a: f"{a.dtype.name}{a.shape}",
)  # fmt: skip
def test_tensors_of_every_type(array: np.ndarray) -> None:
    kind = helper.make_tensor_type_proto(int(DType.from_numpy(array.dtype)), [None, None])
    found = Evaluator(identity(kind)).run({"x": array})["y"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_strings_sequences_and_optionals() -> None:
    text = helper.make_tensor_type_proto(TensorProto.STRING, [None])
    assert list(Evaluator(identity(text)).run({"x": np.array(["a", "ü"], object)})["y"]) == ["a", "ü"]
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [None])
    sequence = helper.make_sequence_type_proto(number)
    found = Evaluator(identity(sequence)).run({"x": [normal(2), normal(3)]})["y"]
    assert [a.shape for a in found] == [(2,), (3,)]
    optional = Evaluator(identity(helper.make_optional_type_proto(number)))
    assert isinstance(optional.inputs["x"], OptionalType)
    assert optional.run({"x": None})["y"] is None
    assert np.array_equal(optional.run({"x": normal(2)})["y"], normal(2))


def test_sources_are_a_path_bytes_or_a_protobuf(tmp_path: Path) -> None:
    model = mlp()
    onnx.save(model, tmp_path / "m.onnx")
    onnx.save(mlp(), tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0)
    bare = onnx.load(tmp_path / "e.onnx", load_external_data=False)
    feed = {"x": normal(2, 16)}
    found = [
        Evaluator(source, RunOptions(optimize=False), folder=folder).run(feed)["y"]
        for source, folder in [
            (model, None),
            (model.SerializeToString(), None),
            (tmp_path / "m.onnx", None),
            (str(tmp_path / "e.onnx"), None),
            (bare, tmp_path),
        ]
    ]
    assert all(np.array_equal(found[0], y) for y in found)


def test_ports_carry_types() -> None:
    evaluator = Evaluator(mlp())
    assert isinstance(evaluator.inputs["x"], TensorType)
    assert str(evaluator.inputs["x"].shape[0]) == "N"  # type: ignore[index]
    assert evaluator.outputs["y"].shape[1] == 4  # type: ignore[union-attr]
    assert port_type("seq(map(int64,tensor(float)))") == SequenceType(MapType(DType.INT64, TensorType(DType.FLOAT)))
    assert port_type("opaque") is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"no model", "cannot load it: .*protobuf"),
        ("/nowhere/m.onnx", "no such file"),
        (parse("g (float[N] x) => (float[N] y) { y = Nonsense(x) }"), "Nonsense"),
    ],
)
def test_models_that_do_not_load(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Evaluator(model)
    assert "\n" not in caught.value.message
    assert "ONNXRuntimeError" not in caught.value.message


def test_a_failing_run_names_the_node(capfd: pytest.CaptureFixture[str]) -> None:
    model = parse("g (float[N] x, int64[M] i) => (float[M] y) { y = Gather(x, i) }")
    model.graph.node[0].name = "pick"
    evaluator = Evaluator(model, blame=InternalError, label="the output")
    with pytest.raises(InternalError, match=r"the output: onnxruntime cannot run it: node 'pick' \(Gather\)"):
        evaluator.run({"x": normal(2), "i": np.array([9])})
    assert capfd.readouterr().err == ""


LOOP = """g (int64 trips, float x) => (float y) {
  yes = Constant<value = bool {1}> ()
  y = Loop(trips, yes, x) <body = b (int64 i, bool more, float state) => (bool go, float next) {
    go = Identity(more)
    next = Sin(state)
  }>
}"""


def test_a_run_that_takes_too_long_is_ended_and_the_next_one_runs() -> None:
    evaluator = Evaluator(parse(LOOP), label="a loop")
    x = np.array(0.5, np.float32)
    with pytest.raises(InputError, match=r"a loop: a run of it takes more than 0\.2 s"):
        evaluator.run({"trips": np.array(2**62), "x": x}, cpu_seconds=0.2)
    (y,) = evaluator.run({"trips": np.array(1), "x": x}, cpu_seconds=1000.0).values()
    np.testing.assert_allclose(y, np.sin(x), rtol=1e-5)


def test_options_survive_json() -> None:
    options = RunOptions(optimize=False, file_order=True, disabled_optimizers=("A",), config={"k": "v"})
    again = RunOptions(**options.to_json())
    assert again.native() == options.native()
    assert dict(again.config) == {"k": "v"}
