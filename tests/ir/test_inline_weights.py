"""Large weights that are left inside a model's file until somebody looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.ir.diagnostics import InputError
from memoptc.ir.equality import same_structure
from memoptc.ir.mapped import MappedTensor
from memoptc.ir.onnx_io import read_onnx, write_onnx
from memoptc.runtime.evaluate import Evaluator

D = 160


def model(weight: TensorProto) -> onnx.ModelProto:
    """A product with a large weight, a small one, and a large one that is no run of bytes."""
    typed = helper.make_tensor("t", TensorProto.FLOAT, [D, D], np.linspace(0, 1, D * D))
    small = numpy_helper.from_array(np.ones(D, np.float32), "b")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("MatMul", ["q", "t"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", D]) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, small, typed])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def a_weight() -> TensorProto:
    """Values of which no two are equal."""
    return numpy_helper.from_array(np.arange(D * D, dtype=np.float32).reshape(D, D) / D**2, "w")


def left_in_file(path: Path) -> list[str]:
    """Names of the weights that a reader leaves in the file."""
    consts = read_onnx(path, lazy=True).walk("const")
    return [op.result.name for op in consts if isinstance(op.attrs["value"], MappedTensor)]


def test_a_lazy_graph_is_the_same_and_is_written_the_same(tmp_path: Path) -> None:
    onnx.save(model(a_weight()), tmp_path / "m.onnx")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "link.onnx").symlink_to(tmp_path / "m.onnx")  # as caches of downloads hold models
    eager = read_onnx(tmp_path / "m.onnx")
    for path in (tmp_path / "m.onnx", tmp_path / "beside" / "link.onnx"):
        lazy = read_onnx(path, lazy=True)
        assert same_structure(eager, lazy, names=True, notes=True) is None
        assert lazy.info.source_sha256 == eager.info.source_sha256
        assert left_in_file(path) == ["w"]
    files = [write_onnx(graph, tmp_path / f"{name}.onnx") for name, graph in (("a", eager), ("b", lazy))]
    assert [len(written) for written in files] == [1, 1]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()


def test_what_was_read_outlives_a_file_that_is_replaced_but_not_one_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(a_weight()), path)
    graph = read_onnx(path, lazy=True)
    path.rename(tmp_path / "old.onnx")
    path.write_bytes(b"something else")
    weight = next(op.attrs["value"] for op in graph.walk("const") if op.result.name == "w")
    np.testing.assert_array_equal(weight.numpy(), numpy_helper.to_array(a_weight()))
    weight.release()
    (tmp_path / "old.onnx").write_bytes(bytes(1 << 20))
    with pytest.raises(InputError, match="was written anew"):
        weight.numpy()


def test_a_result_holds_when_its_source_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(a_weight()), path)
    x = np.ones((1, D), np.float32)
    (wanted,) = Evaluator(path).run({"x": x}).values()
    result = memoptc.compile(path, level=1, measure=False)
    path.write_bytes(bytes(1 << 20))
    result.save(tmp_path / "out.onnx")
    (got,) = Evaluator(tmp_path / "out.onnx").run({"x": x}).values()
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("fault", ["short", "cut", "garbage", "empty"])
def test_faults_are_told_as_without(tmp_path: Path, fault: str) -> None:
    weight, path = a_weight(), tmp_path / "m.onnx"
    if fault == "short":
        weight.raw_data = weight.raw_data[:-4]
    data = model(weight).SerializeToString()
    path.write_bytes({"cut": data[:-9], "garbage": bytes([0x3F]) * len(data), "empty": b""}.get(fault, data))
    told = []
    for lazy in (False, True):
        with pytest.raises(InputError) as error:
            read_onnx(path, lazy=lazy)
        told.append(error.value.message)
    assert told[0] == told[1]
