"""Pairs of buffers that are alive together: the tables that placing them needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from memoptc.runtime.memory.problem import FEW_BUFFERS, Problem

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
    Indices: TypeAlias = npt.NDArray[np.int32]


class Overlaps:
    """Pairs of buffers whose live ranges share a step, and the load of those steps.

    Sorted by first step, the buffers that begin during a buffer's life are the ones right after it, up to one that
    a binary search finds; so all pairs can be counted in O(n log n), and listed in time linear in their number.

    Args:
        problem: The buffers.
    """

    def __init__(self, problem: Problem) -> None:
        self.first, self.last, self.size = problem.arrays
        self.count = len(self.size)
        self._order = np.argsort(self.first, kind="stable")
        starts = self.first[self._order]
        self._until = np.searchsorted(starts, self.last[self._order], "right")
        self.pairs = int((self._until - np.arange(self.count) - 1).sum())
        """How many pairs there are."""
        self._table: tuple[Ints, Indices] | None = None
        self._lists: list[list[int]] | None = None

    def neighbours(self, index: int) -> Indices:
        """Buffers alive together with this one; the first call lists all pairs."""
        begin, members = self._rows()
        return members[begin[index] : begin[index + 1]]

    def lists(self) -> Sequence[Sequence[int]]:
        """The neighbours of every buffer as lists, kept: for few buffers that are visited often."""
        if self._lists is None:
            begin, members = self._rows()
            # One object per buffer, not per neighbour: a number of its own takes four times its place in a list.
            every = list(range(self.count))
            self._lists = [[every[i] for i in members[a:b].tolist()] for a, b in pairwise(begin.tolist())]
        return self._lists

    def _rows(self) -> tuple[Ints, Indices]:
        if self._table is None:
            later = self._until - np.arange(self.count) - 1
            # As many began before a buffer and are still alive as ranges of later ones reach it.
            reach = np.zeros(self.count + 1, np.int64)
            np.add.at(reach, np.arange(1, self.count + 1), 1)
            np.add.at(reach, self._until, -1)
            earlier = np.cumsum(reach)[: self.count]
            counts = np.empty(self.count, np.int64)
            counts[self._order] = later + earlier
            begin = np.zeros(self.count + 1, np.int64)
            np.cumsum(counts, out=begin[1:])
            order = self._order.astype(np.int32)
            members = np.empty(int(begin[-1]), np.int32)
            place = begin[self._order] + later
            # Row by row, not all at once: tables of both ends of all pairs would take eight times the result.
            for at, until in enumerate(self._until.tolist()):
                row, others = order[at], slice(at + 1, until)
                members[begin[row] : begin[row] + until - at - 1] = order[others]
                members[place[others]] = row
                place[others] += 1
            self._table = begin, members
        return self._table

    def busiest(self) -> list[int]:
        """For each buffer the most bytes alive at any step of its range. O(n log n) by a table of range maxima."""
        points = _distinct(self.first)
        # Bytes alive only grow where something begins, so the steps at which something does are enough.
        low = np.searchsorted(points, self.first)
        high = np.searchsorted(points, self.last, "right")
        change = np.zeros(len(points) + 1, np.int64)
        np.add.at(change, low, self.size)
        np.add.at(change, high, -self.size)
        level = [np.cumsum(change[:-1])]
        while len(level[-1]) > (half := 1 << (len(level) - 1)):
            level.append(np.maximum(level[-1][:-half], level[-1][half:]))
        height = np.frexp((high - low).astype(np.float64))[1] - 1
        most = np.empty(self.count, np.int64)
        for h in _distinct(height):
            at = height == h
            most[at] = np.maximum(level[h][low[at]], level[h][high[at] - (1 << int(h))])
        found: list[int] = most.tolist()
        return found


class FewOverlaps:
    """The same for few buffers, in plain Python.

    Each function of numpy that a process calls for the first time brings in pages of its code, together a megabyte:
    more than many a run takes that is planned at run time.

    Args:
        problem: The buffers.
    """

    def __init__(self, problem: Problem) -> None:
        buffers = self._buffers = problem.buffers
        self._rows: list[list[int]] = [[] for _ in buffers]
        self._alive: dict[int, int] = {}  # step at which something begins -> bytes alive
        living: list[int] = []
        for index in sorted(range(len(buffers)), key=lambda i: buffers[i].first):
            first = buffers[index].first
            living = [other for other in living if buffers[other].last >= first]
            self._rows[index] += living
            for other in living:
                self._rows[other].append(index)
            living.append(index)
            self._alive[first] = sum(buffers[other].size for other in living)
        self.pairs = sum(map(len, self._rows)) // 2
        """How many pairs there are."""

    def neighbours(self, index: int) -> Sequence[int]:
        """Buffers alive together with this one."""
        return self._rows[index]

    def lists(self) -> Sequence[Sequence[int]]:
        """The neighbours of every buffer."""
        return self._rows

    def busiest(self) -> list[int]:
        """For each buffer the most bytes alive at any step of its range."""
        begins = [b.first for b in self._buffers]
        return [
            max(self._alive[begins[o]] for o in (index, *row) if begins[o] >= begins[index])
            for index, row in enumerate(self._rows)
        ]


def overlaps_of(problem: Problem) -> Overlaps | FewOverlaps:
    """Find the pairs in the way that suits their number."""
    return FewOverlaps(problem) if len(problem.buffers) <= FEW_BUFFERS else Overlaps(problem)


def _distinct(values: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
    """Give the values in ascending order, each once. `numpy.unique` imports `numpy.ma` for that: 0.07 s."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
