"""Placement in several memories at least cost of accesses and moves.

Two questions are taken in turn. *Which space, when*: each buffer in turn gets the cheapest way through the spaces over
its life, given the room that the others leave. That is a shortest path over (time, space), found by dynamic
programming; spills and prefetches are its edges. Buffers are served in order of what a byte of fast memory saves per
step, a greedy rule for the unsplittable flow problem on a path (Bansal, Friggstad, Khandekar and Salavatipour, "A
Logarithmic Approximation for Unsplittable Flow on Line Graphs", 2014); then a few that compete are taken out and served
again in another order, and whatever is no worse is kept (Shaw, "Using Constraint Programming and Local Search Methods
to Solve Vehicle Routing Problems", 1998). *At which offset*: `allocate` places what each space holds; where it does not
fit for holes, the stay whose owner loses least goes elsewhere, and the first question is asked again for that buffer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

import numpy as np

from memoptc.ir.diagnostics import BudgetError, InputError
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.memory.problem import Problem
from memoptc.runtime.memory.spaces import (
    Space,
    SpacedPlan,
    SpacedProblem,
    Stay,
    check_spaces,
    moves_between,
    pieces,
)

EFFORT = 300_000
"""Steps of ways looked at while buffers compete, by default: about a second."""

_QUICK, _THOROUGH = 1_000, 5_000
"""Effort of `allocate` for a bounded space: while buffers must leave it, and when one wants to return."""

_PATIENCE = 5
"""Placements of a space that may fail before more buffers leave at a time."""

_RETURNS = 10
"""How many buffers may try to return."""

_ENDLESS = 1 << 62
_RESTARTS = 100
_MOST_RIVALS = 6
_SURRENDER = 1_000
"""Attempts in a row without a gain after which the search ends."""

Way: TypeAlias = tuple[int, ...]
"""The space of a buffer in each slot of its life."""

Ban: TypeAlias = tuple[int, int, int]
"""A space that a buffer must not be in, from a slot to the one before another."""


def allocate_spaces(
    problem: SpacedProblem, spaces: Sequence[Space], *, effort: int = EFFORT, seed: int = 0
) -> SpacedPlan:
    """Place buffers in several memories so that accesses and moves cost little.

    Args:
        problem: Buffers and their accesses.
        spaces: The memories, in any order.
        effort: How many steps of ways may be looked at in the search; the first placement costs what it costs.
        seed: Of the search.

    Returns:
        A checked plan.

    Raises:
        InputError: there is no space.
        BudgetError: no placement was found: the spaces are too small.
    """
    if not spaces:
        raise InputError("There is no space to place buffers in.")
    spread = _Spread(problem, spaces)
    spread.serve_all()
    served = list(zip(spread.ways, spread.paid, strict=True))
    plan = spread.plan()
    # The search does not know of holes: it begins from what was served, not from what holes have made of it.
    spread.restore(served)
    if spread.compete(effort, random.Random(seed)):
        plan = min(plan, spread.plan(), key=lambda p: p.cost)
    check_spaces(plan)
    return plan


class _Spread:
    """The way of every buffer, and the room that is left.

    Time is cut into *slots*, at whose beginnings alone anything changes: births, deaths, accesses and the steps after
    accesses. A slot j has two moments as in `pieces`: 2j, the moves at its beginning, and 2j + 1, what runs in it.
    """

    def __init__(self, problem: SpacedProblem, spaces: Sequence[Space]) -> None:
        self.problem, self.spaces = problem, tuple(spaces)
        self.costs = [s.cost_per_byte for s in spaces]
        # Of ways that cost the same, the one that leaves the scarce spaces soonest.
        by_cost = sorted(range(len(spaces)), key=lambda s: (-self.costs[s], s))
        self.scarcity = [by_cost.index(s) for s in range(len(spaces))]
        steps = {b.first for b in problem.buffers} | {b.last + 1 for b in problem.buffers}
        steps |= {a.step + more for row in problem.accesses for a in row for more in (0, 1)}
        self.times = sorted(steps)
        slot = {step: j for j, step in enumerate(self.times)}
        self.first = [slot[b.first] for b in problem.buffers]
        self.stop = [slot[b.last + 1] for b in problem.buffers]
        self.bytes: list[dict[int, int]] = []
        for row in problem.accesses:
            found: dict[int, int] = {}
            for access in row:
                found[slot[access.step]] = found.get(slot[access.step], 0) + access.bytes
            self.bytes.append(found)
        sizes = [_ENDLESS if s.size is None else s.size for s in spaces]
        self.room = np.repeat(np.array(sizes, np.int64)[:, None], 2 * len(self.times), axis=1)
        self.ways: list[Way | None] = [None] * len(problem.buffers)
        self.paid = [0.0] * len(problem.buffers)
        self.banned: dict[int, list[Ban]] = {}
        self.looks = 0

    def plan(self) -> SpacedPlan:
        """Find offsets, changing ways where they must; the plan."""
        stays = self.stays(self.pack())
        return SpacedPlan(self.problem, self.spaces, stays, moves_between(self.problem, stays))

    def restore(self, served: Sequence[tuple[Way | None, float]]) -> None:
        """Forget what holes have changed."""
        self.banned.clear()
        for index in range(len(self.ways)):
            self.clear(index)
        for index, (way, paid) in enumerate(served):
            if way is not None:
                self.take(index, way, paid)

    def serve_all(self) -> None:
        """Serve every buffer, the one that gains most from a byte of the best space first."""
        span = max(self.costs) - min(self.costs)

        def density(i: int) -> float:
            return span * sum(self.bytes[i].values()) / (self.problem.buffers[i].size * (self.stop[i] - self.first[i]))

        order = sorted(range(len(self.ways)), key=lambda i: (-density(i), i))
        for _ in range(_RESTARTS):
            failed = self.serve(order)
            if failed is None:
                return
            for index in order:
                self.clear(index)
            # Whoever found no room comes first next time.
            order.remove(failed)
            order.insert(0, failed)
        b = self.problem.buffers[order[0]]
        raise BudgetError(
            f"Buffer {b.name!r}, {b.size} bytes from step {b.first} to {b.last}, finds no room in any space.",
            hint="Give a larger space, or one without a size.",
        )

    def serve(self, order: Iterable[int]) -> int | None:
        """Serve some buffers in order; the first that finds no way is returned."""
        for index in order:
            found = self.way(index)
            if found is None:
                return index
            self.take(index, *found)
        return None

    def way(self, index: int) -> tuple[Way, float] | None:
        """The cheapest way of a buffer in the room there is, and its cost. O(slots of its life * spaces^2)."""
        first, stop, size = self.first[index], self.stop[index], self.problem.buffers[index].size
        self.looks += stop - first
        free = self.room[:, 2 * first : 2 * stop] >= size
        for space, begin, end in self.banned.get(index, ()):
            free[space, 2 * (begin - first) + 1 : 2 * (end - first)] = False
        fits = free.T.tolist()
        costs, bytes_of, everywhere = self.costs, self.bytes[index], range(len(self.spaces))
        worst = float("inf")
        # (cost, scarce slots) up to here, by the space one is in; where one came from.
        reach = [(0.0, 0) if fits[1][s] else (worst, 0) for s in everywhere]
        came: list[list[int]] = []
        for j in range(first, stop):
            if j > first:
                moving, running = fits[2 * (j - first)], fits[2 * (j - first) + 1]
                step: list[tuple[float, int]] = []
                origin = [0] * len(reach)
                for s in everywhere:
                    best = (worst, 0)
                    if running[s] and moving[s]:
                        for source in everywhere:
                            cost, scarce = reach[source]
                            if not moving[source]:
                                continue
                            if source != s:
                                cost += size * (costs[source] + costs[s])
                            if (cost, scarce) < best or (source == s and (cost, scarce) == best):
                                best, origin[s] = (cost, scarce), source
                    step.append(best)
                reach = step
                came.append(origin)
            here = bytes_of.get(j, 0)
            reach = [(c + here * costs[s], k + self.scarcity[s]) for s, (c, k) in enumerate(reach)]
        at = min(everywhere, key=lambda s: (reach[s], s))
        total = reach[at][0]
        if total == worst:
            return None
        way = [at]
        for origin in reversed(came):
            way.append(origin[way[-1]])
        return tuple(reversed(way)), total

    def runs(self, index: int, way: Way) -> Iterator[tuple[int, int, int, int, int]]:
        """(space, first slot, slot after, first moment, moment after) of each stay of a way."""
        begin, last = self.first[index], self.stop[index]
        for space, slots in groupby(way):
            stop = begin + len(list(slots))
            yield space, begin, stop, 2 * begin + (begin == self.first[index]), 2 * stop + (stop < last)
            begin = stop

    def take(self, index: int, way: Way, cost: float) -> None:
        """Give a buffer a way."""
        for space, _, _, begin, end in self.runs(index, way):
            self.room[space, begin:end] -= self.problem.buffers[index].size
        self.ways[index], self.paid[index] = way, cost

    def clear(self, index: int) -> None:
        """Take a buffer's way from it."""
        way = self.ways[index]
        if way is not None:
            for space, _, _, begin, end in self.runs(index, way):
                self.room[space, begin:end] += self.problem.buffers[index].size
        self.ways[index], self.paid[index] = None, 0.0

    def compete(self, effort: int, rng: random.Random) -> bool:
        """Take out a buffer that pays more than it would alone, and some that live with it; serve it first.

        Returns:
            Whether all now pay less.
        """
        before = sum(self.paid)
        idle = 0
        ideal = [sum(row.values()) * min(self.costs) for row in self.bytes]
        self.looks = 0
        for _ in range(effort):
            unlucky = [i for i, paid in enumerate(self.paid) if paid > ideal[i]]
            if not unlucky or self.looks >= effort or idle > _SURRENDER:
                break
            one = rng.choice(unlucky)
            slots = sorted(rng.randrange(self.first[one], self.stop[one]) for _ in range(2))
            rivals = [i for i in range(len(self.ways)) if i != one and self.is_better_off(i, one, *slots)]
            self.looks += 1 + len(self.ways) // 10
            order = [one, *rng.sample(rivals, min(len(rivals), rng.randint(1, _MOST_RIVALS)))]
            # Whoever is first takes all it can use. That it should leave a part to the others has to be tried, too.
            ban = (rng.randrange(len(self.spaces)), slots[0], slots[1] + 1)
            bans = self.banned.setdefault(one, [])
            if rng.random() < 0.5:
                bans.append(ban)
            gain = self.attempt(order)
            if ban in bans:
                bans.remove(ban)
            idle = 0 if gain > 0 else idle + 1
        return sum(self.paid) < before

    def is_better_off(self, index: int, other: int, begin: int, last: int) -> bool:
        """True if a buffer lies in a cheaper space than another at the first or the last of these slots it knows."""
        mine, its = self.ways[index], self.ways[other]
        begin, last = max(begin, self.first[index]), min(last, self.stop[index] - 1)
        if begin > last or mine is None or its is None:
            return False
        return any(
            self.costs[mine[slot - self.first[index]]] < self.costs[its[slot - self.first[other]]]
            for slot in (begin, last)
        )

    def attempt(self, order: Sequence[int]) -> float:
        """Serve some buffers anew, in this order; undone when that costs more. Gives what they save."""
        before = [(i, self.ways[i], self.paid[i]) for i in order]
        for index in order:
            self.clear(index)
        if self.serve(order) is None:
            gain = sum(paid for *_, paid in before) - sum(self.paid[i] for i in order)
            if gain >= 0:
                return gain
        for index in order:
            self.clear(index)
        for index, way, paid in before:
            if way is not None:
                self.take(index, way, paid)
        return 0.0

    def pack(self) -> list[Plan]:
        """Find an offset for every stay; where a space has too many holes, somebody leaves it.

        Each such step forbids a stay, so there is an end. Then those who lose most may try to come back.

        Raises:
            BudgetError: nobody can leave.
        """
        plans: dict[int, Plan] = {}
        bans: list[tuple[float, int, Ban]] = []
        rounds = 0
        while (full := self.fill(plans, _QUICK)) is not None:
            # When that does not end, more must leave at a time.
            rounds += 1
            bans += self.relieve(full, plans[full], max(0, rounds - _PATIENCE))
        for _, index, ban in sorted(bans, reverse=True)[:_RETURNS]:
            way, paid = self.ways[index], self.paid[index]
            self.clear(index)
            self.banned[index].remove(ban)
            found = self.way(index)
            self.take(index, *(found or (way or (), paid)))
            if self.paid[index] < paid:
                tried = dict(plans)
                if self.fill(tried, _THOROUGH) is None:
                    plans = tried
                    continue
            self.clear(index)
            self.banned[index].append(ban)
            self.take(index, way or (), paid)
        return [plan for _, plan in sorted(plans.items())]

    def fill(self, plans: dict[int, Plan], effort: int) -> int | None:
        """Place what every space holds, anew where that has changed; the first space that is too small is returned."""
        stays = self.stays()
        for number, space in enumerate(self.spaces):
            here = tuple(b for *_, b in pieces(self.problem, stays, number))
            if number not in plans or plans[number].problem.buffers != here:
                asked = Problem(here, space.size)
                plans[number] = allocate(asked) if space.size is None else allocate(asked, effort=effort)
            if space.size is not None and plans[number].arena_bytes > space.size:
                return number
        return None

    def relieve(self, space: int, plan: Plan, percent: int) -> list[tuple[float, int, Ban]]:
        """For each stay that reaches above its space's end, send away that stay or one that lives with it.

        Args:
            space: The space.
            plan: Its placement.
            percent: How far below its end stays count as above it.

        Returns:
            (loss, buffer, what is now forbidden) for each.
        """
        size = (self.spaces[space].size or 0) * max(100 - percent, 0) // 100
        owners = [(index, number) for index, number, _ in pieces(self.problem, self.stays(), space)]
        placed = list(zip(owners, plan.problem.buffers, plan.offsets, strict=True))
        gone: list[tuple[int, int, int]] = []
        found = []
        for _, above, offset in sorted(placed, key=lambda p: (-p[2] - p[1].size, p[0])):
            excess = offset + above.size - size
            if excess <= 0:
                break
            if any(first <= above.last and above.first <= last and freed >= excess for first, last, freed in gone):
                continue
            near = [(owner, b) for owner, b, _ in placed if b.first <= above.last and above.first <= b.last]
            left = [self.leave(space, index, number, min(b.size, excess)) for (index, number), b in near]
            options = [option for option in left if option is not None]
            if not options:
                break
            _, loss, index, ban, (way, paid) = min(options)
            self.clear(index)
            self.banned.setdefault(index, []).append(ban)
            self.take(index, way, paid)
            found.append((loss, index, ban))
            gone += [(b.first, b.last, b.size) for (i, _), b in near if i == index]
            # Numbers of its other stays may have changed: it is not asked again in this round.
            placed = [p for p in placed if p[0][0] != index]
        if not found:
            raise BudgetError(
                f"Space {self.spaces[space].name!r} has room for its buffers, but not in one piece, and none of them "
                "can go elsewhere.",
                hint="Give a larger space, or one without a size.",
            )
        return found

    def leave(
        self, space: int, index: int, number: int, relief: int
    ) -> tuple[float, float, int, Ban, tuple[Way, float]] | None:
        """Cost of a buffer giving up one of its stays: per byte that helps, and in all."""
        way, paid = self.ways[index] or (), self.paid[index]
        _, begin, stop, _, _ = list(self.runs(index, way))[number]
        ban = (space, begin, stop)
        self.clear(index)
        self.banned.setdefault(index, []).append(ban)
        found = self.way(index)
        self.banned[index].remove(ban)
        self.take(index, way, paid)
        return None if found is None else ((found[1] - paid) / relief, found[1] - paid, index, ban, found)

    def stays(self, plans: Sequence[Plan] = ()) -> tuple[tuple[Stay, ...], ...]:
        """The stays of all ways; at offset 0 where there are no plans of the spaces yet."""
        offsets = [iter(p.offsets) for p in plans]
        found = []
        for index, way in enumerate(self.ways):
            row = []
            for space, begin, stop, _, _ in self.runs(index, way or ()):
                # `pieces` lists them in this order, too.
                offset = next(offsets[space]) if plans else 0
                row.append(Stay(space, offset, self.times[begin], self.times[stop] - 1))
            found.append(tuple(row))
        return tuple(found)
