"""The gate judges by the samples that the search chose by, and the message counts them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memoptc

SAMPLES = 128


def product() -> onnx.ModelProto:
    """A product whose weight has one column far larger than the others."""
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    weight[:, 3] *= 50
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("target", ["int4", "int8", "mixed"])
@pytest.mark.parametrize("verify", ["fast", "full"])
def test_one_set_of_samples(target: str, verify: str) -> None:
    rng = np.random.default_rng(1)
    # The first samples are the hard ones: a part of the data is no picture of all of it.
    data = [{"x": rng.standard_normal((1, 64)).astype(np.float32) * (0.01 if k < 16 else 1)} for k in range(SAMPLES)]
    result = memoptc.compile(product(), target=target, calibration=data, verify=verify, measure=False)
    found = result.report.to_json()
    assert found["verification"]["inputs"] == "held-out"
    assert found["verification"]["samples"] == found["precision"]["reached"]["samples"] == SAMPLES // 5
