"""Stages: one after the other they are the model, cut where few bytes cross, over weights that are stored once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from encoders import WIDTH, encoder
from onnx import TensorProto, helper, numpy_helper

from memoptc.cli.main import main
from memoptc.ir.diagnostics import InputError
from memoptc.ir.stages import MANIFEST, WEIGHTS, split
from memoptc.runtime import Stages


def plain() -> onnxruntime.SessionOptions:
    """Without onnxruntime's optimizer, which fuses what a cut separates: every bit is the model's then."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def whole(model: Path, feed: dict[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feed)
    return found


def narrow_waist(path: Path) -> Path:
    """Two halves of equal weights; 64 features within them, 2 between, and a branch that reads weights of both."""
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 64), "b": (64, 2), "c": (2, 64), "d": (64, 64)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    result = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("MatMul", ["h3", "d"], ["t"])], "t", [], [result])
    other_ = helper.make_graph([helper.make_node("MatMul", ["h3", "a"], ["e"])], "e", [], [other])
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("MatMul", ["h1", "b"], ["waist"]),
        helper.make_node("MatMul", ["waist", "c"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("If", ["on"], ["h4"], then_branch=then, else_branch=other_),
        helper.make_node("Add", ["h4", "h3"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64]),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 64]) for n in ("y", "h1")]
    graph = helper.make_graph(nodes, "waist", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_outputs_that_are_weights_and_products_that_nobody_reads(tmp_path: Path) -> None:
    model = onnx.load(narrow_waist(tmp_path / "m.onnx"))
    model.graph.node.append(helper.make_node("MatMul", ["y", "d"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [64, 64]))
    model.graph.output.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [2]))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1, 2], np.float32), "k"))
    onnx.save(model, tmp_path / "m.onnx")
    split(tmp_path / "m.onnx", tmp_path / "out", 3, {})
    feed = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32), "on": np.array(True)}
    found, wanted = Stages(tmp_path / "out", options=plain()).run(None, feed), whole(tmp_path / "m.onnx", feed, plain())
    assert [f.tobytes() for f in found] == [w.tobytes() for w in wanted]


def test_the_cut_goes_where_fewest_bytes_cross(tmp_path: Path) -> None:
    model = narrow_waist(tmp_path / "m.onnx")
    found = split(model, tmp_path / "out", 2, {"N": 10})
    assert found.crossing_bytes == (10 * 2 * 4,)
    assert found.stages[0] == ("h0", "h1", "waist")
    (stage,) = (onnx.load(tmp_path / "out" / "stage1.onnx", load_external_data=False),)
    assert {value.name for value in stage.graph.input} == {"waist", "on"}
    # The weight that both stages read lies in the file once.
    assert (tmp_path / "out" / WEIGHTS).stat().st_size < 3 * 64 * 64 * 4
    for on in (True, False):
        feed = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32), "on": np.array(on)}
        for got, wanted in zip(Stages(tmp_path / "out").run(None, feed), whole(model, feed), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"keep": True}, {"ahead": False}])
def test_stages_give_the_bits_of_the_whole(tmp_path: Path, count: int, options: dict[str, bool]) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(encoder(3, "tokens", readout="mean", masked=True), model)
    split(model, tmp_path / "out", count, {})
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((2, 9, WIDTH)).astype(np.float32), "mask": np.ones((2, 9), np.float32)}
    exact = Stages(tmp_path / "out", options=plain(), **options)
    for _ in range(2):
        np.testing.assert_array_equal(exact.run(None, feed)[0], whole(model, feed, plain())[0])
    fused = Stages(tmp_path / "out", **options).run(None, feed)[0]
    np.testing.assert_allclose(fused, whole(model, feed)[0], rtol=1e-5, atol=1e-6)


