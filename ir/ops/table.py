"""All definitions, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx.defs

from memoptc.ir.core import Op
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.ops import (
    attention,
    control,
    convolution,
    elementwise,
    matmul,
    normalization,
    pooling,
    quantized,
    random,
    recurrent,
    reduction,
    resize,
    shape,
    signal,
)
from memoptc.ir.ops.definition import Operator, WeightLayout

_FAMILIES = (
    attention, control, convolution, elementwise, matmul, normalization, pooling, quantized, random, recurrent,
    reduction, resize, shape, signal,
)  # fmt: skip

TABLE: dict[str, Operator] = {o.key: o for family in _FAMILIES for o in family.OPERATORS}
"""Key -> definition."""


@cache
def definition_of(key: str) -> Operator:
    """Give the definition of an operator; a careful one where nothing is known of it.

    An operator that has an ONNX schema and no definition here (as one of a newer ONNX) is a function of its operands.

    Args:
        key: Name, with the domain in front outside of standard ONNX.
    """
    found = TABLE.get(key)
    if found is not None:
        return found
    domain, _, name = key.rpartition("::")
    if onnx.defs.has(name, domain):
        pure = not domain.endswith("training")
        return Operator(key, pure=pure, removable=pure)
    return Operator(key, known=False, pure=False, removable=False)


def definition(op: Op) -> Operator:
    """Give the definition of an op's operator."""
    return definition_of(op.key)


def weight_layout(op: Op) -> WeightLayout | None:
    """Give where an op's weight lies and along which axes; `None` where it has none, or its shape is not known."""
    found = definition(op).layout
    return None if found is None else found(op)


def layout_of(op: Op) -> WeightLayout:
    """Give the layout of an op that is known to have one.

    Raises:
        InternalError: it has none.
    """
    found = weight_layout(op)
    if found is None:
        raise InternalError(f"{op.key} {op.name!r} has no weight of a known layout")
    return found


def names_where(holds: Callable[[Operator], bool], domain: str | None = "") -> frozenset[str]:
    """Give the names of operators that a condition holds for.

    Args:
        holds: The condition.
        domain: Only those of this domain; of any when `None`.
    """
    return frozenset(o.name for o in TABLE.values() if holds(o) and domain in (None, o.domain))
