"""Shape inference of windows and of resizing as onnxruntime computes them, in place of the engine's handlers.

Where onnxruntime leaves the ONNX definition, a shape that follows the definition would be trusted and be wrong: its
pools round towards zero, so that a window larger than its operand gives one element; with SAME padding they forget
dilations, each release in its own way; SAME padding of transposed convolutions never adds rows; and scales multiply in
float32.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir
from onnx_shape_inference import registry
from onnx_shape_inference._ops import _conv_transpose, _pooling, _resize, _spatial, _utils

Extent = int | onnx_ir.SymbolicDim


def install() -> None:
    """Put the handlers into the engine."""
    _pooling._compute_pool_output_shape = _pool_extents
    registry.register("", "ConvTranspose", since_version=1)(_infer_conv_transpose)
    registry.register("", "DeformConv", since_version=19)(_infer_deformed)
    registry.register("", "Resize", since_version=10)(_infer_resize)
    registry.register("", "Upsample", since_version=1)(_infer_upsample)


def _pool_extents(
    context: Any,
    node: onnx_ir.Node,
    shape: onnx_ir.Shape,
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    ceil_mode: int,
    auto_pad: str = "NOTSET",
) -> list[Extent]:
    found: list[Extent] = []
    for i, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        extent, reach = shape[i + 2], (size - 1) * dilation + 1
        if auto_pad.startswith("SAME"):
            # As many as begin; releases of onnxruntime disagree on windows with holes.
            proven = dilation == 1 and (isinstance(extent, int) or extent.value is not None)
            found.append((extent + stride - 1) // stride if proven else context.new_symbolic_dim())
            continue
        before, after = (0, 0) if auto_pad == "VALID" else (pads[i], pads[i + len(kernel)])
        if not isinstance(extent, int) and extent.value is None:
            found.append(context.new_symbolic_dim())
        elif ceil_mode:
            # ceil((extent + before + after - reach) / stride) + 1 windows, of ceil((extent + before) / stride) that
            # begin.
            beyond = stride + after - reach
            found.append((extent + (before + min(beyond, 0) + stride - 1)) // stride)
        else:
            found.append(_windows(context, extent, before + after - reach, stride))
    return found


def _windows(context: Any, extent: Extent, more: int, stride: int) -> Extent:
    """Windows behind the first and that one: (extent + more) / stride, rounded towards zero, and one.

    Pools refuse images without elements, so that an extent is at least 1.
    """
    if isinstance(extent, int):
        return int((extent + more) / stride) + 1
    if more + 1 >= 0 or stride == 1:
        return (extent + more) // stride + 1
    most = _utils.max_dim(0, (extent + more) // stride) if more + 1 > -stride else None
    return most + 1 if most is not None else context.new_symbolic_dim()  # type: ignore[no-any-return]


def _infer_deformed(context: Any, node: onnx_ir.Node) -> None:
    """Windows that may be larger than their operand, for which onnxruntime rounds towards zero."""
    _spatial.infer_deform_conv(context, node)
    x, result = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or result.shape is None:
        return
    dims = list(result.shape)
    for i in range(2, len(dims)):
        if not isinstance(x.shape[i], int):
            dims[i] = context.new_symbolic_dim()
    result.shape = onnx_ir.Shape(dims)


def _infer_conv_transpose(context: Any, node: onnx_ir.Node) -> None:
    _conv_transpose.infer_conv_transpose(context, node)
    x, w, result = node.inputs[0], node.inputs[1], node.outputs[0]
    mode = node.attributes.get("auto_pad")
    if mode is None or not mode.as_string().startswith("SAME") or "output_shape" in node.attributes:
        return
    if x is None or w is None or x.shape is None or w.shape is None or result.shape is None:
        return
    count = len(x.shape) - 2
    strides, dilations = _ints(node, "strides", [1] * count), _ints(node, "dilations", [1] * count)
    more, kernel = _ints(node, "output_padding", [0] * count), _ints(node, "kernel_shape", list(w.shape[2:]))
    dims = list(result.shape)
    for i, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        if not isinstance(size, int):
            dims[i + 2] = context.new_symbolic_dim()
        else:
            dims[i + 2] = x.shape[i + 2] * stride + min(0, (size - 1) * dilation + 1 + more[i] - stride)
    result.shape = onnx_ir.Shape(dims)


def _ints(node: onnx_ir.Node, name: str, default: list[Any]) -> list[Any]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


_SCALES, _SIZES = 2, 3


def _infer_resize(context: Any, node: onnx_ir.Node) -> None:
    """By sizes as the engine has it, but where the image keeps its proportions; by scales as float32 has it."""
    x, (result, *_) = node.inputs[0], node.outputs
    operands = [*node.inputs, None, None, None]
    # Opset 10 has scales only, in the second place.
    scales, sizes = (operands[1], None) if len(node.inputs) == 2 else (operands[_SCALES], operands[_SIZES])
    policy = node.attributes.get("keep_aspect_ratio_policy")
    if x is None or x.shape is None:
        _resize.infer_resize(context, node)
        return
    if sizes is not None and (policy is None or policy.as_string() == "stretch"):
        _resize.infer_resize(context, node)
        return
    dims: list[Extent] = list(x.shape)
    axes = [a % len(dims) for a in _ints(node, "axes", list(range(len(dims))))]
    constant = onnx_ir.convenience.get_const_tensor(scales) if scales is not None and sizes is None else None
    factors = None if constant is None else constant.numpy().reshape(-1).astype(np.float32).tolist()
    for i, axis in enumerate(axes):
        known = factors is not None and len(factors) == len(axes)
        dims[axis] = _scaled(context, dims[axis], factors[i]) if known and factors else context.new_symbolic_dim()
    context.set_shape_and_dtype(result, onnx_ir.Shape(dims), x.dtype)


def _infer_upsample(context: Any, node: onnx_ir.Node) -> None:
    x = node.inputs[0]
    factors: list[float] | None = None
    if "scales" in node.attributes:
        factors = [float(s) for s in node.attributes["scales"].as_floats()]
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = onnx_ir.convenience.get_const_tensor(node.inputs[1])
        factors = None if constant is None else constant.numpy().reshape(-1).tolist()
    if x is None:
        return
    shape = None
    if x.shape is not None:
        known = factors is not None and len(factors) == len(x.shape)
        dims = [
            _scaled(context, d, factors[i]) if known and factors else context.new_symbolic_dim()
            for i, d in enumerate(x.shape)
        ]
        shape = onnx_ir.Shape(dims)
    context.set_shape_and_dtype(node.outputs[0], shape, x.dtype)


_GRAIN = 16
"""Symbols are scaled by multiples of 1 / _GRAIN only: float32 has these products exactly, of extents below 2**20."""


def _scaled(context: Any, extent: Extent, scale: float) -> Extent:
    """The product in float32, cut to a whole number."""
    if isinstance(extent, int):
        return int(np.float32(scale) * np.float32(extent))
    ratio = Fraction(scale)
    if _GRAIN % ratio.denominator or extent.value is None:
        return context.new_symbolic_dim()  # type: ignore[no-any-return]
    return extent if ratio == 1 else (extent * ratio.numerator) // ratio.denominator
