"""Multiplications of a model, for where only shares of them matter."""

from __future__ import annotations

from memoptc.ir.core import Op
from memoptc.ir.ops import definition
from memoptc.ir.types import DType

FLOATS = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE)
"""Element types of hidden states."""


def multiplications(op: Op) -> float:
    """Multiplications of an op; symbolic extents count as one."""
    count = definition(op).multiplications
    if count is None:
        return 0.0
    return count(op, lambda value: tuple(d if isinstance(d, int) else 1 for d in value.shape or ()))
