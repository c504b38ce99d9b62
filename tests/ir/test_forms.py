"""Forms of a file: what is written in one reads back as the graph that it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from memoptc.forms import predicted_needs
from memoptc.ir.core import Graph
from memoptc.ir.equality import same_structure
from memoptc.ir.form_names import FormName
from memoptc.ir.forms import HIDDEN, KEY, MARKER, WritingForm, captured_weights, obstacle
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto, write_onnx
from memoptc.ir.parser import parse
from memoptc.runtime.measure import measure_need
from memoptc.runtime.options import RunOptions

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"


def branching() -> Graph:
    """A product whose weight two places read, an If inside an If, a table, and twins of one weight."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.random((128, 128), np.float32),
        "twin": None,
        "other": rng.random((128, 128), np.float32),
        "table": rng.random((300, 128), np.float32),
    }
    weights["twin"] = weights["w"].copy()
    node, value, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    assert all(w is not None for w in weights.values())

    def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return onnx.helper.make_graph(nodes, name, [], [value(f"{name}_y", 1, ["n", 128])])

    inner = [branch("relu", [node("Relu", ["h"], ["relu_y"])]), branch("neg", [node("Neg", ["h"], ["neg_y"])])]
    outer = [
        branch("two", [node("If", ["small"], ["t"], then_branch=inner[0], else_branch=inner[1]),
                       node("MatMul", ["t", "other"], ["two_y"])]),
        branch("one", [node("Tanh", ["h"], ["one_y"])]),
    ]  # fmt: skip
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("MatMul", ["e", "w"], ["g"]),
        node("MatMul", ["g", "twin"], ["h"]),
        node("ReduceMax", ["h"], ["m"], keepdims=0),
        node("Greater", ["m", "limit"], ["large"]),
        node("Not", ["large"], ["small"]),
        node("If", ["large"], ["r"], then_branch=outer[0], else_branch=outer[1]),
        node("Add", ["r", "h"], ["y"]),
    ]
    initializers = [tensor(w, n) for n, w in weights.items() if w is not None]
    initializers.append(tensor(np.asarray(1e6, np.float32), "limit"))
    ends = value("ids", onnx.TensorProto.INT64, ["n"]), value("y", 1, ["n", 128])
    graph = onnx.helper.make_graph(nodes, "branching", [ends[0]], [ends[1]], initializers)
    return read_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))


