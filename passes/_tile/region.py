"""Regions: connected ops that can be computed piece by piece along one axis each, and what enters and leaves them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Axis, iteration_space

MARK = "memoptc.tile"
"""Metadata of ops that are part of a piece: they are not cut again."""


class Spaces:
    """Iteration spaces of a graph's ops, each looked up once."""

    def __init__(self) -> None:
        self._known: dict[Op, list[Axis]] = {}

    def __getitem__(self, op: Op) -> list[Axis]:
        """The axes of an op; none for one that belongs to a piece already."""
        found = self._known.get(op)
        if found is None:
            found = self._known[op] = [] if MARK in op.metadata else iteration_space(op)
        return found


@dataclass
class Region:
    """Ops that are computed piece by piece.

    Args:
        ops: In the order in which they run.
        axes: Per op the axis along which it is cut.
        cut: Values made inside -> the axis along which they are cut.
        outputs: Values made inside that are used outside, in order.
        rates: Per op, how far one step of the region moves along its axis. Whole numbers.
    """

    ops: list[Op]
    axes: dict[Op, Axis]
    cut: dict[Value, int]
    outputs: list[Value]
    rates: dict[Op, int]

    @property
    def inside(self) -> set[Value]:
        """Values that are made inside and used nowhere else."""
        return set(self.cut) - set(self.outputs)


def grow(seed: Op, axis: Axis, allowed: Collection[Op], spaces: Spaces, position: Mapping[Op, int]) -> Region | None:
    """Grow a region from one op along its axis, through neighbours that can be cut at the same places.

    Args:
        seed: Where to begin.
        axis: Along which axis of the seed.
        allowed: Ops that may join.
        spaces: Iteration spaces.
        position: Place of each op in the order in which they run.

    Returns:
        The region, or `None` when nothing sound is left.
    """
    chosen = _convex(seed, _reach(seed, axis, allowed, spaces), position)
    if chosen is None:
        return None
    ops = sorted(chosen, key=position.__getitem__)
    cut: dict[Value, int] = {}
    outputs = []
    for op in ops:
        for result, place in zip(op.results, chosen[op].results, strict=True):
            if result.omitted or not result.has_uses:
                continue
            if place is None:
                return None
            cut[result] = place
            if any(user not in chosen for user, _ in result.uses):
                outputs.append(result)
    rates = _rates(ops, chosen)
    return None if rates is None or not outputs else Region(ops, chosen, cut, outputs, rates)


def _reach(seed: Op, axis: Axis, allowed: Collection[Op], spaces: Spaces) -> dict[Op, Axis]:
    chosen = {seed: axis}
    places: dict[Value, int] = {r: a for r, a in zip(seed.results, axis.results, strict=True) if a is not None}
    todo = [seed]
    while todo:
        op = todo.pop()
        for operand, along in zip(op.operands, chosen[op].operands, strict=True):
            producer = operand.op
            if along is not None and producer is not None and producer in allowed and producer not in chosen:
                index = producer.results.index(operand)
                found = [a for a in spaces[producer] if a.results[index] == along.axis]
                _join(producer, found, chosen, places, todo)
        for result, place in zip(op.results, chosen[op].results, strict=True):
            if place is None:
                continue
            for user, index in result.uses:
                if user in allowed and user not in chosen:
                    found = [a for a in spaces[user] if (p := a.operands[index]) is not None and p.axis == place]
                    _join(user, found, chosen, places, todo)
    return chosen


def _join(op: Op, axes: Sequence[Axis], chosen: dict[Op, Axis], places: dict[Value, int], todo: list[Op]) -> None:
    """Take an op in along the first axis that fits everything taken in before."""
    for axis in axes:
        if _fits(op, axis, chosen, places):
            chosen[op] = axis
            places.update((r, a) for r, a in zip(op.results, axis.results, strict=True) if a is not None)
            todo.append(op)
            return


def _fits(op: Op, axis: Axis, chosen: Mapping[Op, Axis], places: Mapping[Value, int]) -> bool:
    for operand, along in zip(op.operands, axis.operands, strict=True):
        place = places.get(operand)
        if place is not None and (along is None or along.axis != place):
            return False
    for result, place in zip(op.results, axis.results, strict=True):
        for user, index in result.uses:
            if user in chosen:
                need = chosen[user].operands[index]
                if place is None or need is None or need.axis != place:
                    return False
    return True


