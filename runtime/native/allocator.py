"""An allocator of ours inside onnxruntime: it records what a run allocates, or serves it at planned places."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from memoptc.runtime.heap import available_bytes
from memoptc.runtime.memory.bfc import BestFit
from memoptc.runtime.memory.problem import ALIGNMENT, Buffer, Problem
from memoptc.runtime.native.capi import Alloc, Free, Info, OrtAllocator, api
from memoptc.runtime.native.refusal import RefusingAlloc

if TYPE_CHECKING:
    import numpy.typing as npt

OVERRUN = 64
"""Bytes kept behind a block: vectorized kernels of onnxruntime may read up to 30 bytes past their operands."""

_POISON = 0xA5
"""As float32 about -2.9e-16, as int32 far out of any range: what reads it gives other numbers or fails."""

LARGE = 1 << 12
"""Bytes from which an allocation is mapped by itself, where it is recorded or handed out."""

ALWAYS_MAPPED = 1 << 25
"""Bytes from which every allocation is, as a heap would do it: a mapping that cannot be had is said, and refused."""

ASKED_FOR = 1 << 28
"""Bytes from which on it is asked whether there are so many: pages are counted when they are used, too late."""

RELEASED = 1 << 20
"""Bytes from which an output that is mapped by itself takes the place of pages of the block that the run is done with:
making such pages anew in the next run takes about a millisecond for 4 MB."""

_FREE, _END = -1, -2
"""Events of a script that are no allocation: no size equals them."""

_OWN = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
"""Memory of this process alone: what `mmap` maps by default is shared with children, and counts as a file's."""

_DISCARD = mmap.MADV_DONTNEED if sys.platform == "linux" else None
"""Advice after which private pages are free; elsewhere than on Linux the kernel may keep them."""

_immortal: list[Any] = []
"""Structures that onnxruntime may call as long as the process lives: a value may be freed after its session."""


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
        self._memory = mmap.mmap(-1, size + OVERRUN + ALIGNMENT, **_OWN)
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
        apart: Numbers of allocations that are mapped by themselves, outputs that the caller gets: they have no offset.
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
        apart: frozenset[int] = frozenset(),
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
                places.append(0 if number in apart or number in bound else block.base + next(remaining))
                if number not in bound:
                    if event >= RELEASED and not places[-1]:
                        steps[len(self.sizes)] = number
                    self._add(event, places[-1], 0)
            elif places[-event - 1]:
                self._add(_FREE, places[-event - 1], trace.sizes[-event - 1])
        if not poison:
            self.freed = []
        self.sizes.append(_END)
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


