"""Control flow whose course is known."""

from __future__ import annotations

from collections import Counter

from memoptc.ir.core import Graph, Op
from memoptc.ir.tensors import scalar


def inline_constant_branches(graph: Graph, stats: Counter[str]) -> None:
    """Put the branch that an If with a constant condition takes in its place, at every depth."""
    for op in graph.walk("If"):
        taken = scalar(op.operand.tensor)
        if taken is not None and op.graph is not None:
            _inline(op, "then_branch" if taken else "else_branch")
            stats["branches inlined"] += 1


def _inline(op: Op, branch: str) -> None:
    region = op.regions[branch]
    outputs = region.outputs
    for inner in list(region.ops):
        inner.move_before(op)
        inner.loc = inner.loc.union(op.loc, rule="inline-branch")
    for result, value in zip(op.results, outputs, strict=True):
        if value.type is None:
            value.type = result.type
        result.replace_by(value)
    op.erase()
