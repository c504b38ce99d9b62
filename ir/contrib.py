"""Shape inference for what onnxruntime's optimizer writes and the engine does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir
from onnx_shape_inference import registry
from onnx_shape_inference._ops import _pooling

from memoptc.ir.ops import TABLE

_DOMAIN = "com.microsoft"

_FLOAT_PRODUCTS = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")


def install() -> None:
    """Put the handlers into the engine."""
    for operator in TABLE.values():
        if operator.types_like is not None:
            registry.register(operator.domain, operator.name, since_version=1)(_delegate(*operator.types_like))
    # Written whatever the model's opset is, though ONNX has it from 17 on.
    registry.register("", "LayerNormalization", since_version=1)(_delegate("LayerNormalization", 17))
    registry.register(_DOMAIN, "QGemm", since_version=1)(_infer_quantized_gemm)
    for name in _FLOAT_PRODUCTS:
        registry.register(_DOMAIN, name, since_version=1)(_infer_product)
    registry.register(_DOMAIN, "QLinearAveragePool", since_version=1)(_infer_pool_of_codes)
    registry.register(_DOMAIN, "QLinearGlobalAveragePool", since_version=1)(_infer_pool_of_codes)
    registry.register(_DOMAIN, "MatMulNBits", since_version=1)(_infer_product_of_codes)
    registry.register(_DOMAIN, "GatherBlockQuantized", since_version=1)(_infer_lookup_of_codes)


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
    node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)


def _infer_pool_of_codes(context: Any, node: onnx_ir.Node) -> None:
    """As the pool of floats; channels may be last."""
    x = node.inputs[0]
    if x is None:
        return
    last = "channels_last" in node.attributes and node.attributes["channels_last"].as_int()
    shape = None
    if x.shape is not None:
        dims = list(x.shape)
        inner = range(1, len(dims) - 1) if last else range(2, len(dims))
        pooled: list[Any] = [1] * len(inner)
        if node.op_type == "QLinearAveragePool":
            kernel = list(node.attributes["kernel_shape"].as_ints())
            mode, strides, pads, ceil, dilations = _pooling._read_pool_attrs(node, len(kernel))
            turned = onnx_ir.Shape([dims[0], dims[-1 if last else 1], *(dims[i] for i in inner)])
            pooled = _pooling._compute_pool_output_shape(
                context, node, turned, kernel, strides, pads, dilations, ceil, mode
            )
        for i, extent in zip(inner, pooled, strict=True):
            dims[i] = extent
        shape = onnx_ir.Shape(dims)
    context.set_shape_and_dtype(node.outputs[0], shape, x.dtype)


def _infer_product_of_codes(context: Any, node: onnx_ir.Node) -> None:
    """The weights' shape is in attributes: N results for each row."""
    a = node.inputs[0]
    if a is not None:
        shape = None if a.shape is None else onnx_ir.Shape([*a.shape[:-1], node.attributes["N"].as_int()])
        context.set_shape_and_dtype(node.outputs[0], shape, a.dtype)


def _infer_lookup_of_codes(context: Any, node: onnx_ir.Node) -> None:
    """Rows of a table whose codes lie in bytes, several in each."""
    data, indices, scales = node.inputs[:3]
    if data is None or indices is None or scales is None:
        return
    shape = None
    attrs = {name: node.attributes[name].as_int() for name in ("gather_axis", "bits") if name in node.attributes}
    if data.shape is not None and indices.shape is not None:
        dims = list(data.shape)
        axis = attrs.get("gather_axis", 0) % max(len(dims), 1)
        packed = dims[-1] if data.dtype == onnx_ir.DataType.UINT8 else None
        if isinstance(packed, int):
            dims[-1] = packed * (8 // attrs.get("bits", 4))
        shape = onnx_ir.Shape([*dims[:axis], *indices.shape, *dims[axis + 1 :]])
    context.set_shape_and_dtype(node.outputs[0], shape, scales.dtype)
