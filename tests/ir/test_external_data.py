"""Weights in a data file: read when looked at, given back, and safe from what happens to the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc.api import compile_file
from memoptc.ir import onnx_weights
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.mapped import MappedTensor
from memoptc.ir.onnx_data import PIECE, ExternalData
from memoptc.ir.onnx_io import read_onnx, write_onnx
from memoptc.runtime.evaluate import Evaluator

D = 128


def three_products() -> onnx.ModelProto:
    """A product whose transposed weight is one for three heads, and a Split of what it gives."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((3 * D, D)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(3 * D).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        helper.make_node("Split", ["y"], ["p", "q", "r"], axis=1, num_outputs=3),
    ]
    x, *outputs = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", D]) for n in "xpqr")
    graph = helper.make_graph(nodes, "g", [x], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def saved(folder: Path, *, files: int = 1) -> Path:
    """The model with its weights beside it, in one file or in one each."""
    onnx.save_model(
        three_products(),
        folder / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=files == 1,
        location="m.data" if files == 1 else None,
        size_threshold=0,
    )
    return folder / "m.onnx"


def weights(graph: Graph) -> list[np.ndarray]:
    return [np.array(op.attrs["value"].numpy()) for op in graph.walk("const")]


def expected() -> list[np.ndarray]:
    return [numpy_helper.to_array(t) for t in three_products().graph.initializer]


def test_views_of_a_mapped_weight_are_written(tmp_path: Path) -> None:
    """`split-products` makes three views of a mapped weight, which live while the file is written."""
    options = {"passes": "split-products{least=1},lower", "measure": False}
    result = compile_file(saved(tmp_path), tmp_path / "o.onnx", **options)
    assert any(isinstance(t.attrs["value"], onnx_ir.Tensor) for t in result.graph.walk("const"))
    feed = {"x": np.ones((2, D), np.float32)}
    before, after = (Evaluator(tmp_path / n).run(feed) for n in ("m.onnx", "o.onnx"))
    for name, value in before.items():
        np.testing.assert_allclose(np.asarray(value), np.asarray(after[name]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("files", [1, 2])
def test_nothing_large_is_kept(tmp_path: Path, files: int) -> None:
    graph = read_onnx(saved(tmp_path, files=files))
    large = next(op.attrs["value"] for op in graph.walk("const") if op.attrs["value"].size == 3 * D * D)
    assert isinstance(large, MappedTensor)
    array = large.numpy()
    assert large.numpy() is array
    assert not array.flags.writeable
    view = array[1]
    large.release()
    np.testing.assert_array_equal(view, expected()[0][1])
    assert large.numpy() is not array


@pytest.mark.parametrize("held", [32, 0])
def test_files_that_go_or_change(tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file held open is read on after it is gone; one that is not held must still be the same."""
    monkeypatch.setattr(onnx_weights, "_HELD_OPEN", held)
    path = saved(tmp_path)
    graph = read_onnx(path)
    for found, wanted in zip(weights(graph), expected(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    for op in graph.walk("const"):
        op.attrs["value"].release()
    (tmp_path / "other").write_bytes(bytes((tmp_path / "m.data").stat().st_size))
    (tmp_path / "other").replace(tmp_path / "m.data")
    if held:
        for found, wanted in zip(weights(graph), expected(), strict=True):
            np.testing.assert_array_equal(found, wanted)
    else:
        with pytest.raises(InputError, match="has changed since the model was read"):
            weights(graph)
    (tmp_path / "m.data").unlink()
    if held:
        write_onnx(graph, tmp_path / "again.onnx")
        np.testing.assert_array_equal(weights(read_onnx(tmp_path / "again.onnx"))[0], expected()[0])
    else:
        with pytest.raises(InputError, match="cannot be read any more"):
            weights(graph)


def saved_beside(folder: Path, data: str) -> Path:
    """A model whose weights lie in a file of that name."""
    path = saved(folder)
    shutil.move(folder / "m.data", folder / data)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = data
    path.write_bytes(proto.SerializeToString())
    return path


def test_written_over_its_own_file_twice(tmp_path: Path) -> None:
    """What is read are the bytes of the file that was there, not those at the same offset of the new one."""
    path = saved_beside(tmp_path, "m.onnx.data")
    graph = read_onnx(path)
    first = next(graph.walk("const").__iter__())
    first.attrs["value"].release()
    for _ in range(2):
        write_onnx(graph, path)
        for found, wanted in zip(weights(read_onnx(path)), expected(), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_weights_are_not_written_over_an_input(tmp_path: Path) -> None:
    path = saved_beside(tmp_path, "o.onnx.data")
    before = (tmp_path / "o.onnx.data").read_bytes()
    with pytest.raises(InputError, match="also an input"):
        compile_file(path, tmp_path / "o.onnx", level=1, measure=False)
    assert (tmp_path / "o.onnx.data").read_bytes() == before


def test_weights_are_written_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache would keep larger ones in blocks, which a lookup in a mapped table then takes whole."""
    content = np.arange(70_001, dtype=np.float32)
    data = ExternalData(tmp_path / "data", [])
    sizes: list[int] = []
    file = data._file._to

    class Watched:
        def write(self, piece: memoryview) -> int:
            sizes.append(len(piece))
            return file.write(piece)

        def close(self) -> None:
            file.close()

    data._file._to = Watched()  # type: ignore[assignment]
    data.write("w", onnx_ir.tensor(content))
    data.close()
    assert max(sizes) <= PIECE < content.nbytes
    assert (tmp_path / "data").read_bytes() == content.tobytes()


def test_links_of_a_cache_of_downloads(tmp_path: Path) -> None:
    """Model and data are links to files of other names in one folder; a link to elsewhere is refused."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    saved(blobs)
    (blobs / "m.data").rename(blobs / "1f")
    for name, target in (("m.onnx", "m.onnx"), ("m.data", "1f")):
        (snapshot / name).symlink_to(blobs / target)
    for index, options in enumerate(({}, {"freeze": {"n": 2}})):
        compile_file(snapshot / "m.onnx", tmp_path / f"o{index}.onnx", 1, measure=False, **options)
        assert Evaluator(tmp_path / f"o{index}.onnx").run({"x": np.ones((2, D), np.float32)})
    (snapshot / "m.data").unlink()
    (blobs / "1f").rename(tmp_path / "1f")
    (snapshot / "m.data").symlink_to(tmp_path / "1f")
    with pytest.raises(InputError, match="outside the model's folder"):
        read_onnx(snapshot / "m.onnx")


def test_tensors_of_attributes_are_written_whole(tmp_path: Path) -> None:
    """Data beside the model stays there, also that of a Constant node, which is written into another folder."""
    tensor = numpy_helper.from_array(np.arange(512, dtype=np.float32), "t")
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [512])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = {"save_as_external_data": True, "location": "m.data", "convert_attribute": True, "size_threshold": 0}
    onnx.save_model(model, tmp_path / "m.onnx", **options)
    (tmp_path / "other").mkdir()
    write_onnx(read_onnx(tmp_path / "m.onnx"), tmp_path / "other" / "o.onnx")
    assert np.asarray(Evaluator(tmp_path / "other" / "o.onnx").run({})["y"]).tolist() == list(range(512))


def test_a_copy_that_is_asked_for_is_one(tmp_path: Path) -> None:
    tensor = next(
        t for op in read_onnx(saved(tmp_path)).walk("const") if isinstance(t := op.attrs["value"], MappedTensor)
    )
    copy = np.array(tensor, copy=True)
    copy[...] = 0
    assert np.asarray(tensor).any()


def test_weights_that_share_a_part_of_the_file_count_once(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = onnx.load(path, load_external_data=False)
    twin = model.graph.initializer.add()
    twin.CopyFrom(model.graph.initializer[0])
    twin.name = "w2"
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), helper.make_node("MatMul", ["y", "w2"], ["p"])]
    del model.graph.node[:], model.graph.output[1:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    report = compile_file(path, tmp_path / "out.onnx", level=1, measure=False).report
    assert report.control.weight_bytes == 4 * (3 * D * D + 3 * D)
    assert report.candidate.weight_bytes == report.control.weight_bytes


def test_weights_of_a_branch_count_beside_those_before_it_in_one_file(tmp_path: Path) -> None:
    """A tiled convolution stands in a branch with a weight of its own, which a model file stores again."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((32, c, 3, 3)).astype(np.float32), f"w{c}") for c in (3, 32)]
    nodes = [
        helper.make_node("Conv", ["x", "w3"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "w32"], ["b"], pads=[1] * 4),
        helper.make_node("MaxPool", ["b"], ["y"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    sizes = {}
    for external in ("never", "always"):
        found = compile_file(
            tmp_path / "m.onnx", tmp_path / f"{external}.onnx", level=2, measure=False, external=external
        )
        sizes[external] = found.report.candidate.weight_bytes
        assert sizes[external] < found.report.candidate.file_bytes
        once = found.report.control.weight_bytes
    assert sizes["never"] > 1.9 * once
    assert sizes["always"] < 1.1 * once
