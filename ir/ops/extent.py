"""Operators on empty tensors: which ones onnxruntime runs where an extent is 0; others fail, or end the process."""

from __future__ import annotations

from memoptc.ir.core import Op
from memoptc.ir.dims import Dim, is_nonnegative
from memoptc.ir.ops.definition import Family
from memoptc.ir.ops.table import definition

_REFUSING_FAMILIES = frozenset(
    {Family.CONVOLUTION, Family.POOL, Family.RECURRENT, Family.NORMALIZATION, Family.ATTENTION}
)
"""Families with kernels that refuse empty operands, in onnxruntime 1.31."""

_ACCEPTS_EMPTY = frozenset(
    {
        "BatchNormalization", "Hardmax", "LogSoftmax", "Softmax", "com.microsoft::SkipLayerNormalization",
        "com.microsoft::SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
"""Operators of these families that run on them all the same."""

_REFUSES_EMPTY = frozenset({"Pad", "Resize", "RotaryEmbedding", "Upsample", "com.microsoft::RotaryEmbedding"})
"""Operators of no such family that refuse them, in some of their modes."""


def accepts_empty(op: Op) -> bool:
    """True if an op runs on empty operands."""
    if op.key in _REFUSES_EMPTY:
        return False
    return definition(op).family not in _REFUSING_FAMILIES or op.key in _ACCEPTS_EMPTY


def runs_on_part(op: Op, extent: Dim, *, never_alone_empty: bool = False) -> bool:
    """True if an op runs on a part of an axis wherever it runs on the whole, for every value that symbols can have.

    Whoever moves an op from a value to a part of it asks this.

    Args:
        op: The op to move.
        extent: Elements of the part; `None` when not known.
        never_alone_empty: The part is known to have elements wherever the whole axis has.
    """
    if accepts_empty(op) or never_alone_empty:
        return True
    return extent is not None and is_nonnegative(extent - 1)