def _convex(seed: Op, chosen: dict[Op, Axis], position: Mapping[Op, int]) -> dict[Op, Axis] | None:
    """Leave ops out until nothing outside the region lies between two of its ops."""
    while True:
        first, last = min(position[op] for op in chosen), max(position[op] for op in chosen)
        behind: set[Op] = set()
        todo = [user for op in chosen for r in op.results for user in _users(r) if user not in chosen]
        while todo:
            op = todo.pop()
            if op in behind or not first <= position.get(op, last + 1) <= last:
                continue
            behind.add(op)
            todo.extend(user for r in op.results for user in _users(r))
        back = behind & set(chosen)
        if not back:
            return chosen
        if seed in back:
            # What the seed needs through the outside goes instead: all that such a path begins at.
            back = _ancestors_through(behind - set(chosen), chosen)
            if seed in back or not back:
                return None
        kept = {op: axis for op, axis in chosen.items() if op not in back}
        chosen = _connected(seed, kept)


def _users(value: Value) -> list[Op]:
    """Ops of the same graph that use a value, those included whose regions do."""
    found = []
    for op in value.users:
        graph = op.graph
        while graph is not None and graph is not value.graph and graph.parent is not None:
            op, graph = graph.parent, graph.parent.graph
        found.append(op)
    return found


def _ancestors_through(outside: set[Op], chosen: Mapping[Op, Axis]) -> set[Op]:
    found: set[Op] = set()
    todo = list(outside)
    seen = set(todo)
    while todo:
        for operand in todo.pop().operands:
            op = operand.op
            if op is None or op in seen:
                continue
            seen.add(op)
            if op in chosen:
                found.add(op)
                todo.append(op)
            elif op in outside:
                todo.append(op)
    return found


def _connected(seed: Op, chosen: dict[Op, Axis]) -> dict[Op, Axis]:
    reached = {seed}
    todo = [seed]
    while todo:
        op = todo.pop()
        near = [v.op for v, a in zip(op.operands, chosen[op].operands, strict=True) if a is not None]
        near += [user for r in op.results for user in r.users]
        for other in near:
            if other is not None and other in chosen and other not in reached:
                reached.add(other)
                todo.append(other)
    return {op: axis for op, axis in chosen.items() if op in reached}


def _rates(ops: Sequence[Op], axes: Mapping[Op, Axis]) -> dict[Op, int] | None:
    """How fast each op's axis moves, relative to the others; `None` when they cannot move together."""
    found: dict[Op, Fraction] = {}
    inside = set(ops)
    for start in ops:
        if start in found:
            continue
        if found:
            return None  # two parts that share nothing
        found[start] = Fraction(1)
        todo = [start]
        while todo:
            op = todo.pop()
            for other, rate in _neighbours(op, found[op], axes, inside):
                if other not in found:
                    found[other] = rate
                    todo.append(other)
                elif found[other] != rate:
                    return None
    scale = lcm(*(r.denominator for r in found.values()))
    for op, rate in found.items():
        whole = int(rate * scale)
        wanted = axes[op].grain
        for along in axes[op].operands:
            if along is not None and (whole * along.stride) % along.per:
                wanted = lcm(wanted, along.per)
        if whole % wanted:
            scale *= wanted // _gcd(whole, wanted)
    return {op: int(rate * scale) for op, rate in found.items()}


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


def _neighbours(op: Op, rate: Fraction, axes: Mapping[Op, Axis], inside: set[Op]) -> list[tuple[Op, Fraction]]:
    found = []
    for operand, along in zip(op.operands, axes[op].operands, strict=True):
        if along is not None and operand.op in inside and operand.op is not None:
            found.append((operand.op, rate * along.stride / along.per))
    for result in op.results:
        for user, index in result.uses:
            if user in inside:
                along = axes[user].operands[index]
                if along is not None:
                    found.append((user, rate * along.per / along.stride))
    return found
