"""What rules need to know of values: types, shapes, small constants."""

from __future__ import annotations

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite import NoMatch


def tensor_type(value: Value) -> TensorType:
    """Give a value's tensor type, or decline."""
    if not isinstance(value.type, TensorType) or value.type.dtype == DType.UNDEFINED:
        raise NoMatch("type unknown")
    return value.type


def shape_of(value: Value) -> tuple[Dim, ...]:
    """Give a value's shape (extents may be unknown), or decline."""
    shape = tensor_type(value).shape
    if shape is None:
        raise NoMatch("rank unknown")
    return shape


def same_shape(a: Value, b: Value) -> bool:
    """Whether two values are known to have the same shape at run time."""
    x, y = shape_of(a), shape_of(b)
    return len(x) == len(y) and all(same(i, j) for i, j in zip(x, y, strict=True))


def same_type(a: Value, b: Value) -> bool:
    """Whether two values are known to have the same element type and shape."""
    return tensor_type(a).dtype == tensor_type(b).dtype and same_shape(a, b)


def require(condition: bool, why: str) -> None:
    """Decline unless the condition holds."""
    if not condition:
        raise NoMatch(why)


def known_ints(value: Value | None) -> tuple[int, ...]:
    """Give the integers a constant holds, or decline."""
    found = ints(value.tensor) if value is not None else None
    if found is None:
        raise NoMatch("not a constant")
    return found


def opset(op: Op) -> int:
    """The standard opset in force."""
    return (ops.opset_of(op.graph) if op.graph is not None else None) or 1


def forward(value: Value, result: Value) -> Value:
    """Give `value` in place of `result`, unless making a constant visible changes which kernel runs."""
    if value.tensor is not None and ops.feeds_packed(result):
        raise NoMatch("another kernel for a constant")
    return value


def axes_of(op: Op, index: int = 1) -> tuple[int, ...] | None:
    """Axes of Squeeze, Unsqueeze or a reduction: an operand since opset 13, an attribute before.

    `None` when none are given; declines when they are computed.
    """
    if "axes" in op.attrs:
        return tuple(op.attrs["axes"])
    given = op.input(index)
    return None if given is None else known_ints(given)
