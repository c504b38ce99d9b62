"""Facts about values for rules: types, shapes, small constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite import NoMatch


def tensor_type(value: Value) -> TensorType:
    """Give a value's tensor type, or decline."""
    type_ = value.tensor_type
    if type_ is None or type_.dtype == DType.UNDEFINED:
        raise NoMatch("type unknown")
    return type_


def shape_of(value: Value) -> tuple[Dim, ...]:
    """Give a value's shape (extents may be unknown), or decline."""
    shape = tensor_type(value).shape
    if shape is None:
        raise NoMatch("rank unknown")
    return shape


def same_shape(a: Value, b: Value) -> bool:
    """True if two values are known to have the same shape at run time."""
    x, y = shape_of(a), shape_of(b)
    return len(x) == len(y) and all(same(i, j) for i, j in zip(x, y, strict=True))


def same_type(a: Value, b: Value) -> bool:
    """True if two values are known to have the same element type and shape."""
    return tensor_type(a).dtype == tensor_type(b).dtype and same_shape(a, b)


def require(condition: bool, why: str) -> None:
    """Decline unless the condition holds."""
    if not condition:
        raise NoMatch(why)


def require_plain_view(node: Op) -> None:
    """Decline for a Reshape to a computed shape: a 0 in it means something else than no elements.

    What shape inference says of its result then holds only where no extent is 0. `simplify_shapes` makes the target
    constant where it can; all others stay.
    """
    if node.is_a("Reshape") and "shape" not in node.attrs:
        target = node.input(1)
        require(target is not None and target.tensor is not None, "reshapes to a computed shape")


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
    if value.tensor is not None and ops.has_packing_user(result):
        raise NoMatch("another kernel for a constant")
    return value


def axes_of(op: Op, index: int = 1) -> tuple[int, ...] | None:
    """Axes of Squeeze, Unsqueeze or a reduction: an operand since opset 13, an attribute before.

    `None` when none are given, or an empty list; declines when they are computed.
    """
    if "axes" in op.attrs:
        return tuple(op.attrs["axes"]) or None
    given = op.input(index)
    return None if given is None else known_ints(given) or None


def splat_of(value: Value) -> npt.NDArray[Any] | None:
    """Give the one element (a scalar array) that a value consists of by its making, else `None`."""
    op = value.op
    if op is None or not op.is_a("ConstantOfShape"):
        return None
    tensor = op.attrs.get("value")
    return np.zeros((), np.float32) if tensor is None else np.asarray(tensor.numpy()).reshape(())
