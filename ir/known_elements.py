"""Elements of small vectors that shape inference follows, kept only where a run computes them.

The engine (onnx-shape-inference 0.4) hands integers through a Cast to any type, divides floats as integers, and pairs
the elements of a row with those of a column. What it then says an extent is, no run gives.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import onnx_ir
from onnx_shape_inference import SYM_DATA_KEY, ShapeInferenceContext, registry
from onnx_shape_inference._ops import _cast, _elementwise

Element = int | onnx_ir.SymbolicDim

_EXACT = {onnx_ir.DataType.FLOAT: 1 << 24, onnx_ir.DataType.DOUBLE: 1 << 53}
"""Up to here a type has every whole number."""


def install() -> None:
    """Put the check, and the handlers, into the engine."""
    if not hasattr(ShapeInferenceContext.set_symbolic_value, "checked"):
        checked = _checked(ShapeInferenceContext.set_symbolic_value)
        setattr(ShapeInferenceContext, "set_symbolic_value", checked)  # noqa: B010
    registry.register("", "Cast", since_version=1)(_infer_cast)
    registry.register("", "Div", since_version=7)(_infer_div)


def _checked(original: Callable[..., None]) -> Callable[..., None]:
    """Note only as many elements as the shape has, each of which the element type holds; the others are unknown."""

    def set_symbolic_value(self: Any, value: onnx_ir.Value, data: list[Element]) -> None:
        extents = [] if value.shape is None else [d for d in value.shape if isinstance(d, int)]
        if value.shape is not None and len(extents) == len(value.shape) and prod(extents) != len(data):
            return
        plain = [_number(e) for e in data]
        original(self, value, [e if _holds(value.dtype, e) else self.new_symbolic_dim() for e in plain])

    set_symbolic_value.checked = True  # type: ignore[attr-defined]
    return set_symbolic_value


def _number(element: Element) -> Element:
    """Read an element: where symbols cancel out, the engine spells the number that is left as a symbol."""
    text = "" if isinstance(element, int) else element.value or ""
    return int(text) if text.removeprefix("-").isdecimal() else element


def forget(context: Any, value: onnx_ir.Value) -> None:
    """Take back what the engine noted of a value's elements."""
    context._symbolic_values.pop(value, None)
    if value.metadata_props.pop(SYM_DATA_KEY, None) is not None:
        value.const_value = None


def _holds(dtype: onnx_ir.DataType | None, element: Element) -> bool:
    """True if an element type has this number; of symbols, signed types and floats have the usual ones."""
    if dtype is None:
        return True
    if dtype in _EXACT:
        return not isinstance(element, int) or abs(element) <= _EXACT[dtype]
    if dtype == onnx_ir.DataType.BOOL:
        return isinstance(element, int) and element in (0, 1)
    if not dtype.is_integer():
        return False
    bits, signed = dtype.bitwidth, dtype.is_signed()
    if not isinstance(element, int):
        return signed and bits >= _WIDE
    return -(1 << bits - 1) <= element < 1 << bits - 1 if signed else 0 <= element < 1 << bits


_WIDE = 32
"""Bits from which a signed type holds the extents that there are."""


def _infer_cast(context: Any, node: onnx_ir.Node) -> None:
    """A truth value is 1 of every number but 0."""
    _cast.infer_cast(context, node)
    (result,) = node.outputs
    known = context.get_symbolic_value(node.inputs[0])
    if known is not None and result.dtype == onnx_ir.DataType.BOOL:
        found = [int(bool(e)) if isinstance(e, int) else context.new_symbolic_dim() for e in known]
        context.set_symbolic_value(result, found)


def _infer_div(context: Any, node: onnx_ir.Node) -> None:
    """Floats have whole quotients only where nothing is left over."""
    data = node.inputs[0]
    if data is None or data.dtype is None or data.dtype.is_integer():
        _elementwise._infer_arithmetic(context, node)
        return
    _elementwise.infer_binary_elementwise(context, node)
    known = [context.get_symbolic_value(v) for v in node.inputs]
    quotients = _elementwise._broadcast_symbolic_values(_whole_quotient, *known)
    if quotients is not None:
        context.set_symbolic_value(node.outputs[0], quotients)


def _whole_quotient(a: object, b: object) -> int | None:
    whole = isinstance(a, int) and isinstance(b, int) and b != 0 and a % b == 0
    return a // b if whole else None  # type: ignore[operator]
