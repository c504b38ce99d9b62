"""The branch of an If that runs, where that follows from extents alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dataflow import on_demand
from memoptc.ir.forms import inline
from memoptc.ir.ops import VIEWS
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType
from memoptc.runtime.memory.footprint import evaluate

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
}
LIKELY = "memoptc.likely"
"""Metadata of an If: the branch that runs in ordinary use, where that depends on values and not on extents alone."""
FRAME = "memoptc.frame"
"""Metadata of an op that `as_branched` put in place of an If: onnxruntime runs the ops of a branch in a frame of their
own, whose buffers and memory pattern are not shared with what is around it; of a branch inside another one `1/2`."""
_SAME = VIEWS | {"Cast"}


def branches(op: Op, dims: Mapping[str, int]) -> list[Graph]:
    """The regions of an op that may run; of an If only one when its condition follows from extents or is marked likely.

    Args:
        op: An op with regions.
        dims: Extents of symbolic dimensions, completed (see `extents`).
    """
    if op.op_type == "If" and not op.domain:
        known = _known(op.operands[0], dims)
        if known is not None and len(known) == 1:
            return [op.regions["then_branch" if known[0] else "else_branch"]]
        if op.metadata.get(LIKELY) in op.regions:
            return [op.regions[op.metadata[LIKELY]]]
    return list(op.regions.values())


def as_branched(graph: Graph, dims: Mapping[str, int], order: Callable[[Graph], Sequence[Op]] | None = None) -> Graph:
    """Give a copy of a graph in which the ops of a branch stand in place of each If of which no other branch may run.

    Args:
        graph: A top graph; it is given itself where nothing changes.
        dims: Extents of symbolic dimensions, completed.
        order: Order in which the ops of a graph, or of a branch, run, weights left out; the one in which they stand
            when not given. A branch runs as a whole: the order of the copy is that in which all of it runs.
    """
    if not any(_only_branch(op, dims) for op in graph.ops):
        return graph
    copy = graph.clone()
    _put_in_order(copy, order)
    todo, frames = list(copy.ops), 0
    for op in todo:  # grows by what comes out of branches
        name = _only_branch(op, dims)
        if name:
            region = op.take_region(name)
            _put_in_order(region, order)
            frames += 1
            around = op.metadata.get(FRAME)
            for inner in region.ops:
                inner.metadata[FRAME] = f"{around}/{frames}" if around else str(frames)
            todo += region.ops
            inline(op, region, tuple(region.outputs))
    return copy


def _put_in_order(graph: Graph, order: Callable[[Graph], Sequence[Op]] | None) -> None:
    if order is not None:
        ran = order(graph)
        among = set(ran)
        graph.reorder([*(op for op in graph.ops if op not in among), *ran])


def _only_branch(op: Op, dims: Mapping[str, int]) -> str:
    """Name the one region of an If that its condition allows; `""` where both may run, and for other operators."""
    may = branches(op, dims) if len(op.regions) > 1 else []
    return next(name for name, region in op.regions.items() if region is may[0]) if len(may) == 1 else ""


_Elements = tuple[int, ...] | None


def _known(value: Value, dims: Mapping[str, int]) -> _Elements:
    """The elements of a small integer or boolean vector, `None` when they do not follow from extents."""
    return on_demand(value, _operands, lambda v, known: _elements(v, known, dims), {})


def _operands(value: Value) -> tuple[Value, ...]:
    """Operands that a value's elements follow from."""
    op = value.op
    if op is None or op.domain or value.tensor is not None:
        return ()
    if op.op_type in _SAME or op.op_type == "Not":
        return op.operands[:1]
    return op.operands[:2] if op.op_type in _COMPARE or op.op_type in ("And", "Gather", "Or") else ()


def _elements(value: Value, known: dict[Value, _Elements], dims: Mapping[str, int]) -> _Elements:
    if value.tensor is not None:
        if value.tensor.dtype == DType.BOOL and value.tensor.size <= 1:
            return tuple(int(v) for v in value.tensor.numpy().reshape(-1))
        return ints(value.tensor)
    op = value.op
    if op is None or op.domain:
        return None
    if op.op_type == "Shape" and not op.attrs.get("start") and "end" not in op.attrs:
        shape = op.operand.shape
        found = [evaluate(d, dims) for d in shape or ()]
        return None if shape is None or None in found else tuple(d for d in found if d is not None)
    operands = [known[v] for v in _operands(value)]
    a, b = (*operands, None, None)[:2]
    if op.op_type in _SAME:
        return a
    if a is None:
        return None
    if op.op_type == "Not":
        return tuple(int(not v) for v in a)
    if b is None:
        return None
    if op.op_type == "Gather":
        return None if any(not -len(a) <= p < len(a) for p in b) else tuple(a[p] for p in b)
    if len(a) != 1 or len(b) != 1:
        return None
    if op.op_type in _COMPARE:
        return (int(_COMPARE[op.op_type](a[0], b[0])),)
    return (int((a[0] and b[0]) if op.op_type == "And" else (a[0] or b[0])),)
