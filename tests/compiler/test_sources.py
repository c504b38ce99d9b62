"""What `compile` takes and gives: every kind of model, with results that hold after it has returned."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.ir import files
from memoptc.runtime.evaluate import Evaluator

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
KINDS = ("path", "bytes", "external", "onnx", "onnx_ir", "onnx_ir external", "onnx_graphsurgeon")
WIDTH = 600
"""A weight of 1.4 MB: beyond what an onnx_ir.Model is saved with inside."""


def plain(width: int = WIDTH) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def source(kind: str, folder: Path) -> Any:
    """The model in one of the forms that `compile` takes."""
    model, path = plain(), folder / "source.onnx"
    if "external" in kind:
        onnx.save_model(model, path, save_as_external_data=True, location="source.data", size_threshold=0)
    else:
        onnx.save(model, path)
    match kind:
        case "path" | "external":
            return path
        case "bytes":
            return path.read_bytes()
        case "onnx":
            return model
        case "onnx_graphsurgeon":
            return pytest.importorskip("onnx_graphsurgeon").import_onnx(model)
        case _:
            return onnx_ir.load(path)


def as_proto(model: Any) -> onnx.ModelProto:
    match model:
        case onnx.ModelProto():
            return model
        case onnx_ir.Model():
            return onnx_ir.to_proto(model)
        case _:
            import onnx_graphsurgeon

            proto: onnx.ModelProto = onnx_graphsurgeon.export_onnx(model)
            return proto


@pytest.mark.parametrize("kind", KINDS)
def test_results_hold_after_return(kind: str, tmp_path: Path) -> None:
    feed = {"x": np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)}
    expected = np.asarray(Evaluator(plain()).run(feed)["y"])
    model = source(kind, tmp_path)
    result = memoptc.compile(model, level=1, measure=False)
    gc.collect()
    for name in ("first.onnx", "second.onnx"):
        result.save(tmp_path / name)
        np.testing.assert_array_equal(expected, np.asarray(Evaluator(tmp_path / name).run(feed)["y"]))
    given = result.model
    assert type(given) is type(model) or kind in ("path", "external", "bytes")
    del result
    gc.collect()
    if isinstance(given, onnx_ir.Model):
        for options in ({}, {"external_data": "m.data"}):
            onnx_ir.save(given, tmp_path / "m.onnx", **options)
            np.testing.assert_array_equal(expected, np.asarray(Evaluator(tmp_path / "m.onnx").run(feed)["y"]))
    np.testing.assert_array_equal(expected, np.asarray(Evaluator(as_proto(given)).run(feed)["y"]))


@pytest.mark.parametrize("kind", ["onnx_ir", "onnx_ir external"])
def test_what_was_handed_in_stays_usable(kind: str, tmp_path: Path) -> None:
    model = source(kind, tmp_path)
    memoptc.compile(model, level=1, measure=False)
    (weight,) = model.graph.initializers.values()
    np.testing.assert_array_equal(weight.const_value.numpy(), numpy_helper.to_array(plain().graph.initializer[0]))


def test_nothing_stays_in_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(files, "_SWEPT", set())
    result = memoptc.compile(onnx_ir.from_proto(plain()), level=2, measure=False)
    assert result.model.graph.initializers
    del result
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_more_than_a_protobuf_holds(tmp_path: Path) -> None:
    """An onnx_ir.Model of 2.4 GB: its result, read and saved after the return."""
    width = 10_000
    tensors = [onnx_ir.tensor(np.full((width, width), k, np.float32), name=f"w{k}") for k in range(6)]
    x = onnx_ir.Value(name="x", shape=onnx_ir.Shape([1, width]), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    weights = [onnx_ir.Value(name=t.name, const_value=t, shape=t.shape, type=x.type) for t in tensors]
    nodes, value = [], x
    for weight in weights:
        nodes.append(onnx_ir.Node("", "MatMul", [value, weight]))
        value = nodes[-1].outputs[0]
    value.name, value.shape, value.type = "y", x.shape, x.type
    graph = onnx_ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="g")
    result = memoptc.compile(onnx_ir.Model(graph, ir_version=9), level=1, verify="off", measure=False)
    gc.collect()
    held = result.model.graph.initializers
    assert [float(v.const_value.numpy()[0, 0]) for _, v in sorted(held.items())] == list(range(6))
    written = result.save(tmp_path / "large.onnx")
    assert sum(f.stat().st_size for f in written) > 2_400_000_000


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda p: p.stem)
def test_example_models_say_nothing_of_where_they_were_made(path: Path) -> None:
    content = path.read_bytes()
    assert not [w for w in (b'File "', b"site-packages", b"/home/", b"/tmp/", b"/root/", b"/usr/") if w in content]


def test_the_originals_need_is_predicted_as_its_file_is_written(tmp_path: Path) -> None:
    """Weights in a file of their own are mapped, and not copied out of the protobuf."""
    model, sides = plain(3000), []  # beyond what the heap keeps
    for external in (False, True):
        path = tmp_path / f"{external}.onnx"
        onnx.save_model(model, path, save_as_external_data=external, location="weights.data")
        sides.append(memoptc.compile(path, 0, measure=False, dims={"n": 1}).report.control)
    one, two = sides
    assert one.predicted_need_bytes > two.predicted_need_bytes + 10_000_000
    assert two.file_bytes >= two.weight_bytes == 36_000_000  # its data are its file, too
    assert one.arena_bytes == two.arena_bytes > 0
