"""onnxruntime's own arena on paper: how large it must be for a sequence of allocations.

The arena (core/framework/bfc_arena.cc, after TensorFlow's and, before that, Doug Lea's) rounds sizes up to 256 bytes,
takes the smallest free piece that is large enough, the lowest of several, splits off what is left, and joins free
neighbours.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

UNIT = 256
"""Bytes to which the arena rounds sizes up."""

RUNS = 8
"""Runs after which an arena that serves the same run again and again grows no more, or hardly."""


class FreePieces:
    """The free pieces of a space, found by size and by either end."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []  # (size, start)
        self._ends: dict[int, int] = {}  # start -> end
        self._starts: dict[int, int] = {}  # end -> start

    def _take(self, start: int, end: int) -> None:
        self._free.pop(bisect.bisect_left(self._free, (end - start, start)))
        del self._ends[start], self._starts[end]

    def _give(self, start: int, end: int) -> None:
        bisect.insort(self._free, (end - start, start))
        self._ends[start], self._starts[end] = end, start


class BestFit(FreePieces):
    """Places allocations as the arena does, in a space without end.

    With the rest of the space as one piece that is larger than any other, it is the last choice of every allocation; so
    what is chosen does not depend on how large it is, and `highest` is what a space must have. Each step takes
    O(log n), but for the shifting of lists.
    """

    def __init__(self) -> None:
        super().__init__()
        self.highest = 0
        """End of the highest byte ever used."""
        self._top = 0
        """Where the rest of the space begins, which is not among the free pieces."""

    def allocate(self, size: int) -> tuple[int, int]:
        """Give start and end of a piece of at least `size` bytes."""
        size = -(-size // UNIT) * UNIT
        index = bisect.bisect_left(self._free, (size, -1))
        if index < len(self._free):
            length, start = self._free[index]
            self._take(start, start + length)
            if length > size:
                self._give(start + size, start + length)
        else:
            start = self._top
            self._top += size
            self.highest = max(self.highest, self._top)
        return start, start + size

    def free(self, start: int, end: int) -> None:
        """Take a piece back; it is joined with free neighbours."""
        if start in self._starts:
            start = self._starts[start]
            self._take(start, self._ends[start])
        if end in self._ends:
            last = self._ends[end]
            self._take(end, last)
            end = last
        if end == self._top:
            self._top = start
        else:
            self._give(start, end)


def arena_capacity(events: Iterable[int]) -> int:
    """Find the capacity that serves a sequence of allocations.

    Args:
        events: A positive number: so many bytes are allocated; a negative one, -(i + 1): allocation number i is freed.
    """
    fit = BestFit()
    placed: list[tuple[int, int]] = []
    for event in events:
        if event > 0:
            placed.append(fit.allocate(event))
        else:
            fit.free(*placed[-event - 1])
    return fit.highest


def repeated(events: Sequence[int], before: int, runs: int = RUNS) -> list[int]:
    """Give the allocations of several runs, one after the other, as a caller makes them who keeps the latest outputs.

    What a run does not free are its outputs: they are freed when the run after it has ended, as in a loop that assigns
    its results.

    Args:
        events: Of one run.
        before: How many allocations come before the first run: numbers go on from there.
        runs: How many runs.
    """
    count = sum(1 for e in events if e > 0)
    freed = {-e - 1 for e in events if e <= 0}
    kept = [n for n in range(count) if n not in freed]
    found: list[int] = []
    for run in range(runs):
        base = before + run * count
        found += [e if e > 0 else e - base for e in events]
        if run:
            found += [-(base - count + n) - 1 for n in kept]
    return found
