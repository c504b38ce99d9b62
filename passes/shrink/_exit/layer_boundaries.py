"""Boundaries between layers: values that alone carry what a model has computed so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memoptc.ir.core import Graph, Op, Value
from memoptc.passes.shrink._shrink.work import FLOATS, multiplications

MOST = 8
"""Borders that are looked at."""

FROM, UNTIL = 0.05, 0.9
"""Shares of the model's multiplications that lie before a border: elsewhere there is nothing to save, or to know."""


@dataclass(frozen=True)
class LayerBoundary:
    """A place between two layers.

    Args:
        name: Of the value that all later layers compute from.
        done: Share of the model's multiplications that lies before it.
    """

    name: str
    done: float


def layer_boundaries(graph: Graph) -> list[LayerBoundary]:
    """Find values of rank 2 to 4 with a known width that are all that later ops know of the inputs.

    One walk over the ops: a border is where exactly one computed float value of rank 2 or more is used later. Extents
    and other small values may be used across it.

    Its rows must be those of the scores, as far as that is known.

    Args:
        graph: The top graph, types inferred, with one output `[batch, classes]`.

    Returns:
        At most `MOST`, evenly spaced over the multiplications, first ones first.
    """
    ops = list(graph.ops)
    batch = (graph.outputs[0].shape or (None,))[0]
    at = {op: i for i, op in enumerate(ops)}
    at[graph.terminator] = len(ops)
    last = {value: max(at[_in(graph, user)] for user in value.users) for value in _large(graph) if value.has_uses}
    whole = sum(map(multiplications, ops)) or 1.0
    done, alive, found = 0.0, {v for v in last if v.is_input}, []
    for i, op in enumerate(ops):
        done += multiplications(op)
        alive |= {r for r in op.results if r in last}
        alive = {v for v in alive if last[v] > i}
        if len(alive) == 1:
            (value,) = alive
            shape = value.shape or ()
            fits = value.op is op and 2 <= len(shape) <= 4 and isinstance(_width(value), int)
            if fits and (None in (shape[0], batch) or shape[0] == batch):
                found.append(LayerBoundary(value.name, done / whole))
    found = [border for border in found if FROM <= border.done <= UNTIL]
    spread: dict[int, LayerBoundary] = {}
    for border in found:
        spread.setdefault(int(border.done * MOST), border)
    return list(spread.values())


def _width(value: Value) -> object:
    """The extent of the axis of channels or features."""
    shape = value.shape or ()
    return shape[1] if len(shape) == 4 else shape[-1]


def _large(graph: Graph) -> Iterator[Value]:
    """Inputs and computed values of floats that have a batch axis and another one."""
    computed: set[Value] = set()
    for value in graph.inputs:
        computed.add(value)
        if value.dtype in FLOATS and len(value.shape or ()) >= 2:
            yield value
    for op in graph.ops:
        if not any(v in computed for v in op.operands) and not op.regions:
            continue
        for result in op.results:
            computed.add(result)
            if result.dtype in FLOATS and (result.shape is None or len(result.shape) >= 2):
                yield result


def _in(graph: Graph, op: Op) -> Op:
    """The op of the graph that an op is, or stands in a region of."""
    while op.graph is not graph:
        assert op.graph is not None
        assert op.graph.parent is not None
        op = op.graph.parent
    return op
