"""What is prepared before any pass (weights that are inputs, frozen extents) is no difference that a proof counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.api import compile_file
from memoptc.cli.main import main
from memoptc.ir.diagnostics import GateError, InputError


def model() -> onnx.ModelProto:
    """A convolution and a product whose weights a caller may replace: `keep_initializers_as_inputs` of exporters."""
    rng = np.random.default_rng(0)
    arrays = {"cw": (16, 8, 3, 3), "w": (256, 64), "b": (64,)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in arrays.items()]
    nodes = [
        helper.make_node("Conv", ["x", "cw"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in {"x": ("n", 8, 4, 4), **arrays}.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 64))
    graph = helper.make_graph(nodes, "g", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


@pytest.fixture(params=["inline", "external"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The model as a file."""
    file = tmp_path / "m.onnx"
    external = request.param == "external"
    onnx.save_model(model(), file, save_as_external_data=external, location="m.data", size_threshold=1024)
    return file


@pytest.mark.parametrize("freeze", [{}, {"n": 3}])
@pytest.mark.parametrize("verify", ["fast", "full"])
def test_weights_that_are_inputs(path: Path, freeze: dict[str, int], verify: str) -> None:
    """Packed weights move the last bits of a product: on both sides, not on one."""
    result = memoptc.compile(path, level=1, freeze=freeze, verify=verify, measure=False)
    found = result.report.to_json()
    assert found["verification"]["bit_exact"]
    assert [i.name for i in result.model.graph.input] == ["x"]
    assert any("a caller could replace them" in w for w in found["warnings"])


def test_level_0_leaves_them_replaceable(path: Path) -> None:
    result = memoptc.compile(path, level=0, measure=False)
    assert [i.name for i in result.model.graph.input] == ["x", "cw", "w", "b"]
    assert result.report.to_json()["verification"]["bit_exact"]


def test_a_frozen_extent_groups_the_samples(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).random((12, 8, 4, 4), np.float32))
    data = str(tmp_path / "d.npz")
    result = memoptc.compile(path, level=1, freeze={"n": 3}, dims={"n": 3}, validation=data, measure=False)
    assert result.report.to_json()["verification"]["samples"] == 4


def test_real_differences_are_found_all_the_same(path: Path, tmp_path: Path) -> None:
    """Coarser weights are still told from the original's."""
    with pytest.raises(GateError):
        memoptc.compile(path, level=1, passes="to-half,lower", max_error=1e-9, measure=False, freeze={"n": 2})


def test_bisect_finds_no_fault_in_preparation(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", str(path), "-O1"]) == 0
    assert "no pass breaks" in capsys.readouterr().out


def test_data_of_replaceable_weights_is_not_written_over(tmp_path: Path) -> None:
    onnx.save_model(model(), tmp_path / "m.onnx", save_as_external_data=True, location="o.onnx.data", size_threshold=0)
    with pytest.raises(InputError, match="also an input"):
        compile_file(tmp_path / "m.onnx", tmp_path / "o.onnx", level=0, measure=False)
