"""Shape inference where extents are not known: broadcasting that promises nothing false, ConstantOfShape of symbols.

onnx-shape-inference 0.4 takes the first of two different symbols when it broadcasts them. But either may be 1 at
run time, and the result then has the other: only an extent that both share, or a number other than 1, is sure.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnx_shape_inference import _broadcast, registry

_Extent = int | onnx_ir.SymbolicDim


def install() -> None:
    """Put our handlers into the engine."""
    _broadcast._broadcast_dim = broadcast_extents
    registry.register("", "ConstantOfShape", since_version=9)(_constant_of_shape)


def broadcast_extents(a: _Extent, b: _Extent) -> _Extent | None:
    """Give the extent that two broadcast to: unknown where either may be the one; `None` where they clash."""
    if isinstance(a, int) and isinstance(b, int):
        return a if a == b or b == 1 else b if a == 1 else None
    if isinstance(a, int) or isinstance(b, int):
        known, other = (a, b) if isinstance(a, int) else (b, a)
        # A number other than 1 stays: the other extent is that, or 1.
        return other if known == 1 else known
    if a.value is not None and a.value == b.value:
        return a
    return onnx_ir.SymbolicDim(None)


def _constant_of_shape(context: Any, node: onnx_ir.Node) -> None:
    value = node.attributes.get("value")
    dtype = value.as_tensor().dtype if value is not None else onnx_ir.DataType.FLOAT
    target = node.inputs[0]
    shape: onnx_ir.Shape | None = None
    constant = onnx_ir.convenience.get_const_tensor(target) if target is not None else None
    if constant is not None:
        shape = onnx_ir.Shape([int(extent) for extent in constant.numpy().reshape(-1)])
    elif target is not None:
        known = context.get_symbolic_value(target)
        if known is not None:
            shape = onnx_ir.Shape(list(known))
        elif target.shape is not None and len(target.shape) == 1 and isinstance(target.shape[0], int):
            shape = onnx_ir.Shape([context.new_symbolic_dim() for _ in range(target.shape[0])])
    context.set_shape_and_dtype(node.outputs[0], shape, dtype)
