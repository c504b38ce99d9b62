"""Recomputation: what is large, waits long and is cheap to compute is computed once more where it is used late.

The copy by itself saves nothing where it is used; together with the ops around it, it is then cut into pieces, and the
whole of it does not exist there either (compare "Training Deep Nets with Sublinear Memory Cost", Chen et al. 2016;
there for what the backward pass needs).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from memoptc.ir.core import Op, Value, clone_op
from memoptc.ir.ops import facts
from memoptc.passes._tile.estimate import OVERHEAD, Landscape
from memoptc.passes._tile.region import AGAIN, MARK
from memoptc.runtime.memory.footprint import is_resident

LONGEST = 24
"""Ops that are computed again at most."""
LARGE = 0.05
"""Share of the peak below which a value is not worth it."""
HIGH = 0.3
"""Share of the peak that must be alive while a value waits."""
SMALLER = 0.5
"""Size beside the value's up to which what the copy needs is kept instead."""


@dataclass(frozen=True)
class Recompute:
    """A value that is computed again for its late users.

    Args:
        value: The value.
        users: Those that get the copy, in order.
        ops: What is computed again, in order.
        seconds: Time that it takes.
        gain: Bytes that do not wait any longer: the value's, less what is kept for the copy.
    """

    value: Value
    users: tuple[Op, ...]
    ops: tuple[Op, ...]
    seconds: float
    gain: int


def recomputations(land: Landscape, allowance: float) -> list[Recompute]:
    """Give what could be computed again within `allowance` seconds, the largest gain first."""
    found = []
    for op in land.ops:
        for value in op.results:
            if land.costs.nbytes(value) >= LARGE * land.peak and AGAIN not in op.metadata:
                again = _recompute(value, land, allowance)
                if again is not None:
                    found.append(again)
    return sorted(found, key=lambda a: (-a.gain, a.seconds, land.position[a.users[0]]))


def apply(again: Recompute) -> None:
    """Copy the ops before the first late user, and give it to the late users."""
    mapping: dict[Value, Value] = {}
    first = again.users[0]
    graph = first.graph
    assert graph is not None
    for op in again.ops:
        copy = clone_op(op, mapping)
        copy.name = ""
        copy.loc = op.loc.union(rule="recompute")
        copy.metadata[AGAIN] = "1"
        for result in copy.results:
            result.name = "" if result.omitted else graph.fresh_name(f"{result.name}_again")
        graph.insert_before(first, copy)
    late = set(again.users)
    again.value.replace_by(mapping[again.value], where=lambda op, _: op in late)


def _recompute(value: Value, land: Landscape, allowance: float) -> Recompute | None:
    maker = value.op
    assert maker is not None
    group = land.home.get(value)
    if group is None or len(land.layout.groups[group].values) > 1 or land.layout.groups[group].pinned:
        return None
    users = sorted({land.position.get(user, -1) for user in value.users})
    if len(users) < 2 or users[0] < 0:
        return None
    # What waits longest: the steps between two uses.
    places = list(itertools.pairwise(users))
    before, after = max(places, key=lambda p: p[1] - p[0])
    if max(land.curve[before + 1 : after], default=0) < HIGH * land.peak:
        return None
    late = tuple(land.ops[u] for u in users if u >= after)
    ops, kept = _chain(value, after, land)
    if not ops:
        return None
    seconds = sum(land.costs.seconds(op) + OVERHEAD for op in ops)
    gain = land.costs.nbytes(value) - kept
    if seconds > allowance or gain < LARGE * land.peak / 2:
        return None
    return Recompute(value, late, ops, seconds, gain)


def _chain(value: Value, place: int, land: Landscape) -> tuple[tuple[Op, ...], int]:
    """The ops that make a value from what is alive at a place, or small; and the bytes kept for them; none when that
    is too long or cannot be."""
    chosen: set[Op] = set()
    todo = [value.op]
    kept: dict[Value, int] = {}
    while todo:
        op = todo.pop()
        if op is None or op in chosen:
            continue
        if op.regions or MARK in op.metadata or not facts(op).pure or len(chosen) >= LONGEST:
            return (), 0
        chosen.add(op)
        for operand in op.operands:
            if operand.op is None or is_resident(operand.op) or _is_alive(operand, place, land):
                continue
            if land.costs.nbytes(operand) <= SMALLER * land.costs.nbytes(value):
                kept[operand] = land.costs.nbytes(operand)
            else:
                todo.append(operand.op)
    return _in_order(chosen, land), sum(kept.values())


def _in_order(ops: set[Op], land: Landscape) -> tuple[Op, ...]:
    places: Sequence[int] = sorted(land.position[op] for op in ops)
    return tuple(land.ops[p] for p in places)


def _is_alive(value: Value, place: int, land: Landscape) -> bool:
    group = land.home.get(value)
    return group is not None and (land.layout.groups[group].pinned or any(user >= place for user in land.users[group]))
