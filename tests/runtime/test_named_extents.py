"""Extents are given by the names that a file spells, and chosen alike by every command where nobody gives them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.design_points import design_points
from memoptc.runtime.float64 import Float64
from memoptc.runtime.inputs import by_symbol
from memoptc.runtime.profile import likely_extents, make_feed


@pytest.fixture
def dotted(tmp_path: Path) -> Path:
    """A model whose axes have names that are no identifiers."""
    shape = ["axis.0", 3, "axis.1", "axis.2"]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "dotted", [x], [y])
    path = tmp_path / "dotted.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_extents_by_the_names_of_the_file(dotted: Path, tmp_path: Path) -> None:
    graph = read_onnx(dotted)
    assert by_symbol(graph, {"axis.1": 8, "axis_2": 9, "other": 1}) == {"axis_1": 8, "axis_2": 9, "other": 1}
    result = memoptc.compile(dotted, dims={"axis.1": 8}, freeze={"axis.0": 2}, measure=False)
    assert result.report.sizes["planned"]["axis_1"] == 8
    assert result.report.sizes["planned"]["axis_0"] == 2


def test_every_command_chooses_the_same_extents(dotted: Path) -> None:
    graph = read_onnx(dotted)
    infer_shapes(graph)
    points = design_points(graph, {})
    assert points is not None
    assert likely_extents(graph, {}) == points.plan
    feed = make_feed(graph, dotted, {})
    assert feed["x"].shape[2:] == (points.check["axis_1"], points.check["axis_2"])
    assert make_feed(graph, dotted, {"axis.1": 8})["x"].shape[2] == 8


@pytest.mark.parametrize("opset", [11, 13])
def test_double_twin_of_sizes_beside_empty_scales(opset: int) -> None:
    given = {"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32), "sizes": np.array([1, 1, 8, 8])}
    ways = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", *given], ["y"], **ways)],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    assert np.array_equal(Float64(model).run({"x": x}, ["y"])["y"], x.repeat(2, 2).repeat(2, 3))
