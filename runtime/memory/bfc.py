"""onnxruntime's own arena on paper: how large it must be for a sequence of allocations.

The arena (core/framework/bfc_arena.cc, after TensorFlow's and, before that, Doug Lea's) rounds sizes up to 256 bytes,
takes the smallest free piece that is large enough, the lowest of several, splits off what is left, and joins free
neighbours.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

UNIT = 256
"""Bytes to which the arena rounds sizes up."""


def arena_capacity(events: Iterable[int]) -> int:
    """Find the capacity that serves a sequence of allocations. O(n log n) but for the shifting of lists.

    With the rest of the arena as one piece that is larger than any other, it is the last choice of every allocation;
    so what is chosen does not depend on how large it is, and the highest byte ever used is what is needed.

    Args:
        events: A positive number: so many bytes are allocated; a negative one, -(i + 1): allocation number i is freed.
    """
    free: list[tuple[int, int]] = []  # (size, start), without the rest
    ends: dict[int, int] = {}  # start -> end of free pieces
    starts: dict[int, int] = {}  # end -> start of free pieces
    placed: list[tuple[int, int]] = []
    top = highest = 0

    def take(start: int, end: int) -> None:
        free.pop(bisect.bisect_left(free, (end - start, start)))
        del ends[start], starts[end]

    def give(start: int, end: int) -> None:
        bisect.insort(free, (end - start, start))
        ends[start], starts[end] = end, start

    for event in events:
        if event > 0:
            size = -(-event // UNIT) * UNIT
            index = bisect.bisect_left(free, (size, -1))
            if index < len(free):
                length, start = free[index]
                take(start, start + length)
                if length > size:
                    give(start + size, start + length)
            else:
                start = top
                top += size
                highest = max(highest, top)
            placed.append((start, start + size))
        else:
            start, end = placed[-event - 1]
            if start in starts:
                start = starts[start]
                take(start, ends[start])
            if end in ends:
                last = ends[end]
                take(end, last)
                end = last
            if end == top:
                top = start
            else:
                give(start, end)
    return highest
