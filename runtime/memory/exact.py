"""Exact allocation: whether buffers fit into a capacity, by canonical search with several orders and restarts.

`runtime/memory/canonical_search.py` has the search itself. Here a problem is made ready: times become *sections*,
of which a new one begins only where a buffer is born after another one has died (between two such births the set of
living buffers only grows, so the last of it is all that counts); numbers are divided by what they have in common;
buffers that no chain of overlaps connects are solved apart.

Which order finds a placement soon, nobody can say beforehand. So each order gets a small budget, and if none succeeds,
a doubled one: the whole costs little more than the best order alone, times their number (Luby, Sinclair and
Zuckerman, "Optimal Speedup of Las Vegas Algorithms", 1993). Dead ends proven under one order are kept for the others.

With numba installed (extra `fast`), a search that may take long goes on in compiled code. It takes the same
steps, so nothing but the time depends on numba; budgets are counted in looks at buffers, never in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.runtime.memory import canonical_search
from memoptc.runtime.memory.canonical_search import PRIME
from memoptc.runtime.memory.canonical_tables import FRAME, Ints, Tables, Work
from memoptc.runtime.memory.compiled_search import Search, compiled
from memoptc.runtime.memory.overlap import Overlaps
from memoptc.runtime.memory.problem import Buffer, Problem

PLAIN = 300_000
"""Looks, a tenth of a second, that a search spends in plain Python at first."""

LONG = 10_000_000
"""Compiled code is asked for where so many looks may follow, 3 seconds of plain Python: compiling takes 5 s, once."""

MOST_BUFFERS = 4_000
"""Groups of more buffers are not searched: a descent alone would cost as much as every other placement."""

MOST_PAIRS = 1_000_000
"""Groups with more overlapping pairs are not searched."""

_SLOTS = 1 << 17
_PARTS = 1 << 18
_FIRST_BUDGET = 6


@dataclass(frozen=True)
class Answer:
    """Answer of a search.

    Args:
        fits: Yes, no, or `None`: the effort was not enough to say.
        offsets: Where the buffers lie, if that was found.
        looks: The effort spent.
    """

    fits: bool | None
    offsets: tuple[int, ...] | None
    looks: int


def decide(problem: Problem, capacity: int, *, effort: int) -> Answer:
    """Decide whether all buffers can be placed within a capacity.

    Args:
        problem: The buffers; alignments and fixed offsets count.
        capacity: In bytes.
        effort: How many looks at buffers may be spent.

    Returns:
        The answer. A yes comes with offsets. A no is a proof but for a collision of 62-bit hashes.
    """
    return Exact(problem).decide(capacity, effort)


class Exact:
    """Exact search for one problem. What one question teaches serves the next ones.

    Args:
        problem: The buffers; alignments and fixed offsets count.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.groups = list(_groups(problem))

    def decide(self, capacity: int, effort: int) -> Answer:
        """Decide whether all buffers can be placed within a capacity, as the function `decide` does."""
        offsets, looks = [0] * len(self.problem.buffers), 0
        if self.problem.floor > capacity:
            return Answer(False, None, 0)
        for group in self.groups:
            answer = group.decide(capacity, effort - looks)
            looks += answer.looks
            if answer.offsets is None:
                return Answer(answer.fits, None, looks)
            for index, offset in zip(group.members, answer.offsets, strict=True):
                offsets[index] = offset
        return Answer(True, tuple(offsets), looks)

    def improve(self, offsets: Sequence[int], effort: int) -> Answer:
        """Make a placement smaller, down to the floor if the effort reaches that far.

        Args:
            offsets: A placement.
            effort: How many looks at buffers may be spent.

        Returns:
            Offsets that need no more bytes; `fits` is whether they are proven to be the best there are.
        """
        best, looks, proven = list(offsets), 0, True
        goal = self.problem.floor
        arenas = [(self._arena(best, group), k) for k, group in enumerate(self.groups)]
        for arena, k in sorted(arenas, reverse=True):
            if arena <= goal:
                break
            group = self.groups[k]
            answer = group.shrink(arena, goal, effort - looks)
            looks += answer.looks
            proven = proven and answer.fits is True
            for index, offset in zip(group.members, answer.offsets or (), strict=False):
                best[index] = offset
            # What this group needs, the others may use.
            goal = max(goal, self._arena(best, group))
        return Answer(proven or None, tuple(best), looks)

    def _arena(self, offsets: Sequence[int], group: Group) -> int:
        return max(offsets[i] + self.problem.buffers[i].size for i in group.members)


def _groups(problem: Problem) -> Iterator[Group]:
    """Split a problem where no buffer is alive: what lies apart in time does not matter to each other. O(n log n)."""
    first, last, _ = problem.arrays
    order = np.argsort(first, kind="stable")
    reach = np.maximum.accumulate(last[order])
    cuts = np.flatnonzero(first[order][1:] > reach[:-1]) + 1
    for part in np.split(order, cuts):
        if len(part):
            yield Group(problem, np.sort(part).tolist())


