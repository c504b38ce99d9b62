"""Codes end where a region reads what a moving operator makes of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

import memoptc
from memoptc.runtime.evaluate import Evaluator


def test_no_region_reads_moved_codes() -> None:
    """onnxruntime 1.32 ends the process while it loads such a model, so the structure is looked at before."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 64] x, bool flag) => (float[M, N] y) {
            p = MatMul (x, w)
            c = Clip (p, low, high)
            t = Transpose <perm = [1, 0]> (c)
            y = If (flag) <then_branch = a () => (float[M, N] u) { u = Add (t, t) },
                           else_branch = b () => (float[M, N] v) { v = Neg (t) }>
        }"""
    )
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(64, 64)), "low": np.array(-9.0), "high": np.array(9.0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(a), n) for n, a in weights.items())
    data = [{"x": rng.normal(size=(4, 64)).astype(np.float32), "flag": np.array(True)} for _ in range(8)]
    result = memoptc.compile(model, passes="quantize,lower", calibration=data, measure=False, verify="off")
    kinds = [op.op_type for op in result.graph.walk()]
    assert "QuantizeLinear" in kinds
    (moved,) = result.graph.walk("Transpose")
    assert moved.operand.op is not None
    assert moved.operand.op.op_type == "Clip"
    (found,) = Evaluator(result.model).run(data[0]).values()
    assert found.shape == (64, 4)
