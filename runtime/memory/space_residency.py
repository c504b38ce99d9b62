"""Residency of every buffer in several memories: which space, when; and the room that is left.

The cheapest residency of one buffer is a shortest path over (time, space), found by dynamic programming; spills and
prefetches are its edges. Buffers are served in order of what a byte of fast memory saves per step, a greedy rule for
the unsplittable flow problem on a path (Bansal, Friggstad, Khandekar and Salavatipour, "A Logarithmic Approximation for
Unsplittable Flow on Line Graphs", 2014); then a few that compete are taken out and served again in another order, and
whatever is no worse is kept (Shaw, "Using Constraint Programming and Local Search Methods to Solve Vehicle Routing
Problems", 1998).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

import numpy as np

from memoptc.ir.diagnostics import BudgetError
from memoptc.runtime.memory.spaces import Space, SpacedProblem

_ENDLESS = 1 << 62
_RESTARTS = 100
_MOST_RIVALS = 6
_SURRENDER = 1_000
"""Attempts in a row without a gain after which the search ends."""

Residency: TypeAlias = tuple[int, ...]
"""The space of a buffer in each slot of its life."""

Ban: TypeAlias = tuple[int, int, int]
"""A space that a buffer must not be in, from a slot to the one before another."""


class Residencies:
    """The residency of every buffer, and the room that is left.

    Time is cut into *slots*, at whose beginnings alone anything changes: births, deaths, accesses and the steps after
    accesses. A slot j has two moments as in `pieces`: 2j, the moves at its beginning, and 2j + 1, what runs in it.
    """

    def __init__(self, problem: SpacedProblem, spaces: Sequence[Space]) -> None:
        self.problem, self.spaces = problem, tuple(spaces)
        self.costs = [s.cost_per_byte for s in spaces]
        # Of residencies that cost the same, the one that leaves the scarce spaces soonest.
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
        self.residencies: list[Residency | None] = [None] * len(problem.buffers)
        self.paid = [0.0] * len(problem.buffers)
        self.banned: dict[int, list[Ban]] = {}
        self.looks = 0

    def restore(self, served: Sequence[tuple[Residency | None, float]]) -> None:
        """Forget what holes have changed."""
        self.banned.clear()
        for index in range(len(self.residencies)):
            self.clear(index)
        for index, (residency, paid) in enumerate(served):
            if residency is not None:
                self.take(index, residency, paid)

    def serve_all(self) -> None:
        """Serve every buffer, the one that gains most from a byte of the best space first."""
        span = max(self.costs) - min(self.costs)

        def density(i: int) -> float:
            return span * sum(self.bytes[i].values()) / (self.problem.buffers[i].size * (self.stop[i] - self.first[i]))

        order = sorted(range(len(self.residencies)), key=lambda i: (-density(i), i))
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
        """Serve some buffers in order; the first that finds no residency is returned."""
        for index in order:
            found = self.residency(index)
            if found is None:
                return index
            self.take(index, *found)
        return None

    def residency(self, index: int) -> tuple[Residency, float] | None:
        """The cheapest residency of a buffer in the room there is, and its cost. O(slots of its life * spaces^2)."""
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
        residency = [at]
        for origin in reversed(came):
            residency.append(origin[residency[-1]])
        return tuple(reversed(residency)), total

    def runs(self, index: int, residency: Residency) -> Iterator[tuple[int, int, int, int, int]]:
        """(space, first slot, slot after, first moment, moment after) of each stay of a residency."""
        begin, last = self.first[index], self.stop[index]
        for space, slots in groupby(residency):
            stop = begin + len(list(slots))
            yield space, begin, stop, 2 * begin + (begin == self.first[index]), 2 * stop + (stop < last)
            begin = stop

    def take(self, index: int, residency: Residency, cost: float) -> None:
        """Give a buffer a residency."""
        for space, _, _, begin, end in self.runs(index, residency):
            self.room[space, begin:end] -= self.problem.buffers[index].size
        self.residencies[index], self.paid[index] = residency, cost

    def clear(self, index: int) -> None:
        """Take a buffer's residency from it."""
        residency = self.residencies[index]
        if residency is not None:
            for space, _, _, begin, end in self.runs(index, residency):
                self.room[space, begin:end] += self.problem.buffers[index].size
        self.residencies[index], self.paid[index] = None, 0.0

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
            rivals = [i for i in range(len(self.residencies)) if i != one and self.is_better_off(i, one, *slots)]
            self.looks += 1 + len(self.residencies) // 10
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
        mine, its = self.residencies[index], self.residencies[other]
        begin, last = max(begin, self.first[index]), min(last, self.stop[index] - 1)
        if begin > last or mine is None or its is None:
            return False
        return any(
            self.costs[mine[slot - self.first[index]]] < self.costs[its[slot - self.first[other]]]
            for slot in (begin, last)
        )

    def attempt(self, order: Sequence[int]) -> float:
        """Serve some buffers anew, in this order; undone when that costs more. Gives what they save."""
        before = [(i, self.residencies[i], self.paid[i]) for i in order]
        for index in order:
            self.clear(index)
        if self.serve(order) is None:
            gain = sum(paid for *_, paid in before) - sum(self.paid[i] for i in order)
            if gain >= 0:
                return gain
        for index in order:
            self.clear(index)
        for index, residency, paid in before:
            if residency is not None:
                self.take(index, residency, paid)
        return 0.0
