"""Recurrent operators."""

from __future__ import annotations

from math import prod

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import Along, Axis
from memoptc.ir.ops.definition import Family, Operator, ShapeOf, define
from memoptc.ir.ops.schema import MICROSOFT


def _recurrent(op: Op) -> list[Axis]:
    """A batch of sequences; the directions and hidden states of one depend on nothing outside it."""
    if op.attrs.get("layout", 0):
        return []
    places = {0: 1, 4: 0, 5: 1, 6: 1}
    cut = tuple(Along(places[i]) if i in places and op.input(i) else None for i in range(len(op.operands)))
    results = (2, 1, 1)[: len(op.results)]
    return [Axis(results, cut, reorders=True)]


def _multiplications(op: Op, shape_of: ShapeOf) -> float:
    if len(op.operands) < 3:
        return 0.0
    rows = shape_of(op.operands[0])
    return prod(rows[:2]) * (prod(shape_of(op.operands[1])) + prod(shape_of(op.operands[2])))


OPERATORS: tuple[Operator, ...] = (
    *define(
        "LSTM GRU RNN", space=_recurrent, packs_weights=True, family=Family.RECURRENT, multiplications=_multiplications
    ),
    *define("DynamicQuantizeLSTM", MICROSOFT, family=Family.RECURRENT),
)
