"""Between which numbers the elements of a value lie, whatever the inputs are."""

from __future__ import annotations

import math

import numpy as np

from memoptc.ir.core import Value
from memoptc.ir.dataflow import on_demand
from memoptc.ir.ops import MOVES
from memoptc.ir.types import DType

Bounds = tuple[float, float]

Known = dict[Value, Bounds | None]


def bounds(value: Value, known: Known | None = None) -> Bounds | None:
    """Give the least and the largest number that elements can be; `None` where they may be anything, NaN included.

    The numbers are those of exact arithmetic: they may lie beyond what the element type holds.

    Args:
        value: The value.
        known: Bounds computed before; gets those of everything that was looked at.
    """
    return on_demand(value, _operands, _bounds, {} if known is None else known)


def _operands(value: Value) -> tuple[Value, ...]:
    """Operands that the bounds of a value follow from."""
    op = value.op
    if op is None or op.domain or op.regions or _of_type(value) is not None or value.tensor is not None:
        return ()
    match op.op_type:
        case "Concat" | "Add" | "Sub" | "Mul":
            return op.operands
        case "Where":
            return op.operands[1:3]
        case "Cast" | "Neg":
            return op.operands[:1]
        case _:
            return op.operands[:1] if op.op_type in MOVES else ()


def _of_type(value: Value) -> Bounds | None:
    """Bounds of an element type: those of its integers, or of truth values."""
    dtype = value.dtype or DType.UNDEFINED
    if dtype == DType.BOOL:
        return 0.0, 1.0
    if dtype.is_integer():  # numpy's iinfo does not know integers of 2 and 4 bits
        bits, signed = dtype.bitwidth, dtype.is_signed()
        return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    return None


def _bounds(value: Value, known: Known) -> Bounds | None:
    if value.tensor is not None:
        return _of_constant(value)
    op, operands = value.op, [known[v] for v in _operands(value)]
    if op is None or not operands:
        return _of_type(value)
    first = operands[0]
    if op.op_type in MOVES or op.op_type in ("Where", "Cast"):
        return _join(operands)
    if op.op_type == "Neg":
        return None if first is None else (-first[1], -first[0])
    second = operands[1]
    return None if first is None or second is None else _arithmetic(op.op_type, first, second)


def _of_constant(value: Value) -> Bounds | None:
    assert value.tensor is not None
    if DType(value.tensor.dtype) == DType.STRING or not value.tensor.size:
        return None
    content = np.asarray(value.tensor.numpy())
    with np.errstate(invalid="ignore"):  # both are NaN where an element is
        least, most = float(content.min()), float(content.max())
    return (least, most) if math.isfinite(least) and math.isfinite(most) else None


def _join(every: list[Bounds | None]) -> Bounds | None:
    known = [b for b in every if b is not None]
    return (min(b[0] for b in known), max(b[1] for b in known)) if known and len(known) == len(every) else None


def _arithmetic(op_type: str, a: Bounds, b: Bounds) -> Bounds:
    if op_type == "Add":
        return a[0] + b[0], a[1] + b[1]
    if op_type == "Sub":
        return a[0] - b[1], a[1] - b[0]
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)
