"""Recurrent operators."""

from __future__ import annotations

from math import prod
from typing import Any

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import Along, Axis
from memoptc.ir.ops.definition import Family, Operator, ShapeOf, also, define
from memoptc.ir.ops.double_recurrent import recurrent
from memoptc.ir.ops.parameters import Length, RecurrentState
from memoptc.ir.ops.schema import MICROSOFT
from memoptc.ir.ops.sizes import FLOAT, Sizes


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


def _directions(s: Sizes) -> tuple[int, int, int, int, int, int]:
    sequence, batch, width_in = s.operand(0)
    if s.op.attrs.get("layout", 0):
        sequence, batch = batch, sequence
    direction = s.op.attrs.get("direction", "forward")
    hidden = s.operand(2)[2]
    backwards = 0 if direction == "forward" else FLOAT * sequence * batch * (width_in + hidden)
    return 2 if direction == "bidirectional" else 1, sequence, batch, width_in, hidden, backwards


def _lstm(s: Sizes) -> int:
    """UniDirectionalLstm::AllocateBuffers (core/providers/cpu/rnn/uni_directional_lstm.cc)."""
    count, sequence, batch, _, hidden, backwards = _directions(s)
    bias = 4 * hidden if s.has(3) else 0
    each = 2 * hidden + 3 * batch * hidden + 4 * sequence * batch * hidden + bias + batch
    return FLOAT * each * count + backwards


def _gru(s: Sizes) -> int:
    """UniDirectionalGru (core/providers/cpu/rnn/deep_cpu_gru.cc)."""
    count, sequence, batch, _, hidden, backwards = _directions(s)
    after = bool(s.op.attrs.get("linear_before_reset", 0))
    rows = 2 + after + ((3 + after) if s.has(3) else 0)
    each = rows * batch * hidden + 3 * sequence * batch * hidden
    return FLOAT * (each * count + batch) + backwards


def _rnn(s: Sizes) -> int:
    """One product for all steps of a direction (core/providers/cpu/rnn/rnn.cc)."""
    _, sequence, batch, _, hidden, _ = _directions(s)
    return FLOAT * sequence * batch * hidden


_FACTS: dict[str, Any] = {
    "space": _recurrent, "packs_weights": True, "family": Family.RECURRENT, "multiplications": _multiplications,
}  # fmt: skip

OPERATORS: tuple[Operator, ...] = (
    *define("LSTM", workspace=_lstm, double=recurrent, **_FACTS),
    *define("GRU", workspace=_gru, double=recurrent, **_FACTS),
    *define("RNN", workspace=_rnn, **_FACTS),
    *define("DynamicQuantizeLSTM", MICROSOFT, types_like=("LSTM", 14), family=Family.RECURRENT),
)
OPERATORS = also(OPERATORS, "GRU LSTM RNN", optional_results=True)
OPERATORS = also(OPERATORS, "GRU LSTM", packed=(1, 2))
OPERATORS = also(OPERATORS, "DynamicQuantizeLSTM", MICROSOFT, packed=(1, 2))
OPERATORS = also(OPERATORS, "DynamicQuantizeLSTM", MICROSOFT, on_codes=True)
_LENGTHS = {4: Length(lambda op: 1 if op.attrs.get("layout") else 0)}
OPERATORS = also(OPERATORS, "GRU RNN", parameters={**_LENGTHS, 5: RecurrentState()})
OPERATORS = also(OPERATORS, "LSTM", parameters={**_LENGTHS, 5: RecurrentState(), 6: RecurrentState()})
OPERATORS = also(OPERATORS, "DynamicQuantizeLSTM", MICROSOFT, parameters={5: RecurrentState(), 6: RecurrentState()})
OPERATORS = also(
    OPERATORS, "GRU LSTM RNN", equal_extents=(((0, 1), (4, 0)), ((0, 1), (5, 1)), ((0, 1), (6, 1)), ((0, 2), (1, 2)))
)
