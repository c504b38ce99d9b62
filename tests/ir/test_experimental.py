"""Shapes of operators that left the standard, and of contrib ones, against what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo
from memoptc.ir.dims import Sym
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.evaluate import RunOptions

MS = "com.microsoft"
IMAGE = np.ones((2, 3, 8, 10), np.float32)
SCALE, ZERO = np.float32(0.1), np.uint8(3)


def case(op_type: str, *operands: Any, domain: str = "", **attrs: Any) -> Any:
    """One node: inputs first, constants in lists."""
    return pytest.param(op_type, operands, domain, attrs, id=op_type + ("-contrib" if domain else ""))


CASES = [
    case("ImageScaler", IMAGE, scale=2.0, bias=[1.0, 2.0, 3.0]),
    case("Crop", IMAGE, border=[1, 2, 3, 1]),
    case("Crop", IMAGE, border=[1, 2, 0, 0], scale=[4, 5]),
    case("Affine", IMAGE, alpha=2.0, beta=1.0),
    case("ParametricSoftplus", IMAGE, alpha=2.0, beta=1.0),
    case("ScaledTanh", IMAGE, alpha=2.0, beta=1.0),
    case("MeanVarianceNormalization", IMAGE, across_channels=0, normalize_variance=1),
    case("ThresholdedRelu", IMAGE, alpha=2.0),
    case("QuantizeLinear", IMAGE, [SCALE], [ZERO], domain=MS),
    case("DequantizeLinear", IMAGE.astype(np.uint8), [SCALE], [ZERO], domain=MS),
    case("Inverse", np.stack([np.eye(4, dtype=np.float32)] * 3), domain=MS),
    case("Trilu", IMAGE, domain=MS),
    case("ExpandDims", IMAGE, [np.int32(-1)], domain=MS),
    case("CDist", np.ones((5, 4), np.float32), np.ones((7, 4), np.float32), domain=MS, metric="euclidean"),
    case("GridSample", IMAGE, np.zeros((2, 4, 6, 2), np.float32), domain=MS),
    case("CropAndResize", IMAGE, [np.zeros((5, 4), np.float32)], [np.zeros(5, np.int32)],
         [np.array([3, 4], np.int32)], domain=MS),
    case("GatherND", IMAGE, [np.zeros((6, 2), np.int64)], domain=MS),
    case("Pad", IMAGE, [np.array([0, 0, 1, 1, 0, 0, 2, 2], np.int64)], [np.array([0], np.float32)], domain=MS),
    case("Range", [np.int64(0)], [np.int64(9)], [np.int64(2)], domain=MS),
]  # fmt: skip


@pytest.mark.parametrize(("op_type", "operands", "domain", "attrs"), CASES)
def test_the_shape_is_what_onnxruntime_gives(
    op_type: str, operands: tuple[Any, ...], domain: str, attrs: dict[str, Any]
) -> None:
    opset = 12 if domain or op_type == "ThresholdedRelu" else 7
    g = Graph("one", ModelInfo(opset_imports={"": opset, MS: 1}, ir_version=6))
    b = Builder(g)
    values, feed = [], {}
    for index, given in enumerate(operands):
        if isinstance(given, list):
            values.append(b.const(np.asarray(given[0]), f"c{index}"))
        else:
            feed[f"x{index}"] = given
            values.append(g.add_input(f"x{index}", TensorType(DType.from_numpy(given.dtype), given.shape)))
    made = b.op(op_type, values, attrs, domain=domain)
    g.set_outputs([made.result])
    infer_shapes(g)
    session = ort.InferenceSession(to_proto(g).SerializeToString(), RunOptions().session_options())
    (found,) = session.run(None, feed)
    assert isinstance(made.result.type, TensorType)
    assert made.result.type.dtype == DType.from_numpy(found.dtype)
    assert made.result.type.static_shape == found.shape


def test_symbols_stay_symbols() -> None:
    g = Graph("one", ModelInfo(opset_imports={"": 7}, ir_version=6))
    b = Builder(g)
    x = g.add_input("x", TensorType(DType.FLOAT, (Sym("N"), 3, Sym("H"), Sym("W"))))
    made = b.op("Crop", [b.op("ImageScaler", [x], {"scale": 2.0, "bias": [0.0] * 3}).result], {"border": [1, 1, 1, 1]})
    g.set_outputs([made.result])
    infer_shapes(g)
    assert isinstance(made.result.type, TensorType)
    assert [str(d) for d in made.result.type.shape or ()] == ["N", "3", "H-2", "W-2"]
