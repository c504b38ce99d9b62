"""What the float64 forms of operators have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value


class NoDouble(Exception):
    """An operator has no float64 form here; the message names it and says why."""


Lowering: TypeAlias = Callable[[Builder, Op], Sequence[Value | None]]
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


def add_all(b: Builder, values: Sequence[Value]) -> Value:
    """Add values up, first to last."""
    total = values[0]
    for value in values[1:]:
        total = b.Add(total, value)
    return total
