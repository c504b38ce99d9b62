"""Operators whose results depend on the elements at the same place only."""

from __future__ import annotations

from memoptc.ir.core import Op
from memoptc.ir.iteration.axis import Along, Axis, shape, spread

ROUND_BY_PLACE = frozenset("Acos Asin Atan Celu Cos Elu Exp Log Mish Selu Sigmoid Sin Softplus Tanh FastGelu".split())
"""onnxruntime's kernels compute the last elements of a buffer by other instructions than those before them (in
float32, or in float64 only), and round some of them otherwise: a piece's last elements lie in the whole's midst."""


def broadcast_axes(op: Op) -> list[Axis]:
    """Every axis of the result; operands that broadcast along one are needed whole."""
    whole = shape(op.results[0])
    if whole is None or any(shape(r) is None for r in op.results if not r.omitted):
        return []
    found = []
    for place, extent in enumerate(whole):
        parts = [spread(op, i, place, len(whole), extent) for i in range(len(op.operands))]
        if all(p is not False for p in parts) and any(p is not None for p in parts):
            cut = tuple(p if isinstance(p, Along) else None for p in parts)
            found.append(Axis((place,) * len(op.results), cut, reorders=op.op_type in ROUND_BY_PLACE))
    return found
