"""An allocator of ours inside onnxruntime: it records what a run allocates, or serves it at planned places."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

from memoptc.runtime.heap import available_bytes
from memoptc.runtime.memory.bfc import BestFit
from memoptc.runtime.native.capi import Alloc, Free, Info, OrtAllocator, api
from memoptc.runtime.native.refusal import RefusingAlloc
from memoptc.runtime.native.trace import END, FREE, LARGE, Block, Script, Trace

_POISON = 0xA5
"""As float32 about -2.9e-16, as int32 far out of any range: what reads it gives other numbers or fails."""

ALWAYS_MAPPED = 1 << 25
"""Bytes from which every allocation is, as a heap would do it: a mapping that cannot be had is said, and refused."""

ASKED_FOR = 1 << 28
"""Bytes from which on it is asked whether there are so many: pages are counted when they are used, too late."""

_immortal: list[Any] = []
"""Structures that onnxruntime may call as long as the process lives: a value may be freed after its session."""

_idle: list[TrackingAllocator] = []
"""Those among them whose sessions are closed, all of their memory freed: the next sessions take them."""


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
        self._begin()
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

    @classmethod
    def take(cls) -> TrackingAllocator:
        """Give one that no session uses."""
        try:
            found = _idle.pop()
        except IndexError:
            return cls()
        found._begin()
        return found

    def _begin(self) -> None:
        self.stop: Callable[[], None] = _nothing
        self.strict = False
        self.live_bytes = 0
        self.peak_bytes = 0
        self.over = self.refused = ""
        self.limit: int | None = None

    def leave(self) -> None:
        """Know that its session is closed."""
        self.stop = _nothing
        if not self._live:
            _idle.append(self)

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
        handed_out: frozenset[int] = frozenset(),
    ) -> Trace:
        """Record what happens during a call.

        Large buffers are mapped one by one, so that they leave with their pages when they are freed: a heap would keep
        them, and a recorded run take more memory than is alive. With a block they lie in that, best fit, as far as it
        reaches: pages that were touched before need not be made anew.

        Args:
            run: Runs, and gives the address of each output.
            block: Memory for large buffers, which nobody uses.
            handed_out: Numbers of allocations that do not lie in it, since their memory is handed out.
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
                start, end = (0, 0) if size < LARGE or len(pieces) in handed_out else fit.allocate(size)
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
            if sizes[step] == FREE and places[step] == place and not left:
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
    return {FREE: "a free", END: "the end"}.get(size, f"an allocation of {size} bytes")