class Group:
    """Buffers that are searched together.

    Args:
        problem: The problem they are of.
        members: Their indices.
    """

    def __init__(self, problem: Problem, members: Sequence[int]) -> None:
        self.members = members
        self.problem = Problem(tuple(problem.buffers[i] for i in members))
        self.buffers = self.problem.buffers
        self.overlaps = Overlaps(self.problem)
        aligned = gcd(*(b.alignment for b in self.buffers))
        numbers = [-(-b.size // aligned) * aligned for b in self.buffers]
        self.unit = gcd(*numbers, *(b.size for b in self.buffers), *(b.alignment for b in self.buffers))
        self.unit = gcd(self.unit, *(b.offset for b in self.buffers if b.offset is not None))
        self.sizes = [number // self.unit for number in numbers]
        self._rounds: _Rounds | None = None

    @property
    def searchable(self) -> bool:
        """True if the search is worth trying."""
        few = len(self.buffers) <= MOST_BUFFERS and self.overlaps.pairs <= MOST_PAIRS
        return few and 2 * self.problem.naive_sum // self.unit < PRIME

    @property
    def first_budget(self) -> int:
        """Budget of each order on the first try: a few times what placing everything once costs."""
        return _FIRST_BUDGET * (2 * self.overlaps.pairs + len(self.buffers))

    def decide(self, capacity: int, effort: int) -> Answer:
        """Decide for these buffers alone, as `decide` does for all."""
        if not self.searchable:
            return Answer(None, None, 0)
        capacity, budget, looks = min(capacity, self.problem.naive_sum), self.first_budget, 0
        while True:
            answer = self._ask(capacity, budget, effort - looks)
            looks += answer.looks
            if answer.fits is not None or looks >= effort:
                return replace(answer, looks=looks)
            budget *= 2

    def shrink(self, arena: int, goal: int, effort: int) -> Answer:
        """Find a placement in fewer bytes than `arena`, in `goal` if possible.

        Every round asks for the goal first, then for the middle between what was not found and what is known, until
        nothing lies between; the next round does the same with twice the budget for each question. A proof that
        something is impossible raises the goal for good.

        Returns:
            The best offsets found, if any; `fits` tells whether nothing smaller exists above the goal.
        """
        unit, looks, budget = self.unit, 0, self.first_budget
        if effort < budget:
            return Answer(None, None, 0)
        best: tuple[int, ...] | None = None
        low = -(-goal // unit) * unit
        while low < arena and self.searchable:
            missed, aim = low - unit, low
            while aim < arena:
                if looks >= effort:
                    return Answer(None, best, looks)
                answer = self._ask(aim, budget, effort - looks)
                looks += answer.looks
                if answer.offsets is not None:
                    best = answer.offsets
                    arena = max(o + b.size for o, b in zip(best, self.buffers, strict=True))
                else:
                    missed = aim
                    low = aim + unit if answer.fits is False else low
                aim = missed + max((arena - missed) // (2 * unit), 1) * unit
            budget *= 2
        return Answer(True if self.searchable else None, best, looks)

    def _ask(self, capacity: int, budget: int, effort: int) -> Answer:
        if self.problem.floor > capacity:
            return Answer(False, None, 0)
        if self._rounds is None:
            self._rounds = _Rounds(self)
        return self._rounds.ask(capacity // self.unit, budget, effort)

    @cached_property
    def sections(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
        """First section and the one after the last, per buffer; the number of sections."""
        first, last, _ = self.problem.arrays
        births = np.unique(first)
        deaths = np.sort(last + 1)
        gone = np.searchsorted(deaths, births, "right")
        section = np.cumsum(np.diff(gone, prepend=0) > 0).astype(np.int64)
        begin = section[np.searchsorted(births, first)]
        stop = section[np.searchsorted(births, last, "right") - 1] + 1
        return begin, stop, int(section[-1]) + 1


class _Rounds:
    """Orders in turn, with growing budgets; what one call has learnt is there for the next.

    Args:
        group: The buffers.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        n = len(group.buffers)
        begin, stop, self.sections = group.sections
        self.orders = list(_orders(group.buffers, group.sizes, (stop - begin).tolist(), begin.tolist(), stop.tolist()))
        self.padding = max(size - b.size // group.unit for size, b in zip(group.sizes, group.buffers, strict=True))
        self.lists = _tables(group, begin, stop, self.sections)
        self.trail = 16 * (2 * n + self.sections) + 4 * group.overlaps.pairs
        self.work = self._fresh()
        self.arrays: Tables | None = None
        self.looks = 0
        self.capacity: int | None = None
        self.impossible = -1

    def ask(self, capacity: int, budget: int, effort: int) -> Answer:
        """Try each order with the same budget."""
        if capacity <= self.impossible:
            return Answer(False, None, 0)
        if self.capacity is not None and capacity > self.capacity:
            self._forget()
        self.capacity = capacity
        spent = 0
        for rank, by_load in self.orders:
            if spent >= effort:
                break
            verdict, looks = self._run(rank, by_load, capacity, min(budget, effort - spent), effort - spent > LONG)
            spent += looks
            if verdict == canonical_search.SOLVED:
                unit = self.group.unit
                return Answer(True, tuple(int(o) * unit for o in self.work.solution), spent)
            if verdict == canonical_search.IMPOSSIBLE:
                self.impossible = capacity
                return Answer(False, None, spent)
        return Answer(None, None, spent)

    def _run(self, rank: Ints, by_load: int, capacity: int, budget: int, long: bool) -> tuple[int, int]:
        search: Search = canonical_search.search
        tables = self.lists
        # Once there, compiled code is used from the start.
        ready = compiled.cache_info().currsize or (long and self.looks > PLAIN)
        if ready and (fast := compiled()) is not None:
            search = fast
            if self.arrays is None:
                self.arrays = Tables(*(_array(column) for column in self.lists))
                self.work = Work(*(_array(column) for column in self.work))
            tables = self.arrays
        tables.still[:] = rank if tables is self.lists else _array(rank)
        if self.work.counter[1] > _PARTS // 2:
            self._forget()
        spent = 0
        while True:
            self.work.counter[0] = 0
            verdict = search(tables, self.work, capacity, self.padding, by_load, budget)
            spent += int(self.work.counter[0])
            if verdict != canonical_search.CROWDED:
                break
            self.work = self.work._replace(trail=_longer(self.work.trail))
        self.looks += spent
        return verdict, spent

    def _forget(self) -> None:
        for column in (self.work.known, self.work.solved):
            column[:] = [0] * len(column)
        self.work.counter[1] = 0

    def _fresh(self) -> Work:
        n, s = len(self.group.buffers), self.sections
        lengths = (2 * n + s, self.trail, n, n, n, s, s, s, (n + 2) * FRAME, _SLOTS, _SLOTS, _PARTS, n, 3)
        return Work(*([0] * length for length in lengths))


def _array(column: Ints) -> Any:
    return np.array(column, np.int64)


def _longer(column: Any) -> Any:
    return column * 2 if isinstance(column, list) else np.concatenate((column, column))


def _tables(group: Group, begin: npt.NDArray[np.int64], stop: npt.NDArray[np.int64], sections: int) -> Tables:
    n, unit = len(group.buffers), group.unit
    rows = [group.overlaps.neighbours(i).tolist() for i in range(n)]
    alive: list[list[int]] = [[] for _ in range(sections)]
    firsts, stops = begin.tolist(), stop.tolist()
    for i in range(n):
        for at in range(firsts[i], stops[i]):
            alive[at].append(i)
    # Multipliers of the hash: any will do, the same ones every time.
    factors = np.random.default_rng(1).integers(1, PRIME, (2, n)).tolist()
    return Tables(
        first=firsts,
        stop=stops,
        size=group.sizes,
        unit=[max(b.alignment // unit, 1) for b in group.buffers],
        least=[(b.offset or 0) // unit for b in group.buffers],
        slack=[b.size // unit for b in group.buffers],
        fixed=[int(b.offset is not None) for b in group.buffers],
        twin=_twins(group, firsts, stops),
        still=[0] * n,
        mix=factors[0],
        stir=factors[1],
        near_begin=[0, *np.cumsum([len(row) for row in rows]).tolist()],
        near=[i for row in rows for i in row],
        alive_begin=[0, *np.cumsum([len(row) for row in alive]).tolist()],
        alive=[i for row in alive for i in row],
    )


def _twins(group: Group, firsts: Sequence[int], stops: Sequence[int]) -> list[int]:
    """For each buffer the one before it that differs in nothing; fixed ones have none."""
    seen: dict[tuple[int, ...], int] = {}
    twins = []
    for i, b in enumerate(group.buffers):
        kind = (firsts[i], stops[i], b.size, b.alignment, -1 if b.offset is None else i)
        twins.append(seen.get(kind, -1))
        seen[kind] = i
    return twins


def _orders(
    buffers: Sequence[Buffer], sizes: Sequence[int], widths: Sequence[int], begin: Sequence[int], stop: Sequence[int]
) -> Iterator[tuple[Ints, int]]:
    lives = [b.last - b.first + 1 for b in buffers]
    keys: dict[str, list[int]] = {
        "W": [-w for w in widths],
        "w": [-v for v in lives],
        "A": [-w * s for w, s in zip(widths, sizes, strict=True)],
        "a": [-v * s for v, s in zip(lives, sizes, strict=True)],
        "L": [-b for b in begin],
        "U": [-e for e in stop],
        "Z": [-s for s in sizes],
    }
    for name in ("TW", "Tw", "A", "a", "WT", "TWA", "Twa", "TL", "Uw", "Lw", "waT", "WAT", "TU"):
        chosen = [keys[letter] for letter in name if letter != "T"]
        order = sorted(range(len(buffers)), key=lambda i: (*(k[i] for k in chosen), i))
        rank = [0] * len(buffers)
        for place, index in enumerate(order):
            rank[index] = place
        yield rank, int(name[0] == "T")
