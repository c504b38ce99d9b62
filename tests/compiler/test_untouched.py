"""A target that changed nothing says so, with its reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.ir.diagnostics import GateError

RNG = np.random.default_rng(0)


def model(op_type: str, inputs: list[str], shape: list[int | str], weight: np.ndarray) -> onnx.ModelProto:
    dtype = helper.np_dtype_to_tensor_dtype(weight.dtype)
    x, y = helper.make_tensor_value_info("x", dtype, shape), helper.make_tensor_value_info("y", dtype, None)
    nodes = [helper.make_node(op_type, inputs, ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def numbers(*shape: int, dtype: type = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


CASES = {
    "transposed": (model("ConvTranspose", ["x", "w"], ["n", 3, 8, 8], numbers(3, 4, 3, 3)), "no integer kernel"),
    "3-D": (model("MatMul", ["x", "w"], [2, 4, 8], numbers(2, 8, 8)), "its weights have 3 axes"),
    "half": (model("MatMul", ["x", "w"], ["n", 8], numbers(8, 8, dtype=np.float16)), "its weights are float16"),
    "left": (model("MatMul", ["w", "x"], [8, 4], numbers(8, 8)), "the weight is its left operand"),
    "none": (model("Add", ["x", "w"], ["n", 8], numbers(8)), "no product, convolution or recurrent layer"),
}


def data(of: onnx.ModelProto) -> list[dict[str, Any]]:
    tensor = of.graph.input[0].type.tensor_type
    shape = [d.dim_value or 1 for d in tensor.shape.dim]
    dtype = np.float16 if tensor.elem_type == TensorProto.FLOAT16 else np.float32
    return [{"x": numbers(*shape, dtype=dtype)} for _ in range(8)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", ["int8", "int4", "mixed"])
def test_a_warning_with_reasons(name: str, target: str) -> None:
    source, reason = CASES[name]
    result = memoptc.compile(source, target=target, calibration=data(source), measure=False)
    (warning,) = (w for w in result.report.to_json()["warnings"] if "changed nothing" in w)
    assert warning.startswith(f"--target {target} changed nothing: ")
    assert reason in warning


@pytest.mark.parametrize("name", CASES)
def test_without_fallback_it_is_an_error(name: str) -> None:
    source, reason = CASES[name]
    with pytest.raises(GateError, match=reason):
        memoptc.compile(source, target="int8", calibration=data(source), measure=False, fallback=False)


@pytest.mark.parametrize("target", ["float32", "int8"])
def test_what_changed_or_was_not_asked_for_says_nothing(target: str) -> None:
    source = model("MatMul", ["x", "w"], ["n", 64], numbers(64, 64))
    result = memoptc.compile(
        source, target=target, calibration=data(source) if target == "int8" else None, measure=False
    )
    assert not [w for w in result.report.to_json()["warnings"] if "changed nothing" in w]


def test_weights_that_stay_in_float_are_told_of() -> None:
    """A product's weight that an Add reads, too, stays beside one that is coded."""
    source = model("MatMul", ["x", "w"], ["n", 160], numbers(160, 160))
    source.graph.node[0].output[0] = "p"
    source.graph.node.append(helper.make_node("MatMul", ["p", "v"], ["q"]))
    source.graph.node.append(helper.make_node("Add", ["q", "v"], ["y"]))
    source.graph.initializer.append(numpy_helper.from_array(numbers(160, 160), "v"))
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 160
    result = memoptc.compile(source, target="int8", measure=False)
    (warning,) = (w for w in result.report.to_json()["warnings"] if "of weights in float" in w)
    assert warning == "--target int8 left 0.1 of 0.2 MB of weights in float: 1 MatMul: Add reads its weight, too."
