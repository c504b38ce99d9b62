"""Shape inference for ONNX's experimental operators and more contrib ones, which the engine does not know.

The experimental operators (ImageScaler, Crop, Affine ...) left the standard after opset 9; converters of that time
wrote them, and onnxruntime kept their kernels. Shapes follow its operator documentation and its kernels.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnx_shape_inference import registry

_DOMAIN = "com.microsoft"

_AS_FIRST = ("MeanVarianceNormalization", "Scale", "ThresholdedRelu")
_LIKE = {"Pad": ("Pad", 13), "Range": ("Range", 11), "MaxpoolWithMask": ("MaxPool", 12)}
"""Contrib operators whose results have the shapes of a standard operator's, inputs beyond its own left out."""


def install() -> None:
    """Put the handlers into the engine."""
    for name in _AS_FIRST:
        if registry.get("", name, version=1) is None:
            registry.register("", name, since_version=1)(_infer_as_first)
    for name, (like, version) in _LIKE.items():
        function = registry.get("", like, version=version)
        if function is not None:
            registry.register(_DOMAIN, name, since_version=1)(function)
    registry.register("", "Crop", since_version=1)(_infer_crop)
    registry.register(_DOMAIN, "QuantizeLinear", since_version=1)(_infer_quantize)
    registry.register(_DOMAIN, "DequantizeLinear", since_version=1)(_infer_dequantize)
    registry.register(_DOMAIN, "MurmurHash3", since_version=1)(_infer_hash)
    registry.register(_DOMAIN, "ExpandDims", since_version=1)(_infer_expand_dims)
    registry.register(_DOMAIN, "CDist", since_version=1)(_infer_distances)
    registry.register(_DOMAIN, "GridSample", since_version=1)(_infer_grid_sample)
    registry.register(_DOMAIN, "CropAndResize", since_version=1)(_infer_crop_and_resize)
    registry.register(_DOMAIN, "MatMulInteger16", since_version=1)(_infer_integer_product)
    for name in ("MatMulBnb4", "MatMulFpQ4"):
        registry.register(_DOMAIN, name, since_version=1)(_infer_packed_product)


def _set(context: Any, node: onnx_ir.Node, shape: onnx_ir.Shape | None, dtype: onnx_ir.DataType | None) -> None:
    if dtype is not None:
        context.set_shape_and_dtype(node.outputs[0], shape, dtype)


def _infer_as_first(context: Any, node: onnx_ir.Node) -> None:
    first = node.inputs[0] if node.inputs else None
    if first is not None:
        _set(context, node, first.shape, first.dtype)


def _infer_crop(context: Any, node: onnx_ir.Node) -> None:
    """Cut off `border` = left, top, right, bottom; `scale` = height, width of the rest where it is given."""
    data = node.inputs[0]
    if data is None:
        return
    if data.shape is None or len(data.shape) != 4 or "border" not in node.attributes:
        _set(context, node, None, data.dtype)
        return
    left, top, right, bottom = node.attributes["border"].as_ints()
    rows: Any = data.shape[2]
    columns: Any = data.shape[3]
    if "scale" in node.attributes:
        rows, columns = node.attributes["scale"].as_ints()
    else:
        rows, columns = (_less(context, e, cut) for e, cut in ((rows, top + bottom), (columns, left + right)))
    _set(context, node, onnx_ir.Shape([data.shape[0], data.shape[1], rows, columns]), data.dtype)


def _less(context: Any, extent: Any, cut: int) -> Any:
    if not isinstance(extent, int) and extent.value is None:
        return context.new_symbolic_dim()
    return extent - cut if cut else extent


def _infer_quantize(context: Any, node: onnx_ir.Node) -> None:
    data, zero = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if data is not None:
        _set(context, node, data.shape, onnx_ir.DataType.UINT8 if zero is None else zero.dtype)


def _infer_dequantize(context: Any, node: onnx_ir.Node) -> None:
    data, scale = node.inputs[:2]
    if data is not None and scale is not None:
        _set(context, node, data.shape, scale.dtype)


def _infer_hash(context: Any, node: onnx_ir.Node) -> None:
    positive = "positive" not in node.attributes or node.attributes["positive"].as_int()
    if node.inputs[0] is not None:
        dtype = onnx_ir.DataType.UINT32 if positive else onnx_ir.DataType.INT32
        _set(context, node, node.inputs[0].shape, dtype)


def _infer_expand_dims(context: Any, node: onnx_ir.Node) -> None:
    data, axis = node.inputs[:2]
    if data is None:
        return
    where = onnx_ir.convenience.get_const_tensor(axis) if axis is not None else None
    if data.shape is None or where is None:
        _set(context, node, None, data.dtype)
        return
    dims: list[Any] = list(data.shape.dims)
    index = int(where.numpy().reshape(-1)[0])
    dims.insert(index if index >= 0 else len(dims) + 1 + index, 1)
    _set(context, node, onnx_ir.Shape(dims), data.dtype)


def _infer_distances(context: Any, node: onnx_ir.Node) -> None:
    a, b = node.inputs[:2]
    if a is not None and b is not None:
        known = a.shape is not None and b.shape is not None
        _set(context, node, onnx_ir.Shape([a.shape[0], b.shape[0]]) if known else None, a.dtype)  # type: ignore[index]


def _infer_grid_sample(context: Any, node: onnx_ir.Node) -> None:
    data, grid = node.inputs[:2]
    if data is None or grid is None:
        return
    shape = None
    if data.shape is not None and grid.shape is not None:
        shape = onnx_ir.Shape([*data.shape[:2], *grid.shape[1:-1]])
    _set(context, node, shape, data.dtype)


def _infer_crop_and_resize(context: Any, node: onnx_ir.Node) -> None:
    """One piece of `crop_size` for each region of interest."""
    data, rois, _, size = node.inputs[:4]
    if data is None or rois is None or size is None:
        return
    extents = onnx_ir.convenience.get_const_tensor(size)
    shape = None
    if data.shape is not None and rois.shape is not None:
        pair: list[Any] = [context.new_symbolic_dim() for _ in range(2)]
        if extents is not None:
            pair = [int(e) for e in extents.numpy().reshape(-1)]
        shape = onnx_ir.Shape([rois.shape[0], data.shape[1], *pair])
    _set(context, node, shape, data.dtype)


def _infer_integer_product(context: Any, node: onnx_ir.Node) -> None:
    function = registry.get("", "MatMul", version=13)
    assert function is not None
    function(context, node)
    node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.INT32)


def _infer_packed_product(context: Any, node: onnx_ir.Node) -> None:
    """The weight's shape is in attributes, or in an input that says it."""
    data = node.inputs[0]
    if data is None:
        return
    columns: Any = node.attributes["N"].as_int() if "N" in node.attributes else None
    if columns is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        stated = onnx_ir.convenience.get_const_tensor(node.inputs[2])
        columns = int(stated.numpy().reshape(-1)[-1]) if stated is not None else None
    if columns is None:
        columns = context.new_symbolic_dim()
    shape = None if data.shape is None else onnx_ir.Shape([*data.shape[:-1], columns])
    _set(context, node, shape, data.dtype)
