"""Ways to turn an order into offsets. Each gives a valid placement for whatever order it gets."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence

import numpy as np

from memoptc.runtime.memory.overlap import FewOverlaps, Overlaps
from memoptc.runtime.memory.problem import Buffer

FEW = 48
"""Up to this many neighbours a Python loop is faster than numpy."""

KEEP_LISTS = 100_000
"""With at most this many pairs the neighbours are kept as lists, about 2 MB."""


class Failed(Exception):
    """A placement crossed its cap; `index` is the buffer that did, `reached` how many were placed before."""

    def __init__(self, index: int, reached: int) -> None:
        super().__init__(index)
        self.index = index
        self.reached = reached


def first_fit(
    buffers: Sequence[Buffer],
    overlaps: Overlaps | FewOverlaps,
    order: Sequence[int],
    *,
    tightest: bool = False,
    cap: int | None = None,
) -> list[int]:
    """Place buffers one after the other at the lowest offset that is free over their whole life.

    Costs O(d log d) for a buffer with d neighbours.

    Args:
        buffers: What to place; those with a fixed offset are placed first, whatever the order says.
        overlaps: Their overlaps.
        order: Indices of all buffers.
        tightest: Take the smallest gap that fits instead of the lowest.
        cap: Bytes that no buffer may end above.

    Raises:
        Failed: one would end above the cap.
    """
    offset, end = [-1] * len(buffers), [0] * len(buffers)
    few = isinstance(overlaps, FewOverlaps)
    offsets, ends = np.full(0 if few else len(buffers), -1, np.int64), np.zeros(0 if few else len(buffers), np.int64)
    lists = overlaps.lists() if overlaps.pairs <= KEEP_LISTS else None

    def put(index: int, start: int) -> None:
        offset[index], end[index] = start, start + buffers[index].size
        if not few:
            offsets[index], ends[index] = offset[index], end[index]

    for index, b in enumerate(buffers):
        if b.offset is not None:
            put(index, b.offset)
    for reached, index in enumerate(order):
        if offset[index] >= 0:
            continue
        near = lists[index] if lists is not None else overlaps.neighbours(index)
        if few or len(near) <= FEW:
            taken = sorted([(offset[j], end[j]) for j in near if offset[j] >= 0])
            start = _gap(taken, buffers[index].size, buffers[index].alignment, tightest)
        else:
            start = _gap_vectorised(offsets[near], ends[near], buffers[index].size, buffers[index].alignment, tightest)
        if cap is not None and start + buffers[index].size > cap:
            raise Failed(index, reached)
        put(index, start)
    return offset


def _gap(taken: Sequence[tuple[int, int]], size: int, alignment: int, tightest: bool) -> int:
    top = start = 0
    best, room = -1, -1
    for low, high in taken:
        if low - start >= size:
            if not tightest:
                return start
            if room < 0 or low - start < room:
                best, room = start, low - start
        if high > top:
            top = high
            start = -(-top // alignment) * alignment
    return best if best >= 0 else start


def _gap_vectorised(
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]],
    ends: np.ndarray[tuple[int], np.dtype[np.int64]],
    size: int,
    alignment: int,
    tightest: bool,
) -> int:
    placed = offsets >= 0
    low, high = offsets[placed], ends[placed]
    by_offset = np.argsort(low, kind="stable")
    low, high = low[by_offset], np.maximum.accumulate(high[by_offset])
    starts = np.concatenate((np.zeros(1, np.int64), -(-high // alignment) * alignment))
    fits = np.flatnonzero(low - starts[:-1] >= size)
    if not len(fits):
        return int(starts[-1])
    chosen = fits[np.argmin((low - starts[:-1])[fits])] if tightest else fits[0]
    return int(starts[chosen])


def lowest_first(buffers: Sequence[Buffer], overlaps: Overlaps | FewOverlaps, order: Sequence[int]) -> list[int]:
    """Always place the buffer that can lie lowest, on top of what is placed; `order` breaks ties.

    Offsets then never fall from one placement to the next. Some best placement can be had that way (let every
    buffer sink, then sort by offset), which is why minimalloc looks among these only (Moffitt, "MiniMalloc",
    ASPLOS 2023). It fills no holes, for it leaves few. No buffer may have a fixed offset.
    """
    rank = [0] * len(buffers)
    for place, index in enumerate(order):
        rank[index] = place
    lowest, done, offset = [0] * len(buffers), [False] * len(buffers), [0] * len(buffers)
    waiting = [(0, rank[i], i) for i in range(len(buffers))]
    heapq.heapify(waiting)
    lists = overlaps.lists() if overlaps.pairs <= KEEP_LISTS else None
    while waiting:
        start, _, index = heapq.heappop(waiting)
        if done[index] or start != lowest[index]:
            continue
        done[index], offset[index] = True, start
        end = start + buffers[index].size
        for other in lists[index] if lists is not None else map(int, overlaps.neighbours(index)):
            if not done[other] and lowest[other] < end:
                unit = buffers[other].alignment
                lowest[other] = -(-end // unit) * unit
                heapq.heappush(waiting, (lowest[other], rank[other], other))
    return offset


def by_time(buffers: Sequence[Buffer], *, backwards: bool = False) -> list[int]:
    """Do what a best-fit heap would: at each step free what has died, then take the tightest gap.

    Needs no table of overlaps: O(n log n) but for shifting the list of gaps. No buffer may have a fixed offset.

    Args:
        buffers: What to place.
        backwards: From the last step to the first, with deaths as births.
    """
    spans = [(-b.last, -b.first) if backwards else (b.first, b.last) for b in buffers]
    births = sorted(range(len(buffers)), key=lambda i: (spans[i][0], -buffers[i].size, i))
    deaths: list[tuple[int, int]] = []
    offset = [0] * len(buffers)
    gaps = _Gaps()
    for index in births:
        while deaths and deaths[0][0] < spans[index][0]:
            _, dead = heapq.heappop(deaths)
            gaps.free(offset[dead], offset[dead] + buffers[dead].size)
        offset[index] = gaps.take(buffers[index].size, buffers[index].alignment)
        heapq.heappush(deaths, (spans[index][1], index))
    return offset


class _Gaps:
    """Free space below `top`: gaps by start, and by size."""

    def __init__(self) -> None:
        self.top = 0
        self.ends: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.by_size: list[tuple[int, int]] = []

    def take(self, size: int, alignment: int) -> int:
        place = bisect.bisect_left(self.by_size, (size, 0))
        while place < len(self.by_size):
            room, low = self.by_size[place]
            start = -(-low // alignment) * alignment
            if start + size <= low + room:
                self._drop(low)
                self._add(low, start)
                self._add(start + size, low + room)
                return start
            place += 1
        # Nothing fits: grow, from the gap that touches the top where there is one.
        low = self.starts.get(self.top, self.top)
        start = -(-low // alignment) * alignment
        if low < self.top:
            self._drop(low)
        self._add(low, start)
        self.top = start + size
        return start

    def free(self, low: int, high: int) -> None:
        if high in self.ends:
            after = self.ends[high]
            self._drop(high)
            high = after
        if low in self.starts:
            before = self.starts[low]
            self._drop(before)
            low = before
        self._add(low, high)

    def _add(self, low: int, high: int) -> None:
        if low < high:
            self.ends[low], self.starts[high] = high, low
            bisect.insort(self.by_size, (high - low, low))

    def _drop(self, low: int) -> None:
        high = self.ends.pop(low)
        del self.starts[high]
        del self.by_size[bisect.bisect_left(self.by_size, (high - low, low))]
