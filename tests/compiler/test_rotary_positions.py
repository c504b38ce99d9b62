"""Positions that angles are looked up by are made up inside their table, in both spellings of the operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import memoptc


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_positions_lie_inside_the_table_of_angles(domain: str) -> None:
    inputs = ["x", "positions", "cos", "sin"] if domain else ["x", "cos", "sin", "positions"]
    angles = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)  # three positions
    graph = helper.make_graph(
        [helper.make_node("RotaryEmbedding", inputs, ["y"], domain=domain, num_heads=2)],
        "rotary",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "steps", 8]),
            helper.make_tensor_value_info("positions", onnx.TensorProto.INT64, ["batch", "steps"]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "steps", 8])],
        [onnx.numpy_helper.from_array(f(angles), name) for name, f in (("cos", np.cos), ("sin", np.sin))],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    result = memoptc.compile(model, level=1, measure=False)
    assert result.report.to_json()["verification"]["passed"]
