"""Control flow whose course is known."""

from __future__ import annotations

from collections import Counter

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.forms import inline
from memoptc.ir.ops import definition, has_packing_user
from memoptc.ir.tensors import scalar


def simplify_control(graph: Graph, stats: Counter[str]) -> None:
    """Put the branch that an If with a constant condition takes in its place, and the body of a Loop that runs once.

    What was inside is looked at at once, all else again after a round that changed anything. Each change takes an If
    or Loop out, so that this ends.
    """
    changed = True
    while changed:
        changed = False
        todo = list(graph.walk("If", "Loop"))[::-1]
        while todo:
            op = todo.pop()
            if op.graph is None or not op.graph.root.encloses(graph):
                continue
            inside = [inner for region in op.regions.values() for inner in region.ops if inner.is_a("If", "Loop")]
            if _inline_if(op, stats) if op.op_type == "If" else _inline_loop(op, stats):
                changed = True
                todo += inside[::-1]


def _inline_if(op: Op, stats: Counter[str]) -> bool:
    taken = scalar(op.operand.tensor)
    if taken is None:
        return False
    name = "then_branch" if taken else "else_branch"
    if any(_exposes_constant(v, r) for v, r in zip(op.regions[name].outputs, op.results, strict=True)):
        return False
    if _brings_weights_near(op, op.regions[name]):
        return False
    region = op.take_region(name)
    _inline(op, region, region.outputs)
    stats["branches inlined"] += 1
    return True


def _inline_loop(op: Op, stats: Counter[str]) -> bool:
    """A Loop that runs no or one iteration for sure, and collects nothing."""
    trips, condition = op.input(0), op.input(1)
    count = scalar(trips.tensor) if trips is not None else None
    starts = scalar(condition.tensor) if condition is not None else True
    states = op.operands[2:]
    if len(op.results) != len(states) or not all(_same_kind(r, s) for r, s in zip(op.results, states, strict=True)):
        return False
    never = starts is False or (count is not None and count <= 0)
    places = op.results if never else op.regions["body"].inputs[2:]
    if any(_exposes_constant(s, v) for s, v in zip(states, places, strict=True)):
        return False
    if never:
        for result, state in zip(op.results, states, strict=True):
            result.replace_by(state)
        op.erase()
        stats["loops that never run"] += 1
        return True
    if count != 1 or starts is not True:
        return False
    if _brings_weights_near(op, op.regions["body"]):
        return False
    body = op.take_region("body")
    builder = Builder(_graph(op), before=op, loc=op.loc.union(rule="inline-loop"))
    entry = (builder.const(np.zeros((), np.int64)), builder.const(np.ones((), np.bool_)), *states)
    for inside, outside in zip(body.inputs, entry, strict=True):
        inside.replace_by(outside)
    _inline(op, body, body.outputs[1:])
    stats["loops that run once"] += 1
    return True


def _exposes_constant(value: Value, place: Value) -> bool:
    """True if a kernel would see a constant where it saw a computed value, and round otherwise."""
    return value.tensor is not None and has_packing_user(place)


def _brings_weights_near(op: Op, region: Graph) -> bool:
    """True if kernels two graphs inside the op's would see its weights from one graph inside, and so pack them.

    See `memoptc.ir.ops.packs_alike_in`.
    """
    within = (inner for around in region.ops for deeper in around.regions.values() for inner in deeper.ops)
    read = (v for inner in within if definition(inner).packs_weights for v in inner.operands)
    return any(v.tensor is not None and v.op is not None and v.op.graph is op.graph for v in read)


def _same_kind(a: Value, b: Value) -> bool:
    return a.type is None or b.type is None or type(a.type) is type(b.type)


def _graph(op: Op) -> Graph:
    assert op.graph is not None
    return op.graph


def _inline(op: Op, region: Graph, outputs: tuple[Value, ...]) -> None:
    for inner in region.ops:
        inner.loc = inner.loc.union(op.loc, rule="inline")
    inline(op, region, outputs)