def test_the_command_says_what_crosses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = narrow_waist(tmp_path / "m.onnx")
    assert main(["stages", str(model), "-o", str(tmp_path / "out"), "--dim", "N=10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["crossing_bytes"] == [80]


def test_what_cannot_be_cut_or_run_is_refused(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "one.onnx")
    with pytest.raises(InputError, match="nothing to cut"):
        split(tmp_path / "one.onnx", tmp_path / "out", 2, {})
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no stages"):
        Stages(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="no stages"):
        Stages(tmp_path / "bad")
    model = narrow_waist(tmp_path / "m.onnx")
    split(model, tmp_path / "out", 2, {})
    with pytest.raises(InputError, match="'on' is missing"):
        Stages(tmp_path / "out").run(None, {"x": np.zeros((1, 64), np.float32)})
    with pytest.raises(InputError, match="no output 'z'"):
        Stages(tmp_path / "out").run(["z"], {})
    with pytest.raises(InputError, match="no input 'z'"):
        Stages(tmp_path / "out").run(None, {"z": np.zeros(1, np.float32)})


def test_an_input_with_a_default_may_be_given(tmp_path: Path) -> None:
    """And no stage gets more than half a share of the weights beyond its own."""
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[N, 32] x, float[32] bias) => (float[N, 32] y) {
        a = MatMul (x, u)  b = Add (a, bias)  c = MatMul (b, v)  d = Mul (c, bias)
        e = MatMul (d, w)  f = Add (e, bias)  g = MatMul (f, t)  y = Mul (g, bias) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    content = {n: rng.standard_normal((32, 32)).astype(np.float32) for n in "uvwt"} | {"bias": np.ones(32, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in content.items())
    onnx.save(model, tmp_path / "m.onnx")
    found = split(tmp_path / "m.onnx", tmp_path / "out", 3, {})
    assert sorted(found.weight_bytes) == [4096, 4096, 8192]
    x = rng.standard_normal((2, 32)).astype(np.float32)
    for feed in ({"x": x}, {"x": x, "bias": rng.standard_normal(32).astype(np.float32)}):
        for keep in (False, True):
            got = Stages(tmp_path / "out", keep=keep, options=plain()).run(None, feed)[0]
            assert got.tobytes() == whole(tmp_path / "m.onnx", feed, plain())[0].tobytes()


def test_values_are_dropped_behind_their_last_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stages are found again in another folder; an input that no stage reads may be given all the same."""
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[4] x, float[4] unused) => (float[4] y, float[4] a) {
        a = Mul (x, u)  b = Mul (a, v)  c = Mul (b, w)  d = Mul (c, t)  y = Add (d, a) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.full(4, 2, np.float32), name) for name in "uvwt")
    onnx.save(model, tmp_path / "m.onnx")
    split(tmp_path / "m.onnx", tmp_path / "out", 4, {})
    monkeypatch.chdir(tmp_path)
    stages = Stages("out")
    monkeypatch.chdir("/")
    held: list[set[str]] = []
    run = stages._run_stage
    monkeypatch.setattr(
        stages, "_run_stage", lambda session, values, *a: (held.append(set(values)), run(session, values, *a))
    )
    feed = {"x": np.ones(4, np.float32), "unused": np.ones(4, np.float32)}
    (found,) = stages.run(["y"], feed)
    assert len(held) == 4
    assert held[0] == {"x", "unused"}
    assert all(len(values) == 2 and "a" in values for values in held[2:])
    np.testing.assert_allclose(found, whole(tmp_path / "m.onnx", feed)[0], rtol=1e-6)


def test_a_run_can_be_ended_through_its_options(tmp_path: Path) -> None:
    model = narrow_waist(tmp_path / "m.onnx")
    split(model, tmp_path / "out", 2, {})
    feed = {"x": np.ones((1, 64), np.float32), "on": np.array(True)}
    options = onnxruntime.RunOptions()
    assert len(Stages(tmp_path / "out").run(None, feed, options)) == 2
    options.terminate = True
    with pytest.raises(Exception, match="terminate flag"):
        Stages(tmp_path / "out").run(None, feed, options)


def test_what_numpy_cannot_carry_does_not_cross(tmp_path: Path) -> None:
    """Codes of 8 bits are the cheapest to hand over, but a session takes them from onnxruntime's own values only."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4] x) => (float[4] y) {
        a = Mul (x, u)  b = Cast <to = 17> (a)  c = Cast <to = 1> (b)  d = Mul (c, v)
        e = Cast <to = 16> (d)  f = Cast <to = 1> (e)  y = Mul (f, w) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.full(4, 2, np.float32), name) for name in "uvw")
    onnx.save(model, tmp_path / "m.onnx")
    found = split(tmp_path / "m.onnx", tmp_path / "out", 2, {})
    assert found.crossing_bytes == (16,)
    feed = {"x": np.array([1, -2, 3.3, 0], np.float32)}
    np.testing.assert_array_equal(Stages(tmp_path / "out").run(None, feed)[0], whole(tmp_path / "m.onnx", feed)[0])