def outputs(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run twice in a default session; the second run is the one with a pattern."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    session.run(None, feed)
    return list(session.run(None, feed))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", ["plain", "branch", "captured", "shapeless"])
def test_written_and_read_it_is_the_same_graph(tmp_path: Path, name: FormName, external: bool) -> None:
    graph = branching()
    path = tmp_path / "model.onnx"
    files = write_onnx(graph, path, WritingForm(name, external))
    assert [f.name for f in files] == (["model.onnx.data", "model.onnx"] if external else ["model.onnx"])
    again = read_onnx(path)
    if name == "captured":  # its weights come first, whatever their order was
        for weight in reversed(captured_weights(graph)):
            weight.move_before(graph.first)  # type: ignore[arg-type]
    assert same_structure(again, graph, names=True) is None
    assert again.info.form == ("" if name == "plain" else name)
    assert KEY not in again.info.metadata
    write_onnx(again, tmp_path / "again.onnx", WritingForm(name, external))
    assert same_structure(read_onnx(tmp_path / "again.onnx"), graph, names=True) is None
    write_onnx(graph, tmp_path / "plain.onnx")
    feed = {"ids": np.arange(7)}
    for a, b in zip(outputs(path, feed), outputs(tmp_path / "plain.onnx", feed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shared", [False, True])
def test_constants_that_large_tensors_are_reshaped_to_are_hidden_and_come_back(shared: bool) -> None:
    """Two large tensors reshaped to one constant or to two, one to extents with a -1, and a small one."""
    graph = parse(
        f"""graph @g(%x: f32[64,512], %s: f32[2,8]) -> (f32[512,64], f32[16,2048], f32[32768], f32[16]) {{
  %a = const() {{value=[512,64]}} : i64[2]
  %b = const() {{value=[512,64]}} : i64[2]
  %c = const() {{value=[-1]}} : i64[1]
  %d = const() {{value=[16]}} : i64[1]
  %e = const() {{value=[16,2048]}} : i64[2]
  %p = Reshape(%x, %a) : f32[512,64]
  %q = Abs(%p) : f32[512,64]
  %u = Reshape(%q, %e) : f32[16,2048]
  %v = Reshape(%u, %{"a" if shared else "b"}) : f32[512,64]
  %w = Reshape(%v, %c) : f32[32768]
  %y = Reshape(%s, %d) : f32[16]
  return %v, %u, %w, %y
}}"""
    )
    proto = to_proto(graph, WritingForm("shapeless"))
    then = next(a.g for n in proto.graph.node for a in n.attribute if a.name == "then_branch")
    hidden = {n.output[0] for n in then.node if n.name.startswith(f"{HIDDEN}_of_")}
    targets = [n.input[1] for n in then.node if n.op_type == "Reshape"]  # the first two hide the inputs' extents
    assert [name in hidden for name in targets[2:]] == [True, True, True, False, False]
    again = read_onnx(proto)
    for one in (again, graph):
        infer_shapes(one)
    assert same_structure(again, graph, names=True) is None
    feed = {"x": np.random.default_rng(0).random((64, 512), np.float32), "s": np.ones((2, 8), np.float32)}
    found = [ort.InferenceSession(to_proto(graph, WritingForm(name)).SerializeToString()).run(None, feed)
             for name in ("plain", "shapeless")]  # fmt: skip
    for plain, hidden in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, hidden)


@pytest.mark.parametrize("model", sorted(p.name for p in MODELS.glob("*.onnx")))
@pytest.mark.parametrize("name", ["branch", "captured", "shapeless"])
def test_example_models_read_back_as_they_were(tmp_path: Path, model: str, name: FormName) -> None:
    graph = read_onnx(MODELS / model)
    if obstacle(graph):
        pytest.skip(obstacle(graph))
    again = read_onnx(to_proto(graph, WritingForm(name)))
    for weight in reversed(captured_weights(graph) if name == "captured" else []):
        weight.move_before(graph.first)  # type: ignore[arg-type]
    if name == "shapeless":  # states no types: they are inferred anew
        for one in (again, graph):
            infer_shapes(one)
    assert same_structure(again, graph, names=True) is None


def test_captured_weights_are_those_that_products_and_lookups_read_directly(tmp_path: Path) -> None:
    graph = branching()
    assert sorted(op.result.name for op in captured_weights(graph)) == ["table", "twin", "w"]
    proto = to_proto(graph, WritingForm("captured"))
    assert sorted(t.name for t in proto.graph.initializer if len(t.dims) == 2) == ["table", "twin", "w"]
    assert not any(len(t.dims) == 2 for t in to_proto(graph, WritingForm("branch")).graph.initializer)


def test_onnxruntime_keeps_no_buffers_for_others_in_a_shapeless_branch(tmp_path: Path) -> None:
    """Tensors of five shapes, one after the other, and once more: a default session keeps each for its twin."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    rows = 1 << 10
    weights = [onnx.numpy_helper.from_array(np.asarray([rows - i, rows // 8]), f"times{i}") for i in range(5)]
    weights.append(onnx.numpy_helper.from_array(np.asarray([0, 0]), "no"))
    weights.append(onnx.numpy_helper.from_array(np.asarray([1, 8]), "some"))
    nodes = [node("Neg", ["x"], ["small0"])]
    for i in range(10):
        nodes.append(node("Tile", [f"small{i}", f"times{i % 5}"], [f"wide{i}"]))
        nodes.append(node("Slice", [f"wide{i}", "no", "some"], [f"small{i + 1}"]))
    ends = value("x", 1, [1, 8]), value("small10", 1, [1, 8])
    made = onnx.helper.make_graph(nodes, "twins", [ends[0]], [ends[1]], weights)
    graph = read_onnx(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
    infer_shapes(graph)
    predicted = predicted_needs(graph, {}, external=False)
    needs, results = {}, {}
    forms: tuple[FormName, ...] = ("branch", "shapeless")
    for name in forms:
        path = tmp_path / f"{name}.onnx"
        write_onnx(graph, path, WritingForm(name))
        feed = {"x": np.ones((1, 8), np.float32)}
        needs[name] = measure_need(path, feed, options=RunOptions(threads=1)).run_peak_bytes
        results[name] = outputs(path, feed)
    np.testing.assert_array_equal(*results.values())
    saved = 2 * 4 * rows * rows
    assert needs["shapeless"] < needs["branch"] - saved
    assert predicted["shapeless"] < predicted["branch"] - saved


def test_pools_in_a_shapeless_branch_read_blocks_of_channels(tmp_path: Path) -> None:
    """Where onnxruntime did not know how many channels there are, it would copy what is pooled, and back. From opset 14
    on it infers the rank of what a Reshape gives, and these from it."""
    weights = [onnx.numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), f"w{i}") for i in range(2)]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w0"], ["a"]),
        onnx.helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2]),
        onnx.helper.make_node("Conv", ["b", "w1"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 16, f"{name}h", f"{name}w"]) for name in "xy"]
    made = onnx.helper.make_graph(nodes, "pooling", [ends[0]], [ends[1]], weights)
    path = tmp_path / "model.onnx"
    graph = read_onnx(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=6))
    write_onnx(graph, path, WritingForm("shapeless"))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    guard = next(n for n in onnx.load(options.optimized_model_filepath).graph.node if n.op_type == "If")
    branch = next(a.g for a in guard.attribute if a.name == "then_branch")
    kinds = Counter(n.op_type for n in branch.node)
    assert kinds["ReorderOutput"] <= 1, kinds  # the graph's output


def test_onnxruntime_loads_a_shapeless_branch_of_several_inputs(tmp_path: Path) -> None:
    """Each input's extents are hidden by a node of its own, and no two nodes may have one name."""
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Sum", ["a", "b", "c"], ["y"])]
    inputs = [value("a", 1, ["n", 3]), value("b", 1, ["n", 1]), value("c", 1, [])]
    made = onnx.helper.make_graph(nodes, "sum", inputs, [value("y", 1, ["n", 3])])
    graph = read_onnx(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
    write_onnx(graph, tmp_path / "model.onnx", WritingForm("shapeless"))
    feed = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 1), np.float32), "c": np.ones((), np.float32)}
    np.testing.assert_array_equal(outputs(tmp_path / "model.onnx", feed)[0], np.full((2, 3), 3, np.float32))
    assert same_structure(read_onnx(tmp_path / "model.onnx"), graph, names=True) is None


