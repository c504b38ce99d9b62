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
        g (float[N, 4, H, W] x, bool flag) => (float[H, W, N, 8] y) {
            s = Sigmoid (x)
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s, w)
            t = Transpose <perm = [2, 3, 0, 1]> (c)
            y = If (flag) <then_branch = a () => (float[H, W, N, 8] u) { u = Add (t, t) },
                           else_branch = b () => (float[H, W, N, 8] v) { v = Neg (t) }>
        }"""
    )
    rng = np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(8, 4, 3, 3)).astype(np.float32), "w"))
    data = [{"x": rng.normal(size=(1, 4, 9, 9)).astype(np.float32), "flag": np.array(True)} for _ in range(8)]
    result = memoptc.compile(model, passes="quantize,lower", calibration=data, measure=False, verify="off")
    kinds = [op.op_type for op in result.graph.walk()]
    assert "QuantizeLinear" in kinds
    (moved,) = result.graph.walk("Transpose")
    assert moved.operand.op is not None
    assert moved.operand.op.op_type == "Conv"
    (found,) = Evaluator(result.model).run(data[0]).values()
    assert found.shape == (9, 9, 1, 8)
