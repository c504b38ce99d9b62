"""feature-statistics: counts features that are zero for a whole batch, and leaves the model as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.pass_base import Context
from memoptc.passes.shrink.feature_statistics import FeatureStatistics
from memoptc.runtime.data import Data


def gated(opset: int) -> onnx.ModelProto:
    """Two products with a Relu between; of four features one is never on, and one for positive inputs only."""
    first = np.array([[1, -1, 0, 1]], np.float32)
    weights = [first, np.array([1, 1, -1, 1], np.float32) * np.float32(0.5), np.ones((4, 2), np.float32)]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["y"], name="out"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 1), ("y", 2)))
    tensors = [numpy_helper.from_array(w, n) for w, n in zip(weights, "abc", strict=True)]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [13, 18])
def test_features_that_a_gate_makes_zero_are_counted(opset: int) -> None:
    graph = read_onnx(gated(opset))
    # All positive: features 1 and 2 are zero. Mixed: feature 2 only.
    feeds = [{"x": np.array([[1], [2]], np.float32)}, {"x": np.array([[1], [-2]], np.float32)}]
    context = Context(calibration=Data(feeds, {v.name: v.type for v in graph.inputs}))
    before = to_proto(graph).SerializeToString()
    FeatureStatistics().run(graph, context)
    assert context.stats["products with zero features"] == 1
    (found,) = context.decisions
    assert found.what == "out: 38% of 4 features are zero for a whole batch"
    assert found.why == "25% to 50% over 2 samples, 25% in all of them"
    assert to_proto(graph).SerializeToString() == before


def test_without_data_it_asks_for_some() -> None:
    with pytest.raises(InputError, match="needs data"):
        FeatureStatistics().run(read_onnx(gated(18)), Context())
