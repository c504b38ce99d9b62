"""Regions: connected ops that are tiled together along one axis each, with their inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm

from memoptc.ir.core import Op, Value
from memoptc.ir.infer import PIECES
from memoptc.ir.iteration import Axis, Form, accumulations, iteration_space, weights_axis
from memoptc.runtime.memory.footprint import used_values
from memoptc.runtime.memory.loading import further_copy_bytes

MARK = PIECES
"""Metadata of ops that are part of a tile: they are not cut again."""

REMATERIALISED = "memoptc.remat"
"""Metadata of ops that are rematerialised: copies of other ops."""


class Spaces:
    """Iteration spaces of a graph's ops, each looked up once."""

    def __init__(self) -> None:
        self._known: dict[Op, list[Axis]] = {}
        self._sums: dict[Op, list[Axis]] = {}
        self._every: dict[Op, list[Axis]] = {}

    def __getitem__(self, op: Op) -> list[Axis]:
        """The axes of an op; none for one that belongs to a tile already, or is computed when the model is loaded."""
        found = self._known.get(op)
        if found is None:
            found = self._known[op] = [] if _is_settled(op) else iteration_space(op)
        return found

    def sums(self, op: Op) -> list[Axis]:
        """The axes of known extent that an op accumulates along."""
        found = self._sums.get(op)
        if found is None:
            found = [] if _is_settled(op) else accumulations(op)
            found = self._sums[op] = [axis for axis in found if _has_known_extent(op, axis)]
        return found

    def every(self, op: Op) -> list[Axis]:
        """All axes of an op, those along which it is cut only together with what uses its result included."""
        found = self._every.get(op)
        if found is None:
            weights = None if _is_settled(op) else weights_axis(op)
            own = [weights] if weights is not None and _has_known_extent(op, weights) else []
            found = self._every[op] = [*self[op], *own, *self.sums(op)]
        return found


def _has_known_extent(op: Op, axis: Axis) -> bool:
    shapes = [(v.shape, a.axis) for v, a in zip(op.operands, axis.operands, strict=True) if a is not None]
    return all(shape is not None and isinstance(shape[place], int) for shape, place in shapes)


def _is_settled(op: Op) -> bool:
    return MARK in op.metadata or all(v.tensor is not None or v.is_absent for v in op.operands)


@dataclass
class Region:
    """Ops that are computed tile by tile.

    Args:
        ops: In the order in which they run.
        axes: Per op the axis along which it is cut.
        cut: Values made inside -> the axis along which they are cut.
        outputs: Values made inside that are used outside, in order: those that are cut, and those of ops that
            accumulate along their axis, which nothing inside depends on.
    """

    ops: list[Op]
    axes: dict[Op, Axis]
    cut: dict[Value, int]
    outputs: list[Value]

    @cached_property
    def rates(self) -> dict[Op, int] | None:
        """Per op, how far one step of the region moves along its axis, in whole numbers; `None` when ops cannot move
        together."""
        return _rates(self.ops, self.axes)

    @cached_property
    def identity(self) -> object:
        """What tells the region from others of the same model, also when another graph holds copies of its ops.

        Names of its ops, their axes, and how the ops around use what crosses its border.
        """
        outside = [v.op for op in self.ops for v in op.operands if v not in self.cut]
        return (
            tuple((op.results[0].name, self.axes[op].cuts) for op in self.ops),
            tuple(None if op is None else op.op_type for op in outside),
            tuple((v.name, tuple((u.op_type, u in self.axes) for u, _ in v.uses)) for v in self.outputs),
        )

    @cached_property
    def is_symbolic(self) -> bool:
        """True if an extent that is cut is known at run time only: the tiles then stand in a branch of an If."""
        return any(
            along is not None and shape is not None and not isinstance(shape[along.axis], int)
            for op in self.ops
            for operand, along in zip(op.operands, self.axes[op].operands, strict=True)
            for shape in [getattr(operand.type, "shape", None)]
        )

    @cached_property
    def copied_bytes(self) -> int:
        """Bytes of weights that a session packs once more for each further tile."""
        return sum(
            further_copy_bytes(op, [i for i, along in enumerate(self.axes[op].operands) if along is not None])
            for op in self.ops
        )

    def rate(self, op: Op) -> int:
        """Elements of an op's axis per element of the region's."""
        assert self.rates is not None
        return self.rates[op]

    def partitioned_operand(self, output: Value) -> tuple[Value, int]:
        """The value that is partitioned where an output's op is, and its axis: an operand, if the op accumulates."""
        if output in self.cut:
            return output, self.cut[output]
        op = output.op
        assert op is not None
        return next((v, a.axis) for v, a in zip(op.operands, self.axes[op].operands, strict=True) if a is not None)


