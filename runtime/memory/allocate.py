"""Offsets for buffers: a portfolio of greedy placements, the smallest arena kept.

Each member places buffers one after the other, at the lowest offset that is free over the buffer's whole live
range (first fit) or in the tightest gap (best fit). What differs is the order: by size as in TensorFlow Lite
(Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020), by size times length, by
length, by the load of the busiest step a buffer crosses (Moffitt, "MiniMalloc", 2023, places contended sections
first), or by time. A local search then moves buffers that stick out over the floor to the front of the order.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memoptc.runtime.memory.plan import Plan, check
from memoptc.runtime.memory.problem import Buffer, Problem

LARGE = 5000
"""Problems with more buffers get fewer orders and no local search."""


def allocate(problem: Problem, *, rounds: int = 60) -> Plan:
    """Place all buffers in as few bytes as the portfolio finds; stops at the floor.

    The result is the same for the same problem: effort is counted in rounds, not in seconds.

    Args:
        problem: Buffers, with their fixed offsets, if any. Its capacity is not enforced here.
        rounds: Rounds of local search on the best order.

    Returns:
        A checked plan.
    """
    if not problem.buffers:
        return Plan(problem, (), "empty")
    search = _Search(problem)
    orders = _ORDERS if len(problem.buffers) <= LARGE else _ORDERS[:3]
    for name, key in orders:
        search.attempt(name, sorted(range(len(problem.buffers)), key=lambda i, k=key: (k(search, i), i)))  # type: ignore[misc]
        if search.done:
            break
    if not search.done and len(problem.buffers) <= LARGE:
        search.improve(rounds)
    plan = Plan(Problem(problem.buffers), search.best, search.algorithm)
    check(plan)
    return plan


@dataclass
class _Best:
    arena: int
    offsets: tuple[int, ...]
    order: list[int]
    name: str


class _Search:
    def __init__(self, problem: Problem) -> None:
        self.buffers = problem.buffers
        self.floor = problem.floor
        self.load = _busiest(problem.buffers)
        self.neighbours = _Neighbours(problem.buffers)
        self.found: _Best | None = None

    @property
    def best(self) -> tuple[int, ...]:
        assert self.found is not None
        return self.found.offsets

    @property
    def algorithm(self) -> str:
        assert self.found is not None
        return self.found.name

    @property
    def done(self) -> bool:
        return self.found is not None and self.found.arena <= self.floor

    def attempt(self, name: str, order: list[int]) -> tuple[int, ...]:
        limit = self.found.arena if self.found is not None else None
        for fit in ("first", "best"):
            offsets = self.place(order, fit == "best")
            arena = max(o + b.size for o, b in zip(offsets, self.buffers, strict=True))
            if self.found is None or arena < self.found.arena:
                self.found = _Best(arena, offsets, order, f"{name}, {fit} fit")
            if self.done or (limit is None and len(self.buffers) > LARGE):
                break
        return offsets

    def place(self, order: Sequence[int], tightest: bool) -> tuple[int, ...]:
        offsets = [-1] * len(self.buffers)
        fixed = [i for i in order if self.buffers[i].offset is not None]
        for i in fixed:
            offsets[i] = self.buffers[i].offset or 0
            self.neighbours.put(i, offsets[i])
        for i in order:
            if offsets[i] < 0:
                offsets[i] = self.neighbours.lowest(i, tightest)
                self.neighbours.put(i, offsets[i])
        self.neighbours.clear()
        return tuple(offsets)

    def improve(self, rounds: int) -> None:
        """Move what ends highest to the front of the order, again and again."""
        for step in range(rounds):
            assert self.found is not None
            best = self.found
            ends = [o + b.size for o, b in zip(best.offsets, self.buffers, strict=True)]
            over = sorted((i for i, e in enumerate(ends) if e > self.floor), key=lambda i: (-ends[i], i))
            if not over:
                return
            moved = over[step % len(over)]
            jump = best.order.index(moved) // (1 + step % 4 * 2) if step % 4 else 0
            order = [i for i in best.order if i != moved]
            order.insert(min(jump, len(order)), moved)
            self.attempt("local search", order)
            if self.done:
                return


class _Neighbours:
    """Placed buffers per block of time, so that a placement looks only at those alive with it."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers
        # Only the order of starts and ends matters: compressed time makes blocks equally busy.
        points = sorted({b.first for b in buffers} | {b.last + 1 for b in buffers})
        where = {t: i for i, t in enumerate(points)}
        self.spans = [(where[b.first], where[b.last + 1]) for b in buffers]
        self.width = max(1, len(points) // 1024)
        self.blocks: list[list[tuple[int, int, int]]] = [[] for _ in range(len(points) // self.width + 1)]

    def _range(self, index: int) -> range:
        first, end = self.spans[index]
        return range(first // self.width, (end - 1) // self.width + 1)

    def put(self, index: int, offset: int) -> None:
        b = self.buffers[index]
        item = (offset, offset + b.size, index)
        for block in self._range(index):
            bisect.insort(self.blocks[block], item)

    def clear(self) -> None:
        for block in self.blocks:
            block.clear()

    def lowest(self, index: int, tightest: bool) -> int:
        """The lowest free offset, or the one in the tightest gap."""
        b = self.buffers[index]
        blocks = self._range(index)
        if len(blocks) == 1:
            taken = [t for t in self.blocks[blocks[0]] if self._meets(t[2], index)]
        else:
            seen = {t for block in blocks for t in self.blocks[block]}
            taken = sorted(t for t in seen if self._meets(t[2], index))
        end, best, gap = 0, -1, -1
        for low, high, _ in taken:
            start = -(-end // b.alignment) * b.alignment
            if low - start >= b.size:
                if not tightest:
                    return start
                if gap < 0 or low - start < gap:
                    best, gap = start, low - start
            end = max(end, high)
        return best if best >= 0 else -(-end // b.alignment) * b.alignment

    def _meets(self, other: int, index: int) -> bool:
        a, b = self.spans[other], self.spans[index]
        return a[0] < b[1] and b[0] < a[1]


def _busiest(buffers: Sequence[Buffer]) -> list[int]:
    """For each buffer the most bytes alive at any step of its range. Sparse table over compressed time."""
    points = sorted({b.first for b in buffers} | {b.last + 1 for b in buffers})
    where = {t: i for i, t in enumerate(points)}
    change = np.zeros(len(points) + 1, np.int64)
    for b in buffers:
        change[where[b.first]] += b.size
        change[where[b.last + 1]] -= b.size
    tables = [np.cumsum(change[:-1])]
    while len(tables[-1]) > 1 << (len(tables) - 1) and len(tables[-1]) > (half := 1 << (len(tables) - 1)):
        last = tables[-1]
        tables.append(np.maximum(last[:-half], last[half:]))
    result = []
    for b in buffers:
        low, high = where[b.first], where[b.last + 1]
        level = (high - low).bit_length() - 1
        table = tables[level]
        result.append(int(max(table[low], table[high - (1 << level)])))
    return result


_Key = Callable[[_Search, int], tuple[float, ...]]

_ORDERS: tuple[tuple[str, _Key], ...] = (
    ("by size", lambda s, i: (-s.buffers[i].size, s.buffers[i].first)),
    ("by busiest step", lambda s, i: (-s.load[i], -s.buffers[i].size, s.buffers[i].first)),
    ("by time", lambda s, i: (s.buffers[i].first, -s.buffers[i].size)),
    ("by area", lambda s, i: (-s.buffers[i].size * (s.buffers[i].last - s.buffers[i].first + 1),)),
    ("by length", lambda s, i: (s.buffers[i].first - s.buffers[i].last, -s.buffers[i].size)),
    ("by end", lambda s, i: (-s.buffers[i].last, -s.buffers[i].size)),
    ("by busiest step and area", lambda s, i: (-s.load[i], s.buffers[i].first - s.buffers[i].last)),
)