def test_files_of_versions_without_the_mark_are_read_plain() -> None:
    proto = to_proto(branching(), WritingForm("branch"))
    del proto.metadata_props[:]
    assert same_structure(read_onnx(proto), branching(), names=True) is None


def test_what_others_made_of_it_stays() -> None:
    proto = to_proto(branching(), WritingForm("branch"))
    (made,) = [n for n in proto.graph.node if n.name == MARKER]
    made.op_type, made.input[:] = "SequenceConstruct", ["ids"]
    assert any(op.is_a("If") for op in read_onnx(proto).ops)


def test_the_data_file_holds_weights_once_in_the_order_of_their_use(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(branching(), path, WritingForm("branch", True))
    proto = onnx.load(path, load_external_data=False)
    (branch,) = [a.g for n in proto.graph.node for a in n.attribute if a.name == "then_branch"]
    places = {t.name: int(next(e.value for e in t.external_data if e.key == "offset"))
              for t in branch.initializer if t.external_data}  # fmt: skip
    assert sorted(places, key=lambda n: (places[n], n)) == ["table", "twin", "w", "other"]
    assert places["w"] == places["twin"]
    assert (tmp_path / "model.onnx.data").stat().st_size < (300 + 2 * 128) * 128 * 4 + 2 * 4096


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda g: g.info.opset_imports.update({"": 10}), "opset"),
        (lambda g: g.set_outputs([*g.outputs, *g.outputs]), "not computed"),
    ],
)
def test_obstacles_are_named(change: object, why: str) -> None:
    graph = branching()
    change(graph)  # type: ignore[operator]
    assert why in obstacle(graph)
