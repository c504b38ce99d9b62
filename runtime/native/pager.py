"""Weights that stream: a part of them in memory, the rest read from its file when a run comes to it.

Mappings of weight files are replaced by pages that are missing. Who touches one waits; a thread of ours reads the chunk
around it past the page cache, puts it there and lets it go on. The first chunks that runs touch stay: under a cyclic
scan, keeping any share saves reading that share, where keeping the latest saves nothing. The others pass through a
window, the oldest given back first, and what followed a chunk in the last run is read ahead of this one.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import mmap
import os
import select
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.native.file_mappings import FileMapping
from memoptc.runtime.native.userfault import PAGE, UserFaults, give_back, map_file

CHUNK = 1 << 20
"""Bytes that are read, kept and given back together."""
AHEAD = 4
"""Chunks that are read ahead of a run."""
WINDOW = 4
"""Chunks behind a run that stay, at least."""
_READER = "memoptc-read-ahead"
SMALLEST = CHUNK // 4
"""Bytes of a mapping that are worth it; smaller ones are left to the kernel."""


def least_window(threads: int) -> int:
    """Bytes of the smallest window: each thread of a kernel may be at the border of two chunks of its own."""
    return max(WINDOW, 2 * threads) * CHUNK


def least_limit(threads: int) -> int:
    """The smallest limit: buffers, the window, and a chunk that stays."""
    return (AHEAD + 2) * CHUNK + least_window(threads)


@dataclass(eq=False)
class Chunk:
    """Part of a weight.

    Args:
        start: Its first address.
        size: Bytes, whole pages.
        file: Descriptor of its file.
        offset: In the file.
        run: Number of the run that read it last.
        follows: The chunk that was touched after it, last time.
    """

    start: int
    size: int
    file: int
    offset: int
    run: int = -1
    follows: Chunk | None = None


@dataclass
class Traffic:
    """Reads of streamed weights, and the memory they took.

    Args:
        faults: Chunks that a run waited for.
        ahead: Those among them that had been read ahead.
        bytes: Bytes read.
        again: Chunks that were read twice in one run: its window was too small.
        peak_bytes: Most bytes of weights in memory at once, buffers included.
        pinned_bytes: Bytes of weights that stay between runs.
    """

    faults: int = 0
    ahead: int = 0
    bytes: int = 0
    again: int = 0
    peak_bytes: int = 0
    pinned_bytes: int = 0


class _ReadError(Exception):
    def __init__(self, error: OSError, buffer: mmap.mmap) -> None:
        super().__init__(str(error))
        self.error, self.buffer = error, buffer


class Pager:
    """Streams mapped weights; at most `limit` bytes of them are in memory, buffers for reading included.

    Args:
        mappings: Of the weights; replaced at once.
        limit: Bytes.
        threads: Threads of a kernel.

    Raises:
        Unsupported: the system does not let a program fill its own pages.
        InputError: the limit is too small.
    """

    def __init__(self, mappings: Iterable[FileMapping], limit: int, threads: int) -> None:
        least, self._window_least = least_limit(threads), least_window(threads)
        if limit < least:
            raise InputError(
                f"weight_limit={limit} is too small for {threads} threads.",
                hint=f"Give at least {least} bytes, or fewer threads=.",
            )
        self.traffic = Traffic()
        self.limit = limit
        self._error: Exception | None = None
        self._failures = self._again = 0
        self._unread: list[Chunk] = []
        """Chunks that are zeros, as they could not be read."""
        self._faults = UserFaults()
        self._files: dict[str, tuple[int, int]] = {}
        self._mappings = [m for m in mappings if m.end - m.start >= SMALLEST]
        self._chunks: list[Chunk] = []
        self._run = 0
        self._closed = False
        self._pinned: dict[Chunk, None] = {}
        self._window: OrderedDict[Chunk, None] = OrderedDict()
        """The oldest first."""
        self._window_bytes = 0
        self._window_most = self._window_least
        self._staged: OrderedDict[Chunk, Future[mmap.mmap]] = OrderedDict()
        self._free = [mmap.mmap(-1, CHUNK) for _ in range(AHEAD + 1)]
        self._latest: Chunk | None = None
        self._lock = threading.Lock()
        self._stop, self._stopped = os.pipe()
        self._reader = ThreadPoolExecutor(1, _READER)
        for mapping in self._mappings:
            self._replace(mapping)
        self._chunks.sort(key=lambda c: c.start)
        self._starts = [c.start for c in self._chunks]
        self._thread = threading.Thread(target=self._serve, name="memoptc-pager", daemon=True)
        self._thread.start()

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights in memory now, buffers included."""
        return self.traffic.pinned_bytes + self._window_bytes + (AHEAD + 1) * CHUNK

    def begin_run(self) -> int:
        """Know that a run begins; give what `check` is to be told at its end."""
        with self._lock:
            self._run += 1
            if not self._again:
                self._window_most = max(self._window_least, self._window_most * 7 // 8)
            self._again = 0
            for chunk in self._unread:
                self._forget(chunk)
            self._unread.clear()
            return self._failures

    def check(self, failures: int) -> None:
        """Raise if weights could not be read since a run began: what it computed is wrong.

        Raises:
            InputError: they could not.
        """
        if self._failures != failures:
            raise InputError(f"Weights cannot be read: {self._error}.", hint="See whether the model's files are whole.")

    def _replace(self, mapping: FileMapping) -> None:
        if mapping.path not in self._files:
            self._files[mapping.path] = _opened(mapping.path)
        direct, _ = self._files[mapping.path]
        self._faults.replace(mapping.start, mapping.end - mapping.start)
        for at in range(mapping.start, mapping.end, CHUNK):
            size = min(CHUNK, mapping.end - at)
            self._chunks.append(Chunk(at, size, direct, mapping.offset + at - mapping.start))

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._faults.descriptor, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while not self._closed:
            if any(descriptor == self._stop for descriptor, _ in poll.poll()):
                return
            for address in self._faults.faults():
                chunk = self._chunks[bisect.bisect_right(self._starts, address) - 1]
                with self._lock:
                    try:
                        self._serve_one(chunk)
                        self._look_ahead(chunk)
                    except Exception as error:  # who waits must go on, whatever it is: `check` raises then
                        self._give_up(chunk, error)

    def _serve_one(self, chunk: Chunk) -> None:
        """Put a chunk in its place."""
        if chunk in self._pinned or chunk in self._window:
            self._faults.wake(chunk.start, chunk.size)
            return
        self.traffic.faults += 1
        if self._latest is not None:
            self._latest.follows = chunk
        self._latest = chunk
        if chunk.run == self._run:
            self._again += 1
            self.traffic.again += 1
            self._widen()
        chunk.run = self._run
        self._make_room(chunk)
        ahead = self._staged.pop(chunk, None)
        self.traffic.ahead += ahead is not None
        try:
            buffer = self._read(chunk, self._free.pop()) if ahead is None else ahead.result()
        except _ReadError as failed:
            self._free.append(failed.buffer)
            self._give_up(chunk, failed.error)
            return
        self._faults.fill(chunk.start, _address(buffer), chunk.size)
        self._free.append(buffer)

    def _give_up(self, chunk: Chunk, error: Exception) -> None:
        """Let those go on who wait for what cannot be read."""
        self._error, self._failures = error, self._failures + 1
        self._unread.append(chunk)
        self._faults.fill_zeros(chunk.start, chunk.size)

    def _forget(self, chunk: Chunk) -> None:
        """Give a chunk back, wherever it stands."""
        if chunk in self._pinned:
            del self._pinned[chunk]
            self.traffic.pinned_bytes -= chunk.size
        elif chunk in self._window:
            del self._window[chunk]
            self._window_bytes -= chunk.size
        give_back(chunk.start, chunk.size)

    def _widen(self) -> None:
        """A run came back to what it had given back: more of what it uses must stay, and less of the pinned share."""
        most = self.limit - (AHEAD + 2) * CHUNK
        self._window_most = min(most, self._window_most + max(CHUNK, self._window_most // 8))
        while self._pinned and self._pinned_most < self.traffic.pinned_bytes:
            chunk, _ = self._pinned.popitem()
            self.traffic.pinned_bytes -= chunk.size
            self._window[chunk] = None
            self._window.move_to_end(chunk, last=False)
            self._window_bytes += chunk.size

    @property
    def _pinned_most(self) -> int:
        return self.limit - (AHEAD + 1) * CHUNK - self._window_most

    def _make_room(self, chunk: Chunk) -> None:
        if self.traffic.pinned_bytes + chunk.size <= self._pinned_most:
            self._pinned[chunk] = None
            self.traffic.pinned_bytes += chunk.size
        else:
            self._window[chunk] = None
            self._window_bytes += chunk.size
        while self._window_bytes > self._window_most and len(self._window) > 1:
            oldest, _ = self._window.popitem(last=False)
            self._window_bytes -= oldest.size
            give_back(oldest.start, oldest.size)
        self.traffic.peak_bytes = max(self.traffic.peak_bytes, self.resident_bytes)

    def _look_ahead(self, chunk: Chunk) -> None:
        """Read what is to come."""
        following, seen = chunk.follows, 0
        while following is not None and seen < AHEAD:
            seen += 1
            if following not in self._pinned and following not in self._window and following not in self._staged:
                if not self._free[1:] and not self._drop_staged():
                    return
                self._staged[following] = self._reader.submit(self._read, following, self._free.pop())
            following = following.follows

    def _drop_staged(self) -> bool:
        """Take the buffer of what was read ahead first: the run went another way."""
        if len(self._staged) < AHEAD:
            return False
        oldest, future = next(iter(self._staged.items()))
        if not future.done():
            return False
        del self._staged[oldest]
        try:
            self._free.append(future.result())
        except _ReadError as failed:
            self._free.append(failed.buffer)
        return True

    def _read(self, chunk: Chunk, buffer: mmap.mmap) -> mmap.mmap:
        try:
            with memoryview(buffer) as view, view[: chunk.size] as part:
                count = os.preadv(chunk.file, [part], chunk.offset)
            if count < chunk.size - PAGE + 1:
                raise OSError(5, "a file is shorter than it was")
        except OSError as error:
            raise _ReadError(error, buffer) from None
        self.traffic.bytes += count
        return buffer

    def close(self) -> None:
        """Map the files again as they were: before the weights are unmapped, while nothing runs."""
        self._closed = True
        os.write(self._stopped, b"x")
        here = threading.current_thread()  # that of the garbage collector, which may be one of ours
        if here is not self._thread:
            self._thread.join()
        self._reader.shutdown(wait=not here.name.startswith(_READER))
        for mapping in self._mappings:
            _, plain = self._files[mapping.path]
            with contextlib.suppress(OSError):
                map_file(mapping.start, mapping.end - mapping.start, plain, mapping.offset)
        self._faults.close()
        for direct, plain in self._files.values():
            os.close(direct)
            os.close(plain)
        for descriptor in (self._stop, self._stopped):
            os.close(descriptor)
        self._free.clear()
        self._staged.clear()


def _opened(path: str) -> tuple[int, int]:
    """Open a file to be read past the page cache, where that can be had, and to be mapped."""
    plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT), plain
    except OSError:  # some file systems have no such thing
        return os.dup(plain), plain


def _address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
