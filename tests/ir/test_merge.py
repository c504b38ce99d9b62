"""Models over one file of weights: each gives the same bits, and what they have in common is stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from encoders import encoder
from onnx import TensorProto, helper, numpy_helper

from memoptc.cli.main import main
from memoptc.ir.diagnostics import InputError
from memoptc.ir.merge import WEIGHTS, merge_models
from memoptc.ir.onnx_data import PAGE


def head(path: Path, classes: int, *, external: bool = False) -> Path:
    """A table that all have, a head of its own, and a branch with a weight of the table's content."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((64, 96)).astype(np.float32)
    weights = {"w": table, "head": np.random.default_rng(classes).standard_normal((96, classes)).astype(np.float32)}

    def branch(name: str, sign: float) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", f"{name}_w"], [name])]
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [out], [numpy_helper.from_array(sign * table, f"{name}_w")])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["on"], ["b"], then_branch=branch("t", 1.0), else_branch=branch("e", -1.0)),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "head"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64]),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=64)
    return path


def run(path: Path, on: bool) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32), "on": np.array(on)}
    found: np.ndarray = session.run(None, feed)[0]
    return found


def test_each_runs_as_before_and_common_weights_are_stored_once(tmp_path: Path) -> None:
    one, two = head(tmp_path / "one.onnx", 11), head(tmp_path / "two.onnx", 13, external=True)
    before = {path: [run(path, on) for on in (True, False)] for path in (one, two)}
    found = merge_models([one, two], tmp_path / "both")
    for old, new in zip((one, two), found.models, strict=True):
        for on, wanted in zip((True, False), before[old], strict=True):
            np.testing.assert_array_equal(run(new, on), wanted)
    table, heads = 64 * 96 * 4, 96 * 4 * (11 + 13)
    assert found.bytes_before == 6 * table + heads
    # The table, its negative, and the heads, each on pages of its own.
    assert found.bytes_after <= 2 * table + heads + 4 * PAGE
    assert found.weights.stat().st_size == found.bytes_after
    offsets = {
        int(entry.value)
        for path in found.models
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    }
    assert all(offset % PAGE == 0 for offset in offsets)


def test_the_command_says_what_it_saved_and_keeps_contracts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name in ("a", "b"):
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(encoder(2, 9, readout="first"), paths[-1])
    (tmp_path / "a.session.json").write_text("{}")
    assert main(["merge", *map(str, paths), "-o", str(tmp_path / "out")]) == 0
    assert "wrote 2 models" in capsys.readouterr().out
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["a.onnx", "a.session.json", "b.onnx", WEIGHTS]


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    one = head(tmp_path / "one.onnx", 11)
    (tmp_path / "deep").mkdir()
    again = head(tmp_path / "deep" / "one.onnx", 12)
    with pytest.raises(InputError, match="Two of the models"):
        merge_models([one, again], tmp_path / "both")
    missing = head(tmp_path / "two.onnx", 12, external=True)
    missing.with_name("two.onnx.data").unlink()
    with pytest.raises(InputError, match="is missing"):
        merge_models([one, missing], tmp_path / "both")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="ONNX model"):
        merge_models([tmp_path / "text.onnx"], tmp_path / "both")
    with pytest.raises(InputError, match=r"called weights\.data"):
        merge_models([head(tmp_path / WEIGHTS, 13)], tmp_path / "both")
    with pytest.raises(InputError, match="already"):
        merge_models([one], tmp_path / "deep")
    assert not (tmp_path / "both").exists()


def test_tensors_of_attributes_and_functions_come_along(tmp_path: Path) -> None:
    """They lie in a file beside the model, which the new folder does not have."""

    def constant(name: str, seed: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.full(400, seed, np.float32)))

    function = helper.make_function(
        "own", "F", [], ["f"], [constant("f", 2)], [helper.make_opsetid("", 18)], attributes=[]
    )
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [400]) for name in ("a", "b")]
    graph = helper.make_graph([constant("a", 1), helper.make_node("F", [], ["b"], domain="own")], "g", [], out)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=9)
    place = tmp_path / "from"
    place.mkdir()
    with (place / "own.data").open("wb") as data:
        for node in (model.graph.node[0], model.functions[0].node[0]):
            content, start = node.attribute[0].t.raw_data, data.tell()
            data.write(content)
            onnx.external_data_helper.set_external_data(node.attribute[0].t, "own.data", start, len(content))
            node.attribute[0].t.ClearField("raw_data")
    (place / "m.onnx").write_bytes(model.SerializeToString())
    (merged,) = merge_models([place / "m.onnx"], tmp_path / "to").models
    written = onnx.load(merged, load_external_data=False)
    for node, value in ((written.graph.node[0], 1), (written.functions[0].node[0], 2)):
        tensor = node.attribute[0].t
        assert {e.value for e in tensor.external_data if e.key == "location"} == {WEIGHTS}
        np.testing.assert_array_equal(numpy_helper.to_array(tensor, str(tmp_path / "to")), np.full(400, value))