class Between:
    """Ops that lie between others: paths among a stretch of ops, as bit masks.

    Args:
        ops: The stretch, in the order in which they run.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.place = {op: i for i, op in enumerate(ops)}
        self.before = [0] * len(ops)
        self.behind = [0] * len(ops)
        for i, op in enumerate(ops):
            for need in {self.place[v.op] for v in used_values(op) if v.op in self.place}:
                self.before[i] |= self.before[need] | (1 << need)
        for i in range(len(ops) - 1, -1, -1):
            mask = self.before[i]
            bit = self.behind[i] | (1 << i)
            while mask:
                low = mask & -mask
                self.behind[low.bit_length() - 1] |= bit
                mask ^= low

    def mask(self, ops: Iterable[Op]) -> int:
        """Ops as a mask."""
        found = 0
        for op in ops:
            found |= 1 << self.place[op]
        return found

    def members(self, mask: int) -> list[int]:
        """Places in a mask."""
        found = []
        while mask:
            low = mask & -mask
            found.append(low.bit_length() - 1)
            mask ^= low
        return found

    def joined(self, masks: Sequence[int], places: Iterable[int]) -> int:
        """Everything before, or behind, any of these."""
        found = 0
        for place in places:
            found |= masks[place]
        return found


class Growth:
    """Regions grown from one op along one of its axes, within one stretch after another.

    Args:
        seed: Where to begin.
        axis: Along which axis of the seed.
        spaces: Iteration spaces.
        between: Paths among the ops.
    """

    def __init__(self, seed: Op, axis: Axis, spaces: Spaces, between: Between) -> None:
        self._seed, self._axis, self._spaces, self._between = seed, axis, spaces, between
        self._known: list[_Grown] = []
        self._free: _Reached | None = None

    def within(self, first: int, last: int) -> Region | None:
        """Grow a region through neighbours that can be cut at the same places.

        Args:
            first: First op of the stretch that may join, counted within the stretch that `between` knows.
            last: Last op that may join.

        Returns:
            The region, or `None` when nothing sound is left. What was grown within a larger stretch and lies within
            this one is given again: what a border kept out there was no part of it either.
        """
        for known in self._known:
            if known.first <= first <= known.lowest and known.highest <= last <= known.last:
                return known.region
        reached = self._reached(range(first, last + 1))
        places = [self._between.place[op] for op in reached]
        region = _region(self._seed, reached, self._spaces, self._between)
        self._known.append(_Grown(first, last, min(places), max(places), region))
        return region

    def _reached(self, stretch: range) -> dict[Op, Axis]:
        """Ops of a stretch that are reached; a part of those of a larger one that was reached without a choice."""
        free, place = self._free, self._between.place
        if free is not None and free.stretch[0] <= stretch[0] and stretch[-1] <= free.stretch[-1]:
            return free.within(self._seed, stretch, place)
        reached = _reach(self._seed, self._axis, place, stretch, self._spaces)
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


def _region(seed: Op, reached: dict[Op, Axis], spaces: Spaces, between: Between) -> Region | None:
    """Make a region of the ops that growing reached; `None` when nothing sound is left."""
    chosen = _convex(seed, reached, between)
    if chosen is None:
        return None
    _take_codes(chosen, between, spaces)
    ops = sorted(chosen, key=between.place.__getitem__)
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


def _take_codes(chosen: dict[Op, Axis], between: Between, spaces: Spaces) -> None:
    """Take in what codes and decodes at the region's borders, so that what crosses them is codes, not floats."""
    for op in list(chosen):
        for operand, along in zip(op.operands, chosen[op].operands, strict=True):
            maker = operand.op
            if along is None or maker is None or maker in chosen or maker not in between.place:
                continue
            if maker.key == "DequantizeLinear" and maker.operands[0].tensor is None:
                found = [a for a in spaces[maker] if a.results[0] == along.axis]
                if found and all(u in chosen and _needs(u, i, chosen) == along.axis for u, i in operand.uses):
                    chosen[maker] = found[0]
        for result, place in zip(op.results, chosen[op].results, strict=True):
            if place is not None:
                chosen.update(_until_quantized(result, place, chosen, between, spaces))


def _until_quantized(
    value: Value, place: int, chosen: Mapping[Op, Axis], between: Between, spaces: Spaces
) -> dict[Op, Axis]:
    """The activation and the QuantizeLinear that an integer kernel computes as part of the op before them."""
    found: dict[Op, Axis] = {}
    while value.single_use:
        ((user, _),) = value.uses
        known = user.key == "QuantizeLinear" or user.key in ("Relu", "Clip")
        axes = [a for a in spaces[user] if a.results[0] == place] if known and user in between.place else []
        if not axes or user in chosen:
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
        stretch: Places that it stayed in.
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

    def within(self, seed: Op, stretch: range, place: Mapping[Op, int]) -> dict[Op, Axis]:
        """Give what hangs together with an op in a smaller stretch."""
        reached = {seed: self.axes[seed]}
        todo = [seed]
        while todo:
            for other in self.near[todo.pop()]:
                if other not in reached and place[other] in stretch:
                    reached[other] = self.axes[other]
                    todo.append(other)
        return reached


