"""Operator definitions: complete, each in one place, and layouts that say what the operator computes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx.defs
import pytest
from numbers_of import UNOPTIMIZED

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.ops import MICROSOFT, TABLE, definition, definition_of, layout_of, table, weight_layout
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.evaluate import Evaluator


def test_every_standard_operator_has_a_definition():
    standard = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
    assert not standard - TABLE.keys()


def test_no_operator_is_defined_twice():
    keys = Counter(o.key for family in table._FAMILIES for o in family.OPERATORS)
    assert [key for key, count in keys.items() if count > 1] == []


def test_an_unknown_operator_promises_nothing():
    found = definition_of("acme::Frobnicate")
    assert not found.known
    assert not found.pure
    assert not found.removable
    assert not found.elementwise


LAYOUTS: list[tuple[str, dict[str, Any], list[int], list[int]]] = [
    ("MatMul", {}, [3, 4], [4, 5]),
    ("MatMul", {}, [2, 3, 4], [4, 5]),
    ("MatMul", {}, [2, 3, 4], [2, 4, 5]),
    ("Gemm", {}, [3, 4], [4, 5]),
    ("Gemm", {"transB": 1}, [3, 4], [5, 4]),
    ("Gemm", {"transA": 1, "transB": 1, "alpha": 0.5}, [4, 3], [5, 4]),
    ("com.microsoft::FusedMatMul", {"transB": 1, "alpha": 2.0}, [2, 3, 4], [5, 4]),
    ("com.microsoft::FusedMatMul", {"transA": 1}, [2, 4, 3], [4, 5]),
    ("Conv", {"pads": [1, 1, 1, 1]}, [1, 4, 6, 6], [5, 4, 3, 3]),
    ("Conv", {"group": 2}, [1, 4, 6], [6, 2, 3]),
    ("ConvTranspose", {"strides": [2, 2]}, [1, 4, 3, 3], [4, 5, 2, 2]),
    ("com.microsoft::FusedConv", {"activation": "Relu"}, [1, 4, 6, 6], [5, 4, 1, 1]),
]


@pytest.mark.parametrize(("key", "attrs", "data", "weight"), LAYOUTS)
def test_a_layout_names_the_axes_that_the_operator_uses(key, attrs, data, weight):
    """Zero an input channel on both sides in turn: the result is the same; zero an output channel: it alone is zero."""
    rng = np.random.default_rng(0)
    w = np.abs(rng.standard_normal(weight)).astype(np.float32) + 0.1
    x = np.abs(rng.standard_normal(data)).astype(np.float32) + 0.1
    op = _op(key, attrs, data, w)
    layout = layout_of(op)
    assert (layout.weight, layout.data) == (1, 0)
    assert layout.groups == attrs.get("group", 1)
    assert layout.scale == attrs.get("alpha", 1.0)

    channels = w.shape[layout.input_axis] * (layout.groups if layout.output_axis == 0 else 1)
    assert x.shape[layout.data_axis] == channels
    if layout.groups == 1:
        without_data, without_weight = x.copy(), w.copy()
        np.moveaxis(without_data, layout.data_axis, 0)[1] = 0
        np.moveaxis(without_weight, layout.input_axis, 0)[1] = 0
        a, b = _run(key, attrs, without_data, w), _run(key, attrs, x, without_weight)
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert not np.allclose(a, _run(key, attrs, x, w))

    silenced = w.copy()
    np.moveaxis(silenced, layout.output_axis, 0)[2] = 0
    result = np.moveaxis(_run(key, attrs, x, silenced), layout.result_axis, 0)
    assert not result[2].any()
    assert all(result[i].any() for i in range(len(result)) if i != 2)


def test_operators_without_weights_have_no_layout():
    graph = Graph("g", ModelInfo(ir_version=10, opset_imports={"": 18}))
    x = graph.add_input("x", TensorType(DType.FLOAT, (3, 4)))
    assert weight_layout(Builder(graph).Relu(x).op) is None


def test_traits_agree_with_kernels():
    relu = definition_of("Relu")
    assert relu.elementwise
    assert relu.homogeneous
    assert relu.in_place == (0,)
    assert definition_of("Reshape").view == 0
    assert definition_of("RandomNormal").removable
    assert not definition_of("RandomNormal").pure


def _op(key: str, attrs: dict[str, Any], data: list[int], weight: np.ndarray) -> Op:
    graph = Graph("g", ModelInfo(ir_version=10, opset_imports={"": 18, MICROSOFT: 1}))
    x = graph.add_input("x", TensorType(DType.FLOAT, tuple(data)))
    b = Builder(graph)
    domain, _, name = key.rpartition("::")
    made = b.op(name, [x, b.const(weight, "w")], attrs, domain=domain)
    made.result.type = TensorType(DType.FLOAT, None)
    graph.set_outputs([made.result])
    assert definition(made).layout is not None
    return made


def _run(key: str, attrs: dict[str, Any], x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    op = _op(key, attrs, list(x.shape), weight)
    assert op.graph is not None
    (found,) = Evaluator(to_proto(op.graph), UNOPTIMIZED).run({"x": x}).values()
    return np.asarray(found)
