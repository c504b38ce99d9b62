"""onnxruntime's default arena on paper: regions that grow, pieces that are not split, and which bytes get touched.

`bfc` sizes one block for a sequence; this module simulates the arena of a session that nobody configured
(core/framework/bfc_arena.cc): each region is twice the one before, a piece is split only where much would be left,
and a book of handles is kept beside each region. The process pays for what was touched: memory that a region has and
nobody wrote to is not resident.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from memoptc.runtime.memory.bfc import UNIT, FreePieces

FIRST_REGION = 1 << 20
"""Bytes of the first region (`initial_chunk_size_bytes`)."""
LARGEST_DOUBLED = 1 << 30
"""Regions are powers of two up to here (`max_power_of_two_extend_bytes`), then as large as asked for."""
MOST_DEAD = 128 << 20
"""A piece is split when it is twice as large as asked for, or so much would be left (`max_dead_bytes_per_chunk`)."""
BOOK = 32
"""One byte of handles for so many bytes of a region, all written when the region is made."""
PAGE = 4096

_GAP = 1 << 20
"""Between regions: they never merge."""


class DefaultArena(FreePieces):
    """The arena of one session. Mapped regions lie below one another, so of equal pieces the newest is taken.

    Args:
        first: Bytes of the first region.
        doubling: Each region is twice the one before (`arena_extend_strategy` 0); else as large as what is asked for.
        split: Pieces are split to size (`max_dead_bytes_per_chunk` 1); else only where much would be left.
    """

    def __init__(self, first: int = FIRST_REGION, *, doubling: bool = True, split: bool = False) -> None:
        super().__init__()
        self._doubling = doubling
        self._most_dead = 1 if split else MOST_DEAD
        self._next = max(UNIT, -(-first // UNIT) * UNIT)
        self._bottom = 1 << 50
        self._regions: dict[int, int] = {}
        self._region_ends: set[int] = set()
        self._touched: list[tuple[int, int]] = []
        self._placed: list[tuple[int, int]] = []

    def allocate(self, size: int, room: int = 0) -> int:
        """Allocate bytes and touch all of them; give the allocation's number.

        Args:
            size: The bytes.
            room: Bytes that a free piece must have which it does not fill exactly, where these are more.
        """
        rounded = max(1, -(-size // UNIT)) * UNIT
        exact = bisect.bisect_left(self._free, (rounded, -1))
        if room > rounded and (exact == len(self._free) or self._free[exact][0] != rounded):
            rounded = -(-room // UNIT) * UNIT
        index = bisect.bisect_left(self._free, (rounded, -1))
        if index == len(self._free):
            self._extend(rounded)
            index = bisect.bisect_left(self._free, (rounded, -1))
        length, start = self._free[index]
        self._take(start, start + length)
        if length >= 2 * rounded or length - rounded >= self._most_dead:
            self._give(start + rounded, start + length)
            length = rounded
        self._touch(start, start + max(size, 1))
        self._placed.append((start, start + length))
        return len(self._placed) - 1

    def free(self, number: int) -> None:
        """Free an allocation; neighbours that are free are joined within their region."""
        start, end = self._placed[number]
        if start in self._starts and start not in self._regions:
            before = self._starts[start]
            self._take(before, start)
            start = before
        if end in self._ends and end not in self._region_ends:
            after = self._ends[end]
            self._take(end, after)
            end = after
        self._give(start, end)

    def play(self, events: Iterable[int]) -> list[int]:
        """Serve a sequence: a positive number allocates so many bytes, -(i + 1) frees its allocation number i.

        Returns:
            Numbers of the allocations that it does not free.
        """
        first = len(self._placed)
        alive: dict[int, None] = {}
        for event in events:
            if event > 0:
                alive[self.allocate(event)] = None
            else:
                del alive[first - event - 1]
                self.free(first - event - 1)
        return list(alive)

    @property
    def resident_bytes(self) -> int:
        """Pages touched so far, and the regions' books."""
        pages = sum(-(-end // PAGE) * PAGE - start // PAGE * PAGE for start, end in self._touched)
        return pages + self.region_bytes // BOOK

    @property
    def region_bytes(self) -> int:
        """Bytes of address space of all regions."""
        return sum(end - start for start, end in self._regions.items())

    def _extend(self, needed: int) -> None:
        doubled = not self._doubling
        while self._doubling and needed > self._next:
            self._next *= 2
            doubled = True
        size = self._next if self._doubling and self._next <= LARGEST_DOUBLED else needed
        if not doubled:
            self._next *= 2
        self._bottom -= size + _GAP
        self._regions[self._bottom] = self._bottom + size
        self._region_ends.add(self._bottom + size)
        self._give(self._bottom, self._bottom + size)

    def _touch(self, start: int, end: int) -> None:
        touched = self._touched
        low = bisect.bisect_left(touched, (start, -1))
        if low and touched[low - 1][1] >= start:
            low -= 1
            start = min(start, touched[low][0])
        high = low
        while high < len(touched) and touched[high][0] <= end:
            end = max(end, touched[high][1])
            high += 1
        touched[low:high] = [(start, end)]


def pattern_bytes(events: Iterable[int]) -> int:
    """Size of the block into which onnxruntime packs a sequence for later runs, its memory pattern.

    It takes the smallest gap between living buffers that is large enough, else the end of the last one
    (core/framework/mem_pattern_planner.h).

    Args:
        events: As `DefaultArena.play` takes them.
    """
    living: list[tuple[int, int]] = []  # (offset, size)
    placed: list[tuple[int, int]] = []
    peak = 0
    for event in events:
        if event <= 0:
            living.remove(placed[-event - 1])
            continue
        size = -(-event // 64) * 64
        current, waste = 0, -1
        best = living[-1][0] + living[-1][1] if living else 0
        for offset, length in living:
            gap = offset - current
            if gap >= size and (waste < 0 or gap - size < waste):
                waste, best = gap - size, current
            current = max(current, offset + length)
        peak = max(peak, best + size)
        placed.append((best, size))
        bisect.insort(living, placed[-1])
    return peak
