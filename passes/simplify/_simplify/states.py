"""Recurrent operators that begin with zeros, which is what they do when nothing is given."""

from __future__ import annotations

from collections import Counter

from memoptc.ir import ops
from memoptc.ir.core import Graph, Value
from memoptc.passes.simplify._simplify.facts import splat_of

_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
_MOVING = frozenset({*ops.VIEWS, "Transpose", "Expand", "Slice", "Tile", "Gather"})
"""Gives nothing but elements of operand 0."""
_SMALL = 1 << 20


def drop_zero_states(graph: Graph, stats: Counter[str]) -> None:
    """Take away initial states that are zero, and with them the computation of their shape."""
    for op in graph.walk(*_STATES):
        for index in _STATES[op.op_type]:
            state = op.input(index)
            if state is not None and op.graph is not None and _is_zero(state):
                op.set_operand(index, op.graph.absent())
                stats["zero states"] += 1
        operands = list(op.operands)
        while operands[-1].is_absent:
            operands.pop()
        if len(operands) < len(op.operands):
            op.set_operands(operands)


def _is_zero(value: Value) -> bool:
    """True if every element is 0.0 (not -0.0) for sure."""
    while value.op is not None and value.op.key in _MOVING:
        value = value.op.operand
    splat = splat_of(value)
    if splat is not None:
        return not any(splat.tobytes())
    tensor = value.tensor
    return tensor is not None and 0 < tensor.nbytes <= _SMALL and not any(tensor.tobytes())