def _reach(seed: Op, axis: Axis, place: Mapping[Op, int], stretch: range, spaces: Spaces) -> _Reached:
    """Go from op to op, along values that are cut, as far as places in a stretch are not left."""
    chosen = {seed: axis}
    places: dict[Value, int] = {r: a for r, a in zip(seed.results, axis.results, strict=True) if a is not None}
    todo, free = [seed], True
    while todo:
        op = todo.pop()
        for operand, along in zip(op.operands, chosen[op].operands, strict=True):
            if along is None or (producer := operand.op) is None or producer in chosen:
                continue
            if place.get(producer, -1) in stretch:
                index = producer.results.index(operand)
                found = [a for a in spaces.every(producer) if a.results[index] == along.axis]
                free &= _join(producer, found, chosen, places, todo)
        for result, where in zip(op.results, chosen[op].results, strict=True):
            if where is None:
                continue
            for user, index in result.uses:
                if user not in chosen and place.get(user, -1) in stretch:
                    every = spaces.every(user)
                    found = [a for a in every if (p := a.operands[index]) is not None and p.axis == where]
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


def _convex(seed: Op, chosen: dict[Op, Axis], between: Between) -> dict[Op, Axis] | None:
    """Leave ops out until nothing outside the region lies between two of its ops."""
    while True:
        chosen = _ending(seed, chosen, between)
        if seed not in chosen:
            return None
        mask = between.mask(chosen)
        places = between.members(mask)
        outside = between.joined(between.behind, places) & between.joined(between.before, places) & ~mask
        if not outside:
            return chosen
        through = between.members(outside)
        back = between.joined(between.behind, through) & mask
        if back >> between.place[seed] & 1:
            # What the seed needs through the outside goes instead: all that such a path begins at.
            back = between.joined(between.before, through) & mask
            if back >> between.place[seed] & 1:
                return None
        gone = {between.ops[i] for i in between.members(back)}
        chosen = _connected(seed, {op: axis for op, axis in chosen.items() if op not in gone})


def _ending(seed: Op, chosen: dict[Op, Axis], between: Between) -> dict[Op, Axis]:
    """Leave out what accumulates if something in the region depends on it: that is there after the last tile only.
    Leave out what makes a softmax's own axis if the sums over it are not in the region."""
    mask = between.mask(chosen)
    gone = set()
    for op, axis in chosen.items():
        if axis.join is not None and (behind := between.behind[between.place[op]] & mask):
            gone |= {between.ops[i] for i in between.members(behind)} if op is seed else {op}
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
        near += [user for r in op.results for user in r.users]
        for other in near:
            if other is not None and other in chosen and other not in reached:
                reached.add(other)
                todo.append(other)
    return {op: axis for op, axis in chosen.items() if op in reached}


def _rates(ops: Sequence[Op], axes: Mapping[Op, Axis]) -> dict[Op, int] | None:
    """Rates at which the ops' axes move, relative to each other; `None` when they cannot move together."""
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
                elif found[other] is not rate and found[other] != rate:
                    return None
    scale = lcm(*(r.denominator for r in found.values()))
    for op, rate in found.items():
        whole = rate.numerator * scale // rate.denominator
        wanted = axes[op].grain
        for along in axes[op].operands:
            if along is not None and (whole * along.stride) % along.per:
                wanted = lcm(wanted, along.per)
        if whole % wanted:
            scale *= wanted // gcd(whole, wanted)
    return {op: rate.numerator * scale // rate.denominator for op, rate in found.items()}


def _neighbours(op: Op, rate: Fraction, axes: Mapping[Op, Axis], inside: set[Op]) -> list[tuple[Op, Fraction]]:
    found = []
    for operand, along in zip(op.operands, axes[op].operands, strict=True):
        if along is not None and operand.op in inside and operand.op is not None:
            found.append((operand.op, _times(rate, along.stride, along.per)))
    for result in op.results:
        for user, index in result.uses:
            if user in inside:
                along = axes[user].operands[index]
                if along is not None:
                    found.append((user, _times(rate, along.per, along.stride)))
    return found


def _times(rate: Fraction, up: int, down: int) -> Fraction:
    return rate if up == down else rate * Fraction(up, down)  # most axes move alike, and fractions are slow
