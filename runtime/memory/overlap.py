"""Which buffers are alive together: the tables that placing them needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from memoptc.runtime.memory.problem import Problem

Ints = npt.NDArray[np.int64]


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
        self._table: tuple[Ints, Ints] | None = None
        self._lists: list[list[int]] | None = None

    def neighbours(self, index: int) -> Ints:
        """Buffers alive together with this one; the first call lists all pairs."""
        begin, members = self._rows()
        return members[begin[index] : begin[index + 1]]

    def lists(self) -> Sequence[Sequence[int]]:
        """The neighbours of every buffer as lists, kept: for few buffers that are visited often."""
        if self._lists is None:
            begin, members = self._rows()
            self._lists = [members[a:b].tolist() for a, b in pairwise(begin.tolist())]
        return self._lists

    def _rows(self) -> tuple[Ints, Ints]:
        if self._table is None:
            later = self._until - np.arange(self.count) - 1
            one = np.repeat(np.arange(self.count), later)
            other = np.arange(len(one)) - np.repeat(np.cumsum(later) - later, later) + one + 1
            one, other = self._order[one], self._order[other]
            left, right = np.concatenate((one, other)), np.concatenate((other, one))
            begin = np.zeros(self.count + 1, np.int64)
            np.cumsum(np.bincount(left, minlength=self.count), out=begin[1:])
            self._table = begin, right[np.argsort(left, kind="stable")]
        return self._table

    def busiest(self) -> Ints:
        """For each buffer the most bytes alive at any step of its range. O(n log n) by a table of range maxima."""
        points = np.unique(self.first)
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
        for h in np.unique(height):
            at = height == h
            most[at] = np.maximum(level[h][low[at]], level[h][high[at] - (1 << int(h))])
        return most
