"""Writing operators in float64 with operators that onnxruntime has float64 kernels for: what the families share.

`Operator.double` builds that form. It serves reference numbers only: exactness counts, speed and node count do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.ops.schema import opset_of


class NoDouble(Exception):
    """An operator has no float64 form here; the message names it and says why."""


class OpBuilder(Protocol):
    """The part of `memoptc.ir.builder.Builder` that definitions use (it infers types by them, so it is above them)."""

    graph: Graph

    def __getattr__(self, op_type: str, /) -> Callable[..., Any]: ...

    def op(
        self, op_type: str, operands: Sequence[Value | npt.ArrayLike | None], attrs: dict[str, Any] | None = None
    ) -> Op:
        """Make an op, its result types inferred."""
        ...

    def const(self, content: npt.ArrayLike | Tensor) -> Value:
        """Make a constant."""
        ...

    def inside(self, region: Graph) -> OpBuilder:
        """Make a builder at the end of a region."""
        ...


Lowering: TypeAlias = Callable[[OpBuilder, Op], Sequence[Value | None]]
"""Builds the float64 form of an op and gives the values that stand for its results."""


def f64(number: float) -> npt.NDArray[np.float64]:
    """Make a float64 scalar."""
    return np.asarray(number, np.float64)


def i64(*numbers: int) -> npt.NDArray[np.int64]:
    """Make a vector of int64."""
    return np.asarray(numbers, np.int64)


def static_shape(value: Value, op: Op) -> tuple[int, ...]:
    """Give the static shape of a weight."""
    shape = value.static_shape
    if shape is None:
        raise NoDouble(f"{op.op_type} {op.name!r} whose weight has no known shape")
    return shape


def rank_of(value: Value, op: Op) -> int:
    """Give the rank of a value."""
    rank = value.rank
    if rank is None:
        raise NoDouble(f"{op.op_type} {op.name!r} on a tensor of unknown rank")
    return rank


def text_attr(op: Op, key: str, default: str) -> str:
    """Give an attribute as text."""
    value = op.attrs.get(key, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def add_all(b: OpBuilder, values: Sequence[Value]) -> Value:
    """Add values up, first to last."""
    total = values[0]
    for value in values[1:]:
        total = b.Add(total, value)
    return total


def reduced(b: OpBuilder, kind: str, x: Value, axes: Sequence[int]) -> Value:
    """Reduce along axes, which stay with an extent of 1."""
    if (opset_of(b.graph) or 0) >= 18:
        return b.op(kind, [x, i64(*axes)], {"keepdims": 1}).result
    return b.op(kind, [x], {"axes": tuple(axes), "keepdims": 1}).result
