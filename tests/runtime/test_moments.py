"""Second moments: windows as convolutions read them, sums as the data has them, a part kept aside."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.moments import Reading, Window, second_moments

RNG = np.random.default_rng(0)


def convolution(kernel: tuple[int, ...], attrs: dict[str, Any]) -> onnx.ModelProto:
    rank = len(kernel)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attrs)
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * (rank + 2)),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, *kernel]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (rank + 2))]
    graph = helper.make_graph([node], "g", ports, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("extents", "kernel", "attrs"),
    [
        ((9, 8), (3, 3), {}),
        ((9, 8), (3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 3]}),
        ((9, 8), (3, 3), {"dilations": [2, 1], "pads": [1, 1, 1, 1]}),
        ((9, 8), (4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((9, 8), (4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ((11,), (3,), {"strides": [2]}),
        ((5, 4, 6), (2, 2, 2), {"pads": [1] * 6}),
        ((7, 7), (1, 1), {}),
    ],
)
def test_windows_are_what_a_convolution_reads(
    extents: tuple[int, ...], kernel: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    x = RNG.standard_normal((2, 3, *extents)).astype(np.float32)
    w = RNG.standard_normal((4, 3, *kernel)).astype(np.float32)
    expected = Evaluator(convolution(kernel, attrs)).run({"x": x, "w": w})["y"]
    ones = (1,) * len(kernel)
    window = Window(
        kernel,
        tuple(attrs.get("strides", ones)),
        tuple(attrs.get("dilations", ones)),
        tuple(attrs.get("pads", (0,) * 2 * len(kernel))),
        attrs.get("auto_pad", ""),
    )
    rows = window.rows(x)
    products = rows @ w.reshape(4, -1).T
    assert np.allclose(products, np.moveaxis(expected, 1, -1).reshape(-1, 4), atol=1e-4)


def test_windows_larger_than_the_image_are_none() -> None:
    window = Window((5, 5), (1, 1), (1, 1), (0, 0, 0, 0))
    assert window.rows(np.zeros((1, 3, 4, 9), np.float32)).shape == (0, 75)


def model(op_type: str = "Relu") -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 5]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"])], "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(("samples", "rows"), [(1, 40), (3, 8), (4, 8), (9, 1)])
def test_sums_are_those_of_the_data_and_a_part_is_kept_aside(samples: int, rows: int) -> None:
    data = [{"x": RNG.standard_normal((rows, 5)).astype(np.float32)} for _ in range(samples)]
    reading = Reading("y")
    found = second_moments(model(), [reading], data, budget=1)[reading]
    whole = np.maximum(np.concatenate([feed["x"] for feed in data]), 0).astype(np.float64)
    assert found.rows == samples * rows
    assert np.allclose(found.fit + found.check, whole.T @ whole, rtol=1e-5, atol=1e-6)
    if samples >= 4:
        aside = np.maximum(np.concatenate([feed["x"] for feed in data[3::4]]), 0).astype(np.float64)
        assert np.allclose(found.check, aside.T @ aside, rtol=1e-5, atol=1e-6)
    assert np.trace(found.check) > 0
    assert np.trace(found.fit) > np.trace(found.check)


def test_what_is_not_finite_is_left_out() -> None:
    data = [{"x": np.full((2, 5), value, np.float32)} for value in (1.0, 200.0)]
    assert second_moments(model("Exp"), [Reading("y")], data) == {}
