"""Regions grown from one op to its neighbours, as far as all of them can be cut at the same places.

A region is convex: no path leaves it and comes back, or its ops could not run tile by tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from memoptc.ir.core import Op, Value
from memoptc.ir.iteration import Axis, Form
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.reachability import Reachability
from memoptc.passes.memory._tile.region import Region
from memoptc.passes.simplify._simplify.slice_ranges import may_be_sliced


class Growth:
    """Regions grown from one op along one of its axes, within one stretch after another.

    Args:
        seed: Where to begin.
        axis: Along which axis of the seed.
        spaces: Iteration spaces.
        reach: Which op of the whole stretch depends on which.
    """

    def __init__(self, seed: Op, axis: Axis, spaces: IterationSpaces, reach: Reachability) -> None:
        self._seed, self._axis, self._spaces, self._reach = seed, axis, spaces, reach
        self._known: list[_Grown] = []
        self._free: _Reached | None = None
        self._coded: dict[Op, bool] = {}

    def within(self, first: int, last: int) -> Region | None:
        """Grow a region through neighbours that can be cut at the same places.

        Args:
            first: First op of the stretch that may join, counted within the stretch that `reach` covers.
            last: Last op that may join.

        Returns:
            The region, or `None` when nothing sound is left. What was grown within a larger stretch and lies within
            this one is given again: what a border kept out there was no part of it either.
        """
        for known in self._known:
            if known.first <= first <= known.lowest and known.highest <= last <= known.last:
                return known.region
        reached = self._reached(range(first, last + 1))
        indices = [self._reach.index[op] for op in reached]
        region = _region(self._seed, reached, self._spaces, self._reach, self._coded)
        self._known.append(_Grown(first, last, min(indices), max(indices), region))
        return region

    def _reached(self, stretch: range) -> dict[Op, Axis]:
        """Ops of a stretch that are reached; a part of those of a larger one that was reached without a choice."""
        free, index = self._free, self._reach.index
        if free is not None and free.stretch[0] <= stretch[0] and stretch[-1] <= free.stretch[-1]:
            return free.within(self._seed, stretch, index)
        reached = _propagate(self._seed, self._axis, index, stretch, self._spaces)
        if reached.free and free is None:
            self._free = reached
        return reached.axes


@dataclass(frozen=True)
class _Grown:
    """Largest region that growing within a stretch reached, and what became of it."""

    first: int
    last: int
    lowest: int
    highest: int
    region: Region | None


def _region(
    seed: Op, reached: dict[Op, Axis], spaces: IterationSpaces, reach: Reachability, coded: dict[Op, bool]
) -> Region | None:
    """Make a region of the ops that growing reached; `None` when nothing sound is left. `coded` keeps which ops codes
    are made for or from."""
    chosen = _convex(seed, reached, reach)
    if chosen is None:
        return None
    _take_codes(chosen, reach, spaces, coded)
    ops = sorted(chosen, key=reach.index.__getitem__)
    cut: dict[Value, int] = {}
    outputs = []
    for op in ops:
        for result, place in zip(op.results, chosen[op].results, strict=True):
            if result.omitted or not result.has_uses:
                continue
            if place is None:
                if chosen[op].join is None:
                    return None
                outputs.append(result)
                continue
            cut[result] = place
            if any(user not in chosen for user, _ in result.uses):
                outputs.append(result)
    return Region(ops, chosen, cut, outputs) if outputs else None


def _take_codes(chosen: dict[Op, Axis], reach: Reachability, spaces: IterationSpaces, coded: dict[Op, bool]) -> None:
    """Take in what codes and decodes at the region's borders, so that what crosses them is codes, not floats."""
    for op in list(chosen):
        if op not in coded:
            decodes = any(_decoder(v, reach) is not None for v in op.operands)
            coded[op] = decodes or any(r.single_use and _ends_a_kernel(r.users[0]) for r in op.results)
        if not coded[op]:
            continue
        for operand, along in zip(op.operands, chosen[op].operands, strict=True):
            maker = None if along is None or operand.op in chosen else _decoder(operand, reach)
            if maker is not None and along is not None:
                found = [a for a in spaces[maker] if a.results[0] == along.axis]
                if found and all(u in chosen and _needs(u, i, chosen) == along.axis for u, i in operand.uses):
                    chosen[maker] = found[0]
        for result, place in zip(op.results, chosen[op].results, strict=True):
            if place is not None:
                chosen.update(_until_quantized(result, place, chosen, reach, spaces))


def _decoder(operand: Value, reach: Reachability) -> Op | None:
    """The op of the stretch that decodes an operand from codes that may be sliced."""
    maker = operand.op
    if maker is None or maker not in reach.index or maker.key != "DequantizeLinear":
        return None
    codes = maker.operands[0]
    return maker if codes.tensor is None and may_be_sliced(codes) else None


def _ends_a_kernel(op: Op) -> bool:
    """True for what an integer kernel may compute as part of the op before it."""
    return op.key == "QuantizeLinear" or op.key in ("Relu", "Clip")


def _until_quantized(
    value: Value, place: int, chosen: Mapping[Op, Axis], reach: Reachability, spaces: IterationSpaces
) -> dict[Op, Axis]:
    """The activation and the QuantizeLinear that an integer kernel computes as part of the op before them."""
    found: dict[Op, Axis] = {}
    while value.single_use:
        ((user, _),) = value.uses
        known = _ends_a_kernel(user)
        # a scale that is computed may need what the region makes: then that would no longer be convex
        fixed = known and all(v.is_absent or v.tensor is not None for v in user.operands[1:])
        axes = [a for a in spaces[user] if a.results[0] == place] if fixed and user in reach.index else []
        if not axes or user in chosen or not may_be_sliced(user.results[0]):
            return {}
        found[user] = axes[0]
        if user.key == "QuantizeLinear":
            return found
        value = user.results[0]
    return {}


