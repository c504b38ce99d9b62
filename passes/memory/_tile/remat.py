"""Rematerialisation: large, long-lived, cheap values are computed once more for their late uses.

The copy by itself saves nothing where it is used; together with the ops around it, it is then cut into tiles, and the
whole of it does not exist there either (compare "Training Deep Nets with Sublinear Memory Cost", Chen et al. 2016;
there for what the backward pass needs).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from memoptc.ir.core import Op, Value, clone_op
from memoptc.ir.ops import is_pure
from memoptc.passes.memory._tile.marks import REMATERIALISED, TILED
from memoptc.passes.memory._tile.memory_profile import OVERHEAD, MemoryProfile
from memoptc.runtime.memory.footprint import is_resident

LONGEST = 24
"""Most ops that are rematerialised for one value."""
LARGE = 0.05
"""Share of the peak that a value must have to be worth rematerialising."""
HIGH = 0.3
"""Share of the peak that must be alive during the value's longest gap between two uses."""
SMALLER = 0.5
"""Operands of the copy up to this share of the value's size are kept alive instead of being rematerialised, too."""


@dataclass(frozen=True)
class Remat:
    """A value to rematerialise for its late uses.

    Args:
        value: The value.
        users: The late uses, which get the copy, in order.
        ops: The ops to copy, in order.
        seconds: Time that it takes.
        gain: Bytes freed during the gap: the value's, less operands kept alive for the copy.
    """

    value: Value
    users: tuple[Op, ...]
    ops: tuple[Op, ...]
    seconds: float
    gain: int


def remat_candidates(profile: MemoryProfile, allowance: float) -> list[Remat]:
    """Give the values worth rematerialising within `allowance` seconds, the largest gain first."""
    found = []
    for op in profile.ops:
        for value in op.results:
            if profile.costs.nbytes(value) >= LARGE * profile.peak and REMATERIALISED not in op.metadata:
                remat = _candidate(value, profile, allowance)
                if remat is not None:
                    found.append(remat)
    return sorted(found, key=lambda a: (-a.gain, a.seconds, profile.position[a.users[0]]))


def rematerialise(remat: Remat) -> None:
    """Copy the ops before the first late use, and let the late uses read the copy."""
    mapping: dict[Value, Value] = {}
    first = remat.users[0]
    graph = first.graph
    assert graph is not None
    for op in remat.ops:
        copy = clone_op(op, mapping)
        copy.name = ""
        copy.loc = op.loc.union(rule="rematerialise")
        copy.metadata[REMATERIALISED] = "1"
        for result in copy.results:
            result.name = "" if result.omitted else graph.fresh_name(f"{result.name}_remat")
        graph.insert_before(first, copy)
    late = set(remat.users)
    remat.value.replace_by(mapping[remat.value], where=lambda op, _: op in late)


def _candidate(value: Value, profile: MemoryProfile, allowance: float) -> Remat | None:
    maker = value.op
    assert maker is not None
    group = profile.group_index.get(value)
    if group is None or len(profile.layout.groups[group].values) > 1 or profile.layout.groups[group].pinned:
        return None
    users = sorted({profile.position.get(user, -1) for user in value.users})
    if len(users) < 2 or users[0] < 0:
        return None
    # The longest gap between two uses.
    places = list(itertools.pairwise(users))
    before, after = max(places, key=lambda p: p[1] - p[0])
    if max(profile.curve[before + 1 : after], default=0) < HIGH * profile.peak:
        return None
    late = tuple(profile.ops[u] for u in users if u >= after)
    ops, kept = _chain(value, after, profile)
    if not ops:
        return None
    seconds = sum(profile.costs.seconds(op) + OVERHEAD for op in ops)
    gain = profile.costs.nbytes(value) - kept
    if seconds > allowance or gain < LARGE * profile.peak / 2:
        return None
    return Remat(value, late, ops, seconds, gain)


def _chain(value: Value, place: int, profile: MemoryProfile) -> tuple[tuple[Op, ...], int]:
    """The ops that make a value from what is alive at a place, or small; and the bytes kept for them; none when that
    is too long or cannot be."""
    chosen: set[Op] = set()
    todo = [value.op]
    kept: dict[Value, int] = {}
    while todo:
        op = todo.pop()
        if op is None or op in chosen:
            continue
        if op.regions or TILED in op.metadata or not is_pure(op) or len(chosen) >= LONGEST:
            return (), 0
        chosen.add(op)
        for operand in op.operands:
            if operand.op is None or is_resident(operand.op) or _is_alive(operand, place, profile):
                continue
            if profile.costs.nbytes(operand) <= SMALLER * profile.costs.nbytes(value):
                kept[operand] = profile.costs.nbytes(operand)
            else:
                todo.append(operand.op)
    return _in_order(chosen, profile), sum(kept.values())


def _in_order(ops: set[Op], profile: MemoryProfile) -> tuple[Op, ...]:
    places: Sequence[int] = sorted(profile.position[op] for op in ops)
    return tuple(profile.ops[p] for p in places)


def _is_alive(value: Value, place: int, profile: MemoryProfile) -> bool:
    group = profile.group_index.get(value)
    return group is not None and (
        profile.layout.groups[group].pinned or any(user >= place for user in profile.users[group])
    )
