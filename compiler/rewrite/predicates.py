"""Predicates of rules written as data: functions of values, operators and plain literals, by name.

An answer of `None` means "not known"; a condition that depends on it does not hold, and neither does its
negation.
"""

from __future__ import annotations

import inspect
import math
import operator as operator_
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Sym, same
from memoptc.ir.tensors import scalar
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite.pattern import same_plain

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Predicate:
    """A registered function.

    Args:
        function: Gets one argument per entry of `kinds`.
        kinds: What each parameter takes: `Value`, `Op` (the operator that makes a value) or anything else.
        needed: How many arguments must be given.
    """

    function: Callable[..., Any]
    kinds: tuple[Any, ...]
    needed: int


PREDICATES: dict[str, Predicate] = {}


def predicate(function: F) -> F:
    """Make a function known to rules under its own name; parameters annotated `Value` or `Op` get these.

    Raises:
        TypeError: the name is taken.
    """
    name = function.__name__.rstrip("_")
    if name in PREDICATES:
        raise TypeError(f"there is a predicate {name!r} already")
    parameters = list(inspect.signature(function).parameters.values())
    hints = typing.get_type_hints(function)
    kinds = tuple(hints.get(p.name, object) for p in parameters)
    needed = sum(p.default is inspect.Parameter.empty for p in parameters)
    PREDICATES[name] = Predicate(function, kinds, needed)
    return function


def compare(left: Any, sign: str, right: Any) -> bool | None:
    """Compare two answers; `None` when one of them is not known, or they have no order.

    Args:
        left: An answer.
        sign: `==`, `!=`, `<`, `<=`, `>`, `>=` or `in`.
        right: Another.
    """
    if sign == "in":
        found = [_equal(left, item) for item in right] if isinstance(right, tuple) else [None]
        return True if True in found else (None if None in found else False)
    if sign in ("==", "!="):
        equal = _equal(left, right)
        return equal if equal is None or sign == "==" else not equal
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign]


def calculate(left: Any, sign: str, right: Any) -> Any:
    """Add, subtract, multiply or divide numbers (extents may be symbols); add lists; `None` when that is not known."""
    if sign == "+" and isinstance(left, tuple) and isinstance(right, tuple):
        return left + right
    if not _number(left) or not _number(right):
        return None
    try:
        found = {"+": operator_.add, "-": operator_.sub, "*": operator_.mul, "/": operator_.truediv}[sign](left, right)
    except (ArithmeticError, TypeError):
        return None
    return None if isinstance(found, float) and math.isnan(found) else found


def _number(value: Any) -> bool:
    return isinstance(value, int | float | Sym) and not isinstance(value, bool)


def _equal(left: Any, right: Any) -> bool | None:
    if isinstance(left, tuple) and isinstance(right, tuple):
        if len(left) != len(right):
            return False
        found = [_equal(a, b) for a, b in zip(left, right, strict=True)]
        return False if False in found else (None if None in found else True)
    if left is None or right is None:
        return None
    if isinstance(left, Sym) or isinstance(right, Sym):
        known = isinstance(left, int | Sym) and isinstance(right, int | Sym)
        return True if known and same(left, right) else None
    return same_plain(left, right)


def _tensor(value: Value) -> TensorType | None:
    return None if value.dtype == DType.UNDEFINED else value.tensor_type


@predicate
def single_use(value: Value) -> bool:
    """True if there is exactly one use."""
    return value.single_use


@predicate
def is_const(value: Value) -> bool:
    """True if the value is a constant."""
    return value.tensor is not None


@predicate
def is_output(value: Value) -> bool:
    """True if a graph gives the value out."""
    return value.is_output


@predicate
def given(value: Value) -> bool:
    """True if an optional operand is given."""
    return value is not None and not value.is_absent


@predicate
def attr(op: Op, name: str) -> Any:
    """An attribute, or the default that ONNX has for it; not known when there is neither."""
    found = ops.default_of(op, name)
    return tuple(found) if isinstance(found, list) else found


@predicate
def has_attr(op: Op, name: str) -> bool:
    """True if an attribute is set."""
    return name in op.attrs


@predicate
def operator(op: Op) -> str:
    """The operator's name."""
    return op.key


@predicate
def opset(op: Op) -> int | None:
    """The version of the operator's domain that the model uses."""
    return ops.opset_of(op.graph, op.domain) if op.graph is not None else None


@predicate
def dtype(value: Value) -> str | None:
    """The element type's short name, such as f32 or i64."""
    found = _tensor(value)
    return None if found is None else found.dtype.short_name()


@predicate
def rank(value: Value) -> int | None:
    """The number of axes."""
    found = shape(value)
    return None if found is None else len(found)


@predicate
def shape(value: Value) -> tuple[Any, ...] | None:
    """The shape; extents may be symbols, or not known."""
    found = _tensor(value)
    return None if found is None else found.shape


@predicate
def dim(value: Value, axis: int) -> Any:
    """The extent of an axis."""
    found = shape(value)
    if found is None or not isinstance(axis, int) or not -len(found) <= axis < len(found):
        return None
    return found[axis]


@predicate
def size(value: Value) -> Any:
    """The number of elements."""
    found = _tensor(value)
    return None if found is None else found.elements


@predicate
def value_(value: Value) -> Any:
    """The one element of a constant (that may be repeated); not known for others."""
    if value.tensor is None or not 0 < value.tensor.size <= 1 << 16:
        return None
    if value.tensor.size == 1:
        return scalar(value.tensor)
    elements = value.tensor.numpy().reshape(-1)
    return elements[0].item() if bool((elements == elements[0]).all()) else None


@predicate
def elements(value: Value) -> Any:
    """The elements of a small constant as a list, whatever its shape; not known for others."""
    if value.tensor is None or value.tensor.size > 1 << 12 or value.tensor.dtype == DType.STRING:
        return None
    return tuple(value.tensor.numpy().reshape(-1).tolist())


def _plain(number: object) -> bool:
    """True for a finite number that floats reach; a symbolic extent is none."""
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= sys.float_info.max


@predicate
def sqrt(number: float) -> float | None:
    """The square root; not known below 0."""
    return math.sqrt(number) if _plain(number) and number >= 0 else None


@predicate
def exp(number: float) -> float | None:
    """e to the power of a number."""
    return math.exp(number) if _plain(number) and number < 700 else None


@predicate
def log(number: float) -> float | None:
    """The natural logarithm; not known of 0 and below."""
    return math.log(number) if _plain(number) and number > 0 else None


@predicate
def integer(number: float) -> int | None:
    """A number without its fraction, such as the whole part of a quotient."""
    return int(number) if isinstance(number, int | float) and math.isfinite(number) else None


@predicate
def item(items: tuple[Any, ...], index: int) -> Any:
    """An item of a list, counted from 0, or from the end by negative numbers."""
    inside = isinstance(items, tuple) and isinstance(index, int) and -len(items) <= index < len(items)
    return items[index] if inside else None


@predicate
def length(items: tuple[Any, ...]) -> int | None:
    """Number of items of a list."""
    return len(items) if isinstance(items, tuple) else None
