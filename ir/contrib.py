"""Shape inference for what onnxruntime's optimizer writes and the engine does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir
from onnx_shape_inference import registry

_DOMAIN = "com.microsoft"

_LIKE = {"FusedConv": ("Conv", 11), "FusedGemm": ("Gemm", 13)}
"""Operators whose results have the shapes of another operator's."""

_FLOAT_PRODUCTS = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")


def install() -> None:
    """Put the handlers into the engine."""
    for name, (like, version) in _LIKE.items():
        registry.register(_DOMAIN, name, since_version=1)(_delegate(like, version))
    # Written whatever the model's opset is, though ONNX has it from 17 on.
    registry.register("", "LayerNormalization", since_version=1)(_delegate("LayerNormalization", 17))
    registry.register(_DOMAIN, "QGemm", since_version=1)(_infer_quantized_gemm)
    for name in _FLOAT_PRODUCTS:
        registry.register(_DOMAIN, name, since_version=1)(_infer_product)


def _delegate(op_type: str, version: int) -> Callable[[Any, onnx_ir.Node], None]:
    def infer(context: Any, node: onnx_ir.Node) -> None:
        function = registry.get("", op_type, version=version)
        assert function is not None
        function(context, node)

    return infer


_QGEMM_WEIGHT, _QGEMM_ZERO_POINT = 3, 8


def _infer_quantized_gemm(context: Any, node: onnx_ir.Node) -> None:
    """The result is quantized when it has a zero point, and float when it has none."""
    a, b = node.inputs[0], node.inputs[_QGEMM_WEIGHT] if len(node.inputs) > _QGEMM_WEIGHT else None
    zero = node.inputs[_QGEMM_ZERO_POINT] if len(node.inputs) > _QGEMM_ZERO_POINT else None
    shape = None
    if a is not None and b is not None and a.shape is not None and b.shape is not None:
        flags = [name in node.attributes and node.attributes[name].as_int() for name in ("transA", "transB")]
        shape = onnx_ir.Shape([a.shape[1 if flags[0] else 0], b.shape[0 if flags[1] else 1]])
    context.set_shape_and_dtype(node.outputs[0], shape, onnx_ir.DataType.FLOAT if zero is None else zero.dtype)


def _infer_product(context: Any, node: onnx_ir.Node) -> None:
    _delegate("MatMul", 13)(context, node)
    result = node.outputs[0]
    context.set_shape_and_dtype(result, result.shape, onnx_ir.DataType.FLOAT)
