"""Single nodes run in onnxruntime: the first result, or nothing where it refuses."""

from __future__ import annotations

import numpy as np
from onnx.helper import make_node

from memoptc.ir.types import DType
from memoptc.runtime.kernels import run_node


def test_the_first_result_of_a_node_with_constants() -> None:
    x, sizes = np.arange(6, dtype=np.float32), np.array([2, 4])
    node = make_node("Split", ["x", "sizes"], ["a", "b"], axis=0)
    found = run_node(node, {"x": x}, {"sizes": sizes}, DType.FLOAT)
    assert found is not None
    np.testing.assert_array_equal(found, x[:2])


def test_what_onnxruntime_refuses_gives_nothing() -> None:
    x = np.zeros((2, 3), np.float32)
    assert run_node(make_node("MatMul", ["x", "x"], ["y"]), {"x": x}, {}, DType.FLOAT) is None  # while running
    assert run_node(make_node("NoSuchOperator", ["x"], ["y"]), {"x": x}, {}, DType.FLOAT) is None  # while loading
    assert run_node(make_node("Relu", ["x"], ["y"]), {"x": x}, {}, DType.INT8) is None  # of another type