class TrackingAllocator:
    """The allocator of one session, registered with onnxruntime while the session is made.

    It works in one of three ways: plainly on the heap, recording, or following a script. An allocation that the
    script does not foresee is served by the heap, and so is every one after it; onnxruntime never sees a null
    pointer, which it does not survive. What is more than there is is refused: `refused` says so, and the run ends with
    an error, where `can_refuse`.

    `limit` bounds the bytes alive on the heap. What passes it is served nevertheless, `over` then says so, and `stop`
    is called, which should end the run before its next node. `stop` is called, too, when a script is left and
    `strict` is set.
    """

    def __init__(self) -> None:
        self.stop: Callable[[], None] = _nothing
        self.strict = False
        self.live_bytes = 0
        self.peak_bytes = 0
        self.over = self.refused = ""
        self.limit: int | None = None
        self._live: dict[int, int] = {}
        self._mapped: dict[int | None, Block] = {}
        a = api()
        self._heap, self._heap_alloc, self._heap_free = a.allocator, a.heap_alloc, a.heap_free
        info = a.memory_info.value
        self.struct = OrtAllocator(version=18)
        self.struct.Info = Info(lambda _: info)
        self._plain = (Alloc(self._alloc), Free(self._free))
        self._refusing: RefusingAlloc | None = None
        with contextlib.suppress(OSError):
            self._refusing = RefusingAlloc(self._heap, self._heap_alloc)
            self.struct.Alloc = self.struct.Reserve = self._refusing.function
        self._use(*self._plain)
        _immortal.append((self.struct, self._plain, self._refusing))

    @property
    def can_refuse(self) -> bool:
        """True if what is more than there is ends a run, and not the process."""
        return self._refusing is not None

    def _alloc(self, _: int | None, size: int) -> int | None:
        if size >= ALWAYS_MAPPED and self.can_refuse:
            return self._map(size)
        place: int | None = self._heap_alloc(self._heap, size)
        if place:
            self._count(place, size)
        return place

    def _count(self, place: int, size: int) -> None:
        self._live[place] = size
        self._hold(size)

    def _hold(self, size: int) -> None:
        self.live_bytes += size
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
        if self.limit is not None and self.live_bytes > self.limit and not self.over:
            self.over = f"{self.live_bytes} bytes would be alive at once"
            self.stop()

    def _free(self, _: int | None, place: int | None) -> None:
        size = self._live.pop(place or 0, None)
        if size is None:
            return  # a null pointer, or a place inside of a block
        self.live_bytes -= size
        if self._mapped.pop(place, None) is None:
            self._heap_free(self._heap, place)

    def _map(self, size: int) -> int:
        """Give the address of a mapping of its own, which leaves with its pages when it is freed; 0 for none."""
        there = available_bytes() if size >= ASKED_FOR and self.can_refuse else None
        try:
            if there is not None and size > there:
                raise MemoryError
            block = Block(size)
        except (OSError, OverflowError, MemoryError):  # an exception would be lost between onnxruntime and here
            if size < ALWAYS_MAPPED or not self.can_refuse:
                return self._alloc(None, size) or 0  # no more mappings
            free = "" if there is None else f", and {there} bytes are available"
            self.refused = f"An operator asks for {size} bytes{free}"
            return 0
        self._mapped[block.base] = block
        self._count(block.base, size)
        return block.base

    def mapped(self, place: int) -> Block | None:
        """Give the mapping that begins at an address, if it is one."""
        return self._mapped.get(place)

    def record(
        self,
        run: Callable[[], dict[str, int]],
        block: Block | None = None,
        apart: frozenset[int] = frozenset(),
    ) -> Trace:
        """Record what happens during a call.

        Large buffers are mapped one by one, so that they leave with their pages when they are freed: a heap would keep
        them, and a recorded run take more memory than is alive. With a block they lie in that, best fit, as far as it
        reaches: pages that were touched before need not be made anew.

        Args:
            run: Runs, and gives the address of each output.
            block: Memory for large buffers, which nobody uses.
            apart: Numbers of allocations that do not lie in it, since their memory is handed out.
        """
        events: list[int] = []
        numbers: dict[int, int] = {}
        plain_alloc, plain_free = self._alloc, self._free
        fit = BestFit()
        pieces: list[tuple[int, int]] = []
        inside: dict[int, int] = {}
        lock = threading.Lock()
        base, end_of_block = (block.base, block.size) if block is not None else (0, 0)

        def alloc(this: int | None, size: int) -> int | None:
            with lock:
                start, end = (0, 0) if size < LARGE or len(pieces) in apart else fit.allocate(size)
                place: int | None
                if size < LARGE:
                    place = plain_alloc(this, size)
                elif start < end <= end_of_block:
                    place = base + start
                    inside[place] = size
                    self._hold(size)
                else:
                    place = self._map(size)
                if place:
                    numbers[place] = len(pieces)
                    pieces.append((start, end))
                    events.append(size)
                return place

        def free(this: int | None, place: int | None) -> None:
            with lock:
                number = numbers.pop(place or 0, None)
                if number is not None:
                    events.append(-number - 1)
                    if pieces[number][1]:
                        fit.free(*pieces[number])
                size = inside.pop(place or 0, None)
                if size is not None:
                    self.live_bytes -= size
                    return
                plain_free(this, place)

        with self._functions(alloc, free):
            try:
                outputs = run()
            finally:
                self.live_bytes -= sum(inside.values())  # outputs, which are read before the block is used again
        found = {name: numbers[place] for name, place in outputs.items() if place in numbers}
        return Trace(tuple(events), found, fit.highest)

    def replay(self, script: Script, run: Callable[[], Any]) -> str:
        """Run with every allocation at its planned place.

        Returns:
            What left the plan: empty when nothing did.
        """
        sizes, places, done = script.sizes, script.places, script.done
        low, high = script.block.base, script.block.base + script.block.size
        plain_alloc, plain_free = self._alloc, self._free
        step = 0
        left = ""

        def alloc(this: int | None, size: int) -> int | None:
            nonlocal step
            if sizes[step] == size and not left:
                for start, end in done.get(step, ()):
                    script.block.release(start, end)
                step += 1
                return places[step - 1] or self._map(size)
            if size:
                leave(f"{size} bytes were asked for")
            return plain_alloc(this, size)

        def free(this: int | None, place: int | None) -> None:
            nonlocal step
            if sizes[step] == _FREE and places[step] == place and not left:
                step += 1
            elif place and low <= place < high:
                leave("a buffer was freed")
            else:
                plain_free(this, place)

        def leave(what: str) -> None:
            nonlocal left
            if not left:
                left = f"event {step + 1} of {len(sizes) - 1} is {_event(sizes[step])}, but {what}"
                if self.strict:
                    self.stop()

        def alloc_poisoned(this: int | None, size: int) -> int | None:
            place = alloc(this, size)
            if not left and place:
                ctypes.memset(place, _POISON, size)
            return place

        def free_poisoned(this: int | None, place: int | None) -> None:
            before = step
            free(this, place)
            if step > before and place:
                ctypes.memset(place, _POISON, script.freed[before])

        try:
            with self._functions(*((alloc_poisoned, free_poisoned) if script.freed else (alloc, free))):
                run()
        except Exception as error:
            if left and self.strict:
                return left
            raise error
        if not left and step != len(sizes) - 1:
            left = f"the run ended after {step} of {len(sizes) - 1} events"
        return left

    @contextlib.contextmanager
    def _functions(self, alloc: Callable[..., Any], free: Callable[..., Any]) -> Iterator[None]:
        """Other functions for a while: onnxruntime reads the structure at every call."""
        self._use(Alloc(alloc), Free(free))
        try:
            yield
        finally:
            self._use(*self._plain)

    def _use(self, alloc: Any, free: Any) -> None:
        if self._refusing is not None:
            self._refusing.call(alloc)
        else:
            self.struct.Alloc = self.struct.Reserve = alloc
        self.struct.Free = free


def _nothing() -> None:
    pass


def _event(size: int) -> str:
    return {_FREE: "a free", _END: "the end"}.get(size, f"an allocation of {size} bytes")
