"""Bytes that an operator touches: the accesses of every storage, for placement in several memories."""

from __future__ import annotations

from collections import Counter

from memoptc.ir.core import Op
from memoptc.ir.ops import facts
from memoptc.runtime.memory.liveness import Liveness, Storage
from memoptc.runtime.memory.spaces import Access, SpacedProblem


def spaced_problem(found: Liveness) -> SpacedProblem:
    """Give storages and their accesses: every op writes its results and reads its operands, once each.

    An op that only makes a view touches nothing. What an op needs inside is written and read once. Uses inside of a
    region count where the op runs that owns it.
    """
    position = {op: step for step, op in enumerate(found.steps)}
    rows = []
    for storage in found.storages:
        touched: Counter[int] = Counter()
        if not storage.values:
            touched[storage.first] = 2
        for value in storage.values:
            for op in (value.op, *(user for user, _ in value.uses)):
                if op is None or op.is_return or _is_view(op, storage):
                    continue
                step = position.get(_outermost(op, position))
                if step is not None and storage.first <= step <= storage.last:
                    touched[step] += 1
        rows.append(tuple(Access(step, times * storage.size) for step, times in sorted(touched.items())))
    return SpacedProblem(found.problem.buffers, tuple(rows))


def _is_view(op: Op, storage: Storage) -> bool:
    """True if an op makes a view that lies in this storage, too; a view that is an output is a copy."""
    view = facts(op).view
    return view is not None and op.results[0] in storage.values and op.operands[view] in storage.values


def _outermost(op: Op, position: dict[Op, int]) -> Op:
    while op not in position and op.graph is not None and op.graph.parent is not None:
        op = op.graph.parent
    return op
