"""share-transposed: one copy of a tied weight, the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from memoptc.api import compile_file
from memoptc.runtime.measured_contract import make_contract

WIDTH, ROWS = 48, 1500


def tied(form: str, rows: int = ROWS) -> onnx.ModelProto:
    """An embedding whose table the head reads transposed, as a `Transpose` or as a weight of its own."""
    node, value, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    table = np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(np.float32)
    weights = [tensor(table, "table")]
    nodes = [node("Gather", ["table", "ids"], ["e"]), node("Tanh", ["e"], ["h"])]
    if form == "computed":
        nodes.append(node("Transpose", ["table"], ["head"], perm=[1, 0]))
    else:
        weights.append(tensor(np.ascontiguousarray(table.T), "head"))
    nodes.append(node("MatMul", ["h", "head"], ["logits"]))
    ends = value("ids", onnx.TensorProto.INT64, ["n", "s"]), value("logits", 1, ["n", "s", rows])
    graph = onnx.helper.make_graph(nodes, "tied", [ends[0]], [ends[1]], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("external", ["never", "always"])
@pytest.mark.parametrize("form", ["computed", "stored"])
def test_the_table_is_stored_once_and_gives_the_same_bits(tmp_path: Path, form: str, external: str) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(tied(form), source)
    result = compile_file(source, out, level=2, external=external)
    assert result.report.verification["passed"]
    assert sum(p.stat().st_size for p in tmp_path.glob("out.onnx*")) < 1.1 * ROWS * WIDTH * 4
    assert sorted(n.op_type for n in onnx.load(out).graph.node) == ["Gather", "MatMul", "Tanh", "Transpose"]
    sessions = [ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (source, out)]
    for shape in ((1, 1), (1, 7), (3, 40)):
        ids = np.random.default_rng(1).integers(0, ROWS, shape)
        before, after = (s.run(None, {"ids": ids})[0] for s in sessions)
        np.testing.assert_array_equal(before.view(np.uint32), after.view(np.uint32))


@pytest.mark.parametrize("form", ["computed", "stored"])
def test_a_frozen_graph_reads_the_table_itself(tmp_path: Path, form: str) -> None:
    """Nothing folds the Transpose there: it would run each time."""
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(tied(form), source)
    compile_file(source, out, level=2, freeze_runtime=True)
    assert [n.op_type for n in onnx.load(out).graph.node] == ["Gather", "Tanh", "FusedMatMul"]
    assert sum(p.stat().st_size for p in tmp_path.glob("out.onnx*")) < 1.1 * ROWS * WIDTH * 4


def test_without_packing_the_table_is_read_where_it_is_mapped(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", tied("computed", rows=8000)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    feed = {"ids": np.zeros((1, 1), np.int64)}
    found = make_contract(path, feed, threads=1, slowdown=1e9, transposed=True)
    options = found.options.session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    disabled = list(found.options.disabled_optimizers)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    assert [n.op_type for n in nodes] == ["Gather", "Tanh", "FusedMatMul"]


def test_a_large_table_is_read_by_lookups_and_products_where_it_lies(tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(tied("stored", rows=8000), source)
    assert compile_file(source, out, level=2, measure=False).report.verification["passed"]
    assert sorted(n.op_type for n in onnx.load(out).graph.node) == ["FusedMatMul", "Gather", "Squeeze", "Tanh"]
    sessions = [ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (source, out)]
    for shape in ((1, 1), (5, 1), (3, 40), (0, 4)):
        ids = np.random.default_rng(1).integers(0, 8000, shape)
        before, after = (s.run(None, {"ids": ids})[0] for s in sessions)
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    loaded = [make_contract(p, {"ids": np.zeros((1, 1), np.int64)}).measured["loaded_bytes"] for p in (source, out)]
    assert loaded[0] >= 8000 * WIDTH * 4
    assert loaded[1] < 8000 * WIDTH
