"""Branches that are always taken, for a reason that onnxruntime does not look for: an empty sequence has length 0."""

from __future__ import annotations

import numpy as np

from memoptc.ir.core import Graph, Op, Value

_SCAFFOLD = ("SequenceEmpty", "SequenceLength", "Equal", "const")


def is_taken(op: Op) -> bool:
    """Whether an op is an If whose condition compares the length of an empty sequence with 0."""
    if not op.is_a("If"):
        return False
    equal = op.operand.op
    if equal is None or not equal.is_a("Equal"):
        return False
    length, zero = equal.operands
    counts = length.op
    if counts is None or not counts.is_a("SequenceLength") or zero.tensor is None or np.any(zero.tensor.numpy()):
        return False
    return counts.operand.op is not None and counts.operand.op.is_a("SequenceEmpty")


def inline(op: Op, region: Graph, outputs: tuple[Value, ...]) -> None:
    """Put a region's ops where its owner stands, and its outputs in place of the owner's results."""
    region.terminator.set_operands(())
    for inner in list(region.ops):
        inner.move_before(op)
    for result, value in zip(op.results, outputs, strict=True):
        if value.type is None:
            value.type = result.type
        result.replace_by(value)
    op.erase()


def looked_into(graph: Graph) -> Graph:
    """Give a graph as it runs: a copy with the branches that are always taken in their place.

    Args:
        graph: Stays as it is; given back itself where there is no such branch.
    """
    if not any(is_taken(op) for op in graph.ops):
        return graph
    copy = graph.clone()
    for op in list(copy.ops):
        if is_taken(op):
            region = op.take_region("then_branch")
            inline(op, region, region.outputs)
    for op in reversed(list(copy.ops)):
        if op.is_a(*_SCAFFOLD) and not any(r.has_uses for r in op.results):
            op.erase()
    return copy
