"""Recorded allocations of one run, and the script of offsets that serves later runs from them."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from memoptc.runtime.memory.problem import ALIGNMENT, Buffer, Problem

if TYPE_CHECKING:
    import numpy.typing as npt

OVERRUN = 64
"""Bytes kept behind a block: vectorized kernels of onnxruntime may read up to 30 bytes past their operands."""

LARGE = 1 << 12
"""Bytes from which an allocation is mapped by itself, where it is recorded or handed out."""

RELEASED = 1 << 20
"""Bytes from which an output that is mapped by itself takes the place of pages of the block that the run is done with:
making such pages anew in the next run takes about a millisecond for 4 MB."""

FREE, END = -1, -2
"""Events of a script that are no allocation: no size equals them."""

PRIVATE_MAPPING = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
"""Memory of this process alone: what `mmap` maps by default is shared with children, and counts as a file's."""

HUGE = 1 << 22
"""Bytes from which a block asks for pages of 2 MB, where the system gives them to who asks: kernels that stream over
tensors spend less time on looking up pages, and touching a block for the first time is faster."""

_DISCARD = mmap.MADV_DONTNEED if sys.platform == "linux" else None
"""Advice after which private pages are free; elsewhere than on Linux the kernel may keep them."""


@dataclass(frozen=True)
class Trace:
    """Allocations of one run, in order.

    Args:
        events: A positive number: so many bytes were allocated. A negative one, -(i + 1): allocation number i
            was freed.
        outputs: Numbers of the allocations that the run's outputs lie in, by output name.
        best_fit_bytes: Bytes that hold all large allocations, best fit, one after the other as they come.
    """

    events: tuple[int, ...]
    outputs: dict[str, int]
    best_fit_bytes: int = 0

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each allocation."""
        return tuple(e for e in self.events if e > 0)

    @cached_property
    def curve(self) -> list[int]:
        """Bytes alive after each event."""
        alive, found = 0, []
        for event in self.events:
            alive += event if event > 0 else -self.sizes[-event - 1]
            found.append(alive)
        return found

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once: outputs and workspace of kernels included, inputs and weights not."""
        return max(self.curve, default=0)

    def problem(self, names: Sequence[str] = ()) -> Problem:
        """Give the allocations as buffers to place; the steps are the events.

        Args:
            names: Of the allocations; their numbers when not given.
        """
        first: list[int] = []
        last = [len(self.events) - 1] * len(self.sizes)
        for step, event in enumerate(self.events):
            if event > 0:
                first.append(step)
            else:
                last[-event - 1] = step - 1
        return Problem(
            tuple(
                Buffer(names[i] if names else str(i), -(-size // ALIGNMENT) * ALIGNMENT, a, b, ALIGNMENT)
                for i, (size, a, b) in enumerate(zip(self.sizes, first, last, strict=True))
            )
        )

    def without(self, dropped: frozenset[int]) -> Trace:
        """Give the trace of a run whose given allocations are served by somebody else."""
        renumbered: dict[int, int] = {}
        events: list[int] = []
        number = 0
        for event in self.events:
            if event > 0:
                if number not in dropped:
                    renumbered[number] = len(renumbered)
                    events.append(event)
                number += 1
            elif -event - 1 not in dropped:
                events.append(-renumbered[-event - 1] - 1)
        return Trace(tuple(events), {n: renumbered[i] for n, i in self.outputs.items() if i not in dropped})


class Block:
    """One piece of memory, aligned, with room behind it for reads past an operand.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, size + OVERRUN + ALIGNMENT, **PRIVATE_MAPPING)
        if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel built without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        raw = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.base = -(-raw // ALIGNMENT) * ALIGNMENT
        self._start = self.base - raw

    def release(self, start: int, end: int) -> None:
        """Give pages back to the system, as far as it can be told: the bytes between two addresses are zeros then."""
        if _DISCARD is not None:
            raw = self.base - self._start
            self._memory.madvise(_DISCARD, start - raw, end - start)

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Give an array over the block's first bytes; the memory stays as long as it does."""
        count = math.prod(shape)
        return np.frombuffer(self._memory, dtype, count, self._start).reshape(tuple(shape))


class Script:
    """Allocations and releases that a run is expected to make, and the place of each allocation.

    Args:
        trace: The events.
        offsets: One per allocation, in bytes from the start of the block.
        block: Where they lie.
        handed_out: Numbers of allocations that are mapped by themselves, outputs for the caller: they have no offset.
        bound: Numbers of allocations that are not made, since the caller gives the memory: they have no offset.
        poison: Overwrite buffers with 0xA5 when they are handed out and when they are freed: for proof that a run
            reads nothing that it has not written.
    """

    def __init__(
        self,
        trace: Trace,
        offsets: Sequence[int],
        block: Block,
        *,
        handed_out: frozenset[int] = frozenset(),
        bound: frozenset[int] = frozenset(),
        poison: bool = False,
    ) -> None:
        remaining = iter(offsets)
        places: list[int] = []
        self.block = block
        self.freed: list[int] = []
        """With `poison`: bytes that the event frees."""
        self.sizes: list[int] = []
        self.places: list[int] = []
        """Where each event's buffer lies; 0 for one that is mapped by itself."""
        steps: dict[int, int] = {}
        for event in trace.events:
            if event > 0:
                number = len(places)
                places.append(0 if number in handed_out or number in bound else block.base + next(remaining))
                if number not in bound:
                    if event >= RELEASED and not places[-1]:
                        steps[len(self.sizes)] = number
                    self._add(event, places[-1], 0)
            elif places[-event - 1]:
                self._add(FREE, places[-event - 1], trace.sizes[-event - 1])
        if not poison:
            self.freed = []
        self.sizes.append(END)
        self.places.append(0)
        self.done = {step: _done_with(block, trace, places, number) for step, number in steps.items()}
        """Event that maps an output -> addresses, start and end, of pages that the run is done with by then: as many as
        the output takes, so that a process holds either."""

    def _add(self, size: int, place: int, freed: int) -> None:
        self.sizes.append(size)
        self.places.append(place)
        self.freed.append(freed)


def _done_with(block: Block, trace: Trace, places: Sequence[int], number: int) -> list[tuple[int, int]]:
    """Find pages of a block in which nothing lies from an allocation on until the end of the run.

    Args:
        block: The block.
        trace: The run.
        places: Where each of its allocations lies; 0 outside of the block.
        number: The allocation; of the pages as many are given as its bytes take, the largest pieces first.
    """
    made = [event for event in range(len(trace.events)) if trace.events[event] > 0]
    ended = {-event - 1: index for index, event in enumerate(trace.events) if event <= 0}
    at, left = made[number], trace.sizes[number]
    taken = sorted(
        (places[i], places[i] + size)
        for i, size in enumerate(trace.sizes)
        if places[i] and ended.get(i, len(trace.events)) > at
    )
    gaps, start = [], block.base
    for low, high in [*taken, (block.base + block.size, block.base + block.size)]:
        begin, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, low // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            gaps.append((end - begin, begin))
        start = max(start, high)
    found = []
    for length, begin in sorted(gaps, reverse=True):
        length = min(length, -(-left // mmap.PAGESIZE) * mmap.PAGESIZE)
        if length <= 0:
            break
        found.append((begin, begin + length))
        left -= length
    return found
