"""Trial runs on made-up inputs: what ends onnxruntime's process ends no compile, and sizes stay affordable."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from memoptc import compile
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.design_points import AFFORDABLE, PLANNED, design_points
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.memory.liveness import peak
from memoptc.runtime.trials import may_crash_process, trial_runs


def _model(op_type: str, inputs: list[onnx.ValueInfoProto], opset: int = 18, **attrs: object) -> onnx.ModelProto:
    node = helper.make_node(op_type, [i.name for i in inputs], ["y"], **attrs)
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _open(name: str, dtype: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, None)


ENDING = {
    "MaxRoiPool": lambda: _model("MaxRoiPool", [_open("x"), _open("boxes")], pooled_shape=[2, 2]),
    "STFT": lambda: _model("STFT", [_open("x"), helper.make_tensor_value_info("s", 7, []), _open("w")]),
}


def test_a_compile_outlives_runs_that_end_the_process() -> None:
    result = compile(ENDING["MaxRoiPool"](), 1, verify="off", measure=False)
    assert [n.op_type for n in result.model.graph.node] == ["MaxRoiPool"]
    assert any("a run ends onnxruntime's process" in warning for warning in result.report.warnings)


def test_looking_for_inputs_says_that_runs_end_the_process() -> None:
    model = ENDING["STFT"]()
    with pytest.raises(InputError, match="ends onnxruntime's process") as caught:
        find_feeds(read_onnx(model), Evaluator(model))
    assert "--validation" in caught.value.hint


def test_only_open_ranks_are_tried_apart() -> None:
    declared = (
        helper.make_tensor_value_info("x", 1, ["n", "c", "h", "w"]),
        helper.make_tensor_value_info("b", 1, [1, 5]),
    )
    assert not may_crash_process(InputMaker(read_onnx(_model("MaxRoiPool", list(declared), pooled_shape=[2, 2]))).typed)
    assert not may_crash_process(InputMaker(read_onnx(_model("Relu", [_open("x")]))).typed)
    assert may_crash_process(InputMaker(read_onnx(ENDING["STFT"]())).typed)


def test_a_worker_goes_on_after_a_refusal() -> None:
    model = _model("ReverseSequence", [_open("x"), _open("n", onnx.TensorProto.INT64)])
    graph = InputMaker(read_onnx(model)).typed
    good = {"x": np.ones((3, 2), np.float32), "n": np.array([1, 2])}
    with trial_runs(graph, Evaluator(model)) as trial:
        assert trial.outputs_are_finite(good)
        with pytest.raises(InputError, match="ReverseSequence"):
            trial.outputs_are_finite({**good, "n": np.array([1, 2, 3])})
        assert not trial.outputs_are_finite({**good, "x": np.full((3, 2), np.nan, np.float32)})


def test_a_run_in_a_worker_is_ended_after_its_time_and_no_crash() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]> g (int64 trips, float x) => (float y) {
      yes = Constant<value = bool {1}> ()
      y = Loop(trips, yes, x) <body = b (int64 i, bool more, float state) => (bool go, float next) {
        go = Identity(more)
        next = Sin(state)
      }>
    }""")
    model.graph.input.extend([_open("r"), _open("n", onnx.TensorProto.INT64)])
    model.graph.node.append(helper.make_node("ReverseSequence", ["r", "n"], ["z"]))
    model.graph.output.append(helper.make_empty_tensor_value_info("z"))
    feed = {"x": np.array(0.5, np.float32), "r": np.ones((3, 2), np.float32), "n": np.array([1, 2])}
    with trial_runs(InputMaker(read_onnx(model)).typed, Evaluator(model)) as trial:
        trial.cpu_seconds = 0.2
        for _ in range(4):
            with pytest.raises(InputError, match=r"a run of it takes more than 0\.2 s"):
                trial.outputs_are_finite({**feed, "trips": np.array(2**62)})
        assert trial.outputs_are_finite({**feed, "trips": np.array(1)})


def test_a_worker_answers_for_numbers_of_every_format() -> None:
    model = _model("Cast", [_open("x")], to=onnx.TensorProto.BFLOAT16)
    graph = InputMaker(read_onnx(model)).typed
    with trial_runs(graph, Evaluator(model)) as trial:
        assert trial.outputs_are_finite({"x": np.ones(3, np.float32)})
        assert not trial.outputs_are_finite({"x": np.array([np.inf], np.float32)})


def test_open_axes_do_not_multiply_into_gigabytes() -> None:
    x = helper.make_tensor_value_info("x", 1, ["a", "b", "b", "c"])
    model = _model("Reshape", [x, helper.make_tensor_value_info("s", 7, [4])], 13)
    graph = read_onnx(model)
    maker = InputMaker(graph)
    assert max(maker.nbytes(binding) for binding in maker.bindings()) > 100 << 20
    largest = 0

    class Watched(Evaluator):
        def run(self, feed, outputs=None, **limits):  # type: ignore[no-untyped-def]
            nonlocal largest
            largest = max(largest, feed["x"].nbytes)
            return super().run(feed, outputs, **limits)

    assert find_feeds(graph, Watched(model), count=1)[0].feed["x"].size
    assert 0 < largest <= 16 << 20


def test_design_points_count_what_goes_in() -> None:
    """Nothing is planned for a result of unknown shape: extents were once the largest of each axis, 64 GB of signal."""
    x = helper.make_tensor_value_info("x", 1, ["a", "b", "c"])
    step = helper.make_tensor_value_info("s", 7, [])
    graph = read_onnx(_model("STFT", [x, step, _open("w")]))
    points = design_points(graph, {})
    assert points is not None
    assert InputMaker(graph).nbytes(points.plan) <= PLANNED
    assert InputMaker(graph).nbytes(points.check) <= AFFORDABLE


def test_no_run_begins_that_may_not_fit_at_sizes_of_our_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of 4,096 rows against each other take 64 MiB."""
    x = helper.make_tensor_value_info("x", 1, ["n", 8])
    y = helper.make_tensor_value_info("y", 1, ["n", 8])
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("MatMul", ["scores", "x"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    monkeypatch.setattr("memoptc.runtime.trials.available_bytes", lambda: 64 << 20)
    feed = {"x": np.ones((4096, 8), np.float32)}
    with trial_runs(InputMaker(read_onnx(model)).typed, Evaluator(model)) as trial:
        assert trial.outputs_are_finite(feed)  # where the caller asked for the size, it is tried
        trial.cpu_seconds = 60.0
        assert trial.outputs_are_finite({"x": feed["x"][:64]})
        with pytest.raises(InputError, match="predicted to take"):
            trial.outputs_are_finite(feed)


def test_what_smaller_sizes_take_is_not_predicted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prediction infers all shapes of the model, at sizes that are halved until it runs."""
    model = _model("Sin", [helper.make_tensor_value_info("x", 1, ["n", 4])])
    asked: list[dict[str, int]] = []
    monkeypatch.setattr("memoptc.runtime.trials.peak", lambda g, dims: asked.append(dims) or peak(g, dims))
    with trial_runs(InputMaker(read_onnx(model)).typed, Evaluator(model)) as trial:
        trial.cpu_seconds = 60.0
        for count in (512, 256, 512, 8, 1024):
            assert trial.outputs_are_finite({"x": np.ones((count, 4), np.float32)})
    assert len(asked) == 2