def _needs(op: Op, index: int, chosen: Mapping[Op, Axis]) -> int | None:
    along = chosen[op].operands[index]
    return None if along is None else along.axis


@dataclass(frozen=True)
class _Reached:
    """Ops that growing within a stretch reached.

    Args:
        stretch: Indices of the ops that it stayed among.
        axes: The ops, and the axis along which each is cut.
        free: Whether each op could be taken in, along one axis only, when it was reached. Then nothing depends on the
            way there: what growing reaches within a smaller stretch is what hangs together of these ops.
    """

    stretch: range
    axes: dict[Op, Axis]
    free: bool

    @cached_property
    def near(self) -> dict[Op, list[Op]]:
        """Per op those that growing goes on to from there."""
        found: dict[Op, list[Op]] = {op: [] for op in self.axes}
        for op in self.axes:
            for operand, along in zip(op.operands, self.axes[op].operands, strict=True):
                maker = operand.op
                if along is None or maker is None or maker not in found:
                    continue
                if self.axes[maker].results[maker.results.index(operand)] is not None:
                    found[op].append(maker)
                    found[maker].append(op)
        return found

    def within(self, seed: Op, stretch: range, index: Mapping[Op, int]) -> dict[Op, Axis]:
        """Give what hangs together with an op in a smaller stretch."""
        reached = {seed: self.axes[seed]}
        todo = [seed]
        while todo:
            for other in self.near[todo.pop()]:
                if other not in reached and index[other] in stretch:
                    reached[other] = self.axes[other]
                    todo.append(other)
        return reached


def _propagate(seed: Op, axis: Axis, index: Mapping[Op, int], stretch: range, spaces: IterationSpaces) -> _Reached:
    """Propagate an axis from its seed to producers and users of tiled values, within a stretch of steps."""
    chosen = {seed: axis}
    places: dict[Value, int] = {r: a for r, a in zip(seed.results, axis.results, strict=True) if a is not None}
    todo, free = [seed], True
    while todo:
        op = todo.pop()
        for operand, along in zip(op.operands, chosen[op].operands, strict=True):
            if along is None or (producer := operand.op) is None or producer in chosen:
                continue
            if index.get(producer, -1) in stretch:
                which = producer.results.index(operand)
                found = [a for a in spaces.every(producer) if a.results[which] == along.axis]
                free &= _join(producer, found, chosen, places, todo)
        for result, where in zip(op.results, chosen[op].results, strict=True):
            if where is None:
                continue
            for user, which in result.uses:
                if user not in chosen and index.get(user, -1) in stretch:
                    every = spaces.every(user)
                    found = [a for a in every if (p := a.operands[which]) is not None and p.axis == where]
                    free &= _join(user, found, chosen, places, todo)
    return _Reached(stretch, chosen, free)


def _join(op: Op, axes: Sequence[Axis], chosen: dict[Op, Axis], places: dict[Value, int], todo: list[Op]) -> bool:
    """Take an op in along the first axis that fits everything taken in before; give whether nothing was to choose."""
    for axis in axes:
        if _fits(op, axis, chosen, places):
            chosen[op] = axis
            places.update((r, a) for r, a in zip(op.results, axis.results, strict=True) if a is not None)
            todo.append(op)
            return len(axes) == 1
    return not axes


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


def _convex(seed: Op, chosen: dict[Op, Axis], reach: Reachability) -> dict[Op, Axis] | None:
    """Leave ops out until nothing outside the region lies reach two of its ops."""
    while True:
        chosen = _ending(seed, chosen, reach)
        if seed not in chosen:
            return None
        mask = reach.mask(chosen)
        places = reach.indices(mask)
        outside = reach.union(reach.descendants, places) & reach.union(reach.ancestors, places) & ~mask
        if not outside:
            return chosen
        through = reach.indices(outside)
        back = reach.union(reach.descendants, through) & mask
        if back >> reach.index[seed] & 1:
            # What the seed needs through the outside goes instead: all that such a path begins at.
            back = reach.union(reach.ancestors, through) & mask
            if back >> reach.index[seed] & 1:
                return None
        gone = {reach.ops[i] for i in reach.indices(back)}
        chosen = _connected(seed, {op: axis for op, axis in chosen.items() if op not in gone})


def _ending(seed: Op, chosen: dict[Op, Axis], reach: Reachability) -> dict[Op, Axis]:
    """Leave out what accumulates if something in the region depends on it: that is there after the last tile only.
    Leave out what makes a softmax's own axis if the sums over it are not in the region."""
    mask = reach.mask(chosen)
    gone = set()
    for op, axis in chosen.items():
        if axis.join is not None and (behind := reach.descendants[reach.index[op]] & mask):
            gone |= {reach.ops[i] for i in reach.indices(behind)} if op is seed else {op}
    for op, axis in chosen.items():
        if axis.form is Form.EXPONENTIALS:
            ((user, _),) = op.result.uses
            if user not in chosen or user in gone or chosen[user].join is None:
                if op is seed:
                    return {}
                gone.add(op)
    return _connected(seed, {op: axis for op, axis in chosen.items() if op not in gone}) if gone else chosen


def _connected(seed: Op, chosen: dict[Op, Axis]) -> dict[Op, Axis]:
    reached = {seed}
    todo = [seed]
    while todo:
        op = todo.pop()
        near = [v.op for v, a in zip(op.operands, chosen[op].operands, strict=True) if a is not None]
        near += [user for r in op.results for user, _ in r.uses]
        for other in near:
            if other in chosen and other not in reached:
                reached.add(other)
                todo.append(other)
    return {op: axis for op, axis in chosen.items() if op in reached}
