"""Placement in several memories at least cost of accesses and moves.

Two questions are taken in turn. *Which space, when*: each buffer in turn gets the cheapest residency over
its life, given the room that the others leave (`space_residency`). *At which offset*: `allocate` places what each space
holds; where it does not fit for holes, the stay whose owner loses least goes elsewhere, and the first question is asked
again for that buffer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from memoptc.ir.diagnostics import BudgetError, InputError
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.memory.problem import Problem
from memoptc.runtime.memory.space_residency import Ban, Residencies, Residency
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
"""Steps of residencies looked at while buffers compete, by default: about a second."""

_QUICK, _THOROUGH = 1_000, 5_000
"""Effort of `allocate` for a bounded space: while buffers must leave it, and when one wants to return."""

_PATIENCE = 5
"""Placements of a space that may fail before more buffers leave at a time."""

_RETURNS = 10
"""How many buffers may try to return."""


def allocate_spaces(
    problem: SpacedProblem, spaces: Sequence[Space], *, effort: int = EFFORT, seed: int = 0
) -> SpacedPlan:
    """Place buffers in several memories so that accesses and moves cost little.

    Args:
        problem: Buffers and their accesses.
        spaces: The memories, in any order.
        effort: How many steps of residencies may be looked at in the search; the first placement costs what it costs.
        seed: Of the search.

    Returns:
        A checked plan.

    Raises:
        InputError: there is no space.
        BudgetError: no placement was found: the spaces are too small.
    """
    if not spaces:
        raise InputError("There is no space to place buffers in.")
    placement = _Placement(problem, spaces)
    placement.serve_all()
    served = list(zip(placement.residencies, placement.paid, strict=True))
    plan = placement.plan()
    # The search does not know of holes: it begins from what was served, not from what holes have made of it.
    placement.restore(served)
    if placement.compete(effort, random.Random(seed)):
        plan = min(plan, placement.plan(), key=lambda p: p.cost)
    check_spaces(plan)
    return plan


class _Placement(Residencies):
    """The residency of every buffer, and its offset in each space that it stays in."""

    def plan(self) -> SpacedPlan:
        """Find offsets, changing residencies where they must; the plan."""
        stays = self.stays(self.pack())
        return SpacedPlan(self.problem, self.spaces, stays, moves_between(self.problem, stays))

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
            residency, paid = self.residencies[index], self.paid[index]
            self.clear(index)
            self.banned[index].remove(ban)
            found = self.residency(index)
            self.take(index, *(found or (residency or (), paid)))
            if self.paid[index] < paid:
                tried = dict(plans)
                if self.fill(tried, _THOROUGH) is None:
                    plans = tried
                    continue
            self.clear(index)
            self.banned[index].append(ban)
            self.take(index, residency or (), paid)
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
            _, loss, index, ban, (residency, paid) = min(options)
            self.clear(index)
            self.banned.setdefault(index, []).append(ban)
            self.take(index, residency, paid)
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
    ) -> tuple[float, float, int, Ban, tuple[Residency, float]] | None:
        """Cost of a buffer giving up one of its stays: per byte that helps, and in all."""
        residency, paid = self.residencies[index] or (), self.paid[index]
        _, begin, stop, _, _ = list(self.runs(index, residency))[number]
        ban = (space, begin, stop)
        self.clear(index)
        self.banned.setdefault(index, []).append(ban)
        found = self.residency(index)
        self.banned[index].remove(ban)
        self.take(index, residency, paid)
        return None if found is None else ((found[1] - paid) / relief, found[1] - paid, index, ban, found)

    def stays(self, plans: Sequence[Plan] = ()) -> tuple[tuple[Stay, ...], ...]:
        """The stays of all residencies; at offset 0 where there are no plans of the spaces yet."""
        offsets = [iter(p.offsets) for p in plans]
        found = []
        for index, residency in enumerate(self.residencies):
            row = []
            for space, begin, stop, _, _ in self.runs(index, residency or ()):
                # `pieces` lists them in this order, too.
                offset = next(offsets[space]) if plans else 0
                row.append(Stay(space, offset, self.times[begin], self.times[stop] - 1))
            found.append(tuple(row))
        return tuple(found)
