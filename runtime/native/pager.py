"""Weights that stream: a part of them in memory, the rest read from its file when a run comes to it.

Mappings of weight files are replaced by pages that are missing. Who touches one waits; a thread of ours reads the chunk
around it past the page cache, puts it there and lets it go on. The first chunks that runs touch stay: under a cyclic
scan, keeping any share saves reading that share, where keeping the latest saves nothing. The others pass through a
window, the oldest given back first, and what followed a chunk in the last run is read ahead of this one.

That thread needs the interpreter, so no one may touch a weight while holding it. onnxruntime holds it in no part of a
run that reads weights: kernels, and the copy of a weight that is an output, run without it.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import mmap
import os
import select
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.native.file_mappings import FileMapping, changing
from memoptc.runtime.native.userfault import UserFaults, give_back, map_file, mark
from memoptc.runtime.native.weight_files import WeightFile

CHUNK = 1 << 20
"""Bytes that are read, kept and given back together."""
AHEAD = 4
"""Chunks that are read ahead of a run."""
WINDOW = 4
"""Chunks behind a run that stay, at least."""
_READER = "memoptc-read-ahead"
SMALLEST = CHUNK // 4
"""Bytes of a mapping from which it streams; smaller ones are read at once where they are few."""


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
        file: Its file.
        offset: In the file.
        run: Number of the run that read it last.
        follows: The chunk that was touched after it, last time.
    """

    start: int
    size: int
    file: WeightFile
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


@dataclass(frozen=True)
class _Read:
    """A buffer that was read into, and why that failed."""

    buffer: mmap.mmap
    error: Exception | None


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
        self._process = os.getpid()
        self._error: Exception | None = None
        self._failures = self._again = 0
        self._unread: list[Chunk] = []
        """Chunks that are zeros, as they could not be read."""
        self._files: dict[str, WeightFile] = {}
        self._mappings: list[FileMapping] = []
        self._chunks: list[Chunk] = []
        self._run = 0
        self._closed = self._ended = self._warned = False
        self._pinned: dict[Chunk, None] = {}
        self._window: OrderedDict[Chunk, None] = OrderedDict()
        """The oldest first."""
        self._window_bytes = 0
        self._window_most = self._window_least
        self._staged: OrderedDict[Chunk, Future[_Read]] = OrderedDict()
        self._free = [mmap.mmap(-1, CHUNK) for _ in range(AHEAD + 1)]
        self._latest: Chunk | None = None
        self._lock = threading.Lock()
        self._faults = UserFaults()
        try:
            self._take(sorted(mappings, key=lambda m: m.start))
        except BaseException:
            self._map_again()
            self._close_files()
            raise
        self._reader = ThreadPoolExecutor(1, _READER)
        self._starts = [c.start for c in self._chunks]
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="memoptc-pager", daemon=True)
        self._thread.start()

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights in memory now, buffers included."""
        return self.traffic.pinned_bytes + self._window_bytes + (AHEAD + 1) * CHUNK

    def begin_run(self) -> int:
        """Know that a run begins; give what `check` is to be told at its end.

        Raises:
            InputError: this process is a fork of the one whose weights stream.
        """
        if os.getpid() != self._process:
            raise InputError(
                "A session whose weights stream does not go on in a forked process.", hint="Open another one there."
            )
        if self._ended and not self._warned:
            self._warned = True
            warnings.warn(f"weights stream no longer, and take what they take: {self._error}", RuntimeWarning, 5)
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

    def _take(self, mappings: list[FileMapping]) -> None:
        """Put missing pages in the place of the mappings; small ones are filled at once, as far as they are few."""
        few = self._pinned_most // 2
        for mapping in mappings:
            size = mapping.end - mapping.start
            if size < SMALLEST and self.traffic.pinned_bytes + size > few:
                continue
            if mapping.path not in self._files:
                self._files[mapping.path] = WeightFile(mapping.path)
            file = self._files[mapping.path]
            if size < SMALLEST:
                read = self._read(chunk := Chunk(mapping.start, size, file, mapping.offset), self._free[0])
                if read.error is not None:
                    raise InputError(f"Weights cannot be read: {read.error}.") from None
            self._mappings.append(mapping)
            self._faults.replace(mapping.start, size)
            if size < SMALLEST:
                self._faults.fill(mapping.start, _address(self._free[0]), size)
                self._make_room(chunk)
                self._chunks.append(chunk)
                continue
            for at in range(mapping.start, mapping.end, CHUNK):
                part = min(CHUNK, mapping.end - at)
                self._chunks.append(Chunk(at, part, file, mapping.offset + at - mapping.start))

    def _serve(self) -> None:
        """Answer faults until the end. Without this thread, files are mapped as they were: nobody may wait for it."""
        try:
            self._serve_all()
        except Exception as error:
            self._error = error
            self._ended = True
            self._map_again()

    def _serve_all(self) -> None:
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
        read = self._read(chunk, self._free.pop()) if ahead is None else ahead.result()
        try:
            if read.error is not None:
                raise read.error
            self._faults.fill(chunk.start, _address(read.buffer), chunk.size)
        finally:
            self._free.append(read.buffer)

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
                try:
                    self._staged[following] = self._reader.submit(self._read, following, self._free.pop())
                except RuntimeError:  # the process ends, or has no thread to spare; the buffer may be in a queue
                    self._free.append(mmap.mmap(-1, CHUNK))
                    return
            following = following.follows

    def _drop_staged(self) -> bool:
        """Take the buffer of what was read ahead first: the run went another way."""
        if len(self._staged) < AHEAD:
            return False
        oldest, future = next(iter(self._staged.items()))
        if not future.done():
            return False
        del self._staged[oldest]
        self._free.append(future.result().buffer)
        return True

    def _read(self, chunk: Chunk, buffer: mmap.mmap) -> _Read:
        try:
            chunk.file.read(buffer, chunk.size, chunk.offset)
        except Exception as error:
            return _Read(buffer, error)
        self.traffic.bytes += chunk.size
        return _Read(buffer, None)

    def _map_again(self) -> None:
        """Map the files as they were; who waits for a page gets the file's."""
        with changing:
            for mapping in self._mappings:
                start, size = mapping.start, mapping.end - mapping.start
                with contextlib.suppress(OSError):
                    map_file(start, size, self._files[mapping.path].plain, mapping.offset)
                    mark(start, size)  # another session that is being loaded must not take them for its own
                self._faults.wake(start, size)

    def close(self) -> None:
        """Map the files again as they were: before the weights are unmapped, while nothing runs."""
        if os.getpid() != self._process:  # neither its addresses nor its threads are here
            return
        self._closed = True
        os.write(self._stopped, b"x")
        here = threading.current_thread()  # that of the garbage collector, which may be one of ours
        if here is not self._thread:
            self._thread.join()
        self._reader.shutdown(wait=not here.name.startswith(_READER))
        self._map_again()
        self._close_files()
        for descriptor in (self._stop, self._stopped):
            os.close(descriptor)
        self._free.clear()
        self._staged.clear()

    def _close_files(self) -> None:
        self._faults.close()
        for file in self._files.values():
            file.close()


def _address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
