"""Read weights ahead of a run and give them back behind it, so that no more than a limit is in memory at once.

Runs read their weights in the same order again and again, and least-recently-used eviction then reads all of them in
each run, however much fits: what is evicted is always what comes next. Here a fixed share stays (**pinned**), and the
rest passes through a window: a thread reads the next blocks of the order, and drops those behind the run.

Where the run is follows from the pages that it touches: blocks are read into the page cache and not mapped, and the
kernel tells when a run maps one of their pages. That holds for every way of running, needs no node to be known, and
cannot make a result wrong: a page that is not there is read from its file by the kernel when it is touched.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.streaming.pages import BLOCK, Block, Mapping, Pages

LEAST = 8 * BLOCK
"""Smallest limit: a few blocks that are read ahead, computed with and given back."""

_WINDOW = 6 * BLOCK
_READERS = 2
"""Threads that read: with one, the disk waits for the next request; more than two gain nothing (measured)."""

_PAUSE = 5e-4
"""Seconds between two looks at where the run is, when nothing can be read."""

_LOOK_AHEAD = 8
"""Blocks that are looked at for a touch, and blocks that a run may leave out before it is taken to skip them."""

_PATIENCE, _MOST_PATIENCE = 10, 200
"""Looks without progress after which the run is searched for elsewhere; doubled when it is found nowhere."""


@dataclass
class Traffic:
    """What was done so far.

    Args:
        runs: Runs that ended.
        read_bytes: Bytes read ahead of runs, or where a run unexpectedly was.
        returned_bytes: Bytes given back.
        unexpected: Blocks that a run touched before they were read.
        peak_bytes: Most bytes that were held at once: read and not given back.
    """

    runs: int = 0
    read_bytes: int = 0
    returned_bytes: int = 0
    unexpected: int = 0
    peak_bytes: int = 0


class Streamer:
    """Streams the weights of one session.

    The first run shows the order; meanwhile that of the file is followed, and nothing is pinned.

    Args:
        mappings: Where the session has its weights.
        limit: Most bytes of them in memory at once. What a run touches before it is read comes on top, for a moment.

    Raises:
        InputError: there is nothing to stream, the limit is too small, or the kernel does not say what is touched.
    """

    def __init__(self, mappings: Iterable[Mapping], limit: int) -> None:
        mappings = list(mappings)
        sizes = [m.end - m.start for m in mappings]
        if not mappings:
            raise InputError(
                "There are no mapped weights to stream: they lie inside of the model's file.",
                hint="Compile it with --external always.",
            )
        if limit < LEAST:
            raise InputError(
                f"Weights cannot stream in {limit} bytes.", hint=f"Give a weight_limit of at least {LEAST >> 20}MiB."
            )
        self.weight_bytes = sum(sizes)
        self.limit = limit
        self.traffic = Traffic()
        self.pinned_bytes = 0
        self._window = min(limit // 2, max([_WINDOW, limit // 16, *(2 * s for s in sizes if s <= limit // 4)]))
        self._pages = Pages(mappings)
        self._readers = ThreadPoolExecutor(_READERS, "memoptc-weights")
        self._reading: dict[int, Future[None]] = {}
        self._order = list(self._pages.blocks)
        self._pinned: set[int] = set()
        self._kept: set[int] = set()  # pinned, and read by now
        self._held: dict[int, Block] = {}  # read and to be given back, in the order of reading
        self._touched: set[int] = set()  # of these
        self._latest: Block | None = None  # touched last
        self._bytes = 0
        self._next = 0
        self._seen: list[Block] | None = []  # `None` once the order is known
        self._running = self._ended = 0
        self._closed = False
        self._wake = threading.Condition()
        for block in self._pages.blocks:
            self._pages.give_back(block)
        self._thread = threading.Thread(target=self._work, name="memoptc-weights", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Enter while the session runs."""
        with self._wake:
            self._running += 1
            self._wake.notify()
        try:
            yield
        finally:
            with self._wake:
                self._running -= 1
                self._ended += 1
                self._wake.notify()

    def settle(self) -> None:
        """Wait until what follows from the runs that ended is done."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self.traffic.runs == self._ended)

    def close(self) -> None:
        """Stop, and leave the weights to the kernel."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._readers.shutdown()
        self._pages.close()

    def _work(self) -> None:
        try:
            self._follow()
        except RuntimeError as error:  # nothing is read any more once the interpreter is being shut down
            if "shutdown" not in str(error):
                raise
        finally:
            with self._wake:  # nobody waits for a thread that has ended
                self._closed = True
                self._wake.notify_all()

    def _follow(self) -> None:
        looks, patience = 0, _PATIENCE
        while True:
            with self._wake:
                while not self._closed and not self._running and self.traffic.runs == self._ended and not self._room():
                    self._wake.wait()
                if self._closed:
                    return
                running, ended = self._running > 0, self._ended
            if ended > self.traffic.runs:
                self._rewind()
                with self._wake:
                    self.traffic.runs = ended
                    self._wake.notify_all()
                continue
            if running and self._look(None if self._seen is not None else _LOOK_AHEAD):
                looks, patience = 0, _PATIENCE
            if not self._may_read():
                time.sleep(_PAUSE)
            elif self._room():
                self._read(self._order[self._next])
                self._next += 1
            elif running:
                looks += 1
                if looks >= patience:
                    patience = _PATIENCE if self._search() else min(2 * patience, _MOST_PATIENCE)
                    looks = 0
                time.sleep(_PAUSE)

    def _rewind(self) -> None:
        """Begin again at the start of the order, which the first run has shown."""
        self._look(None)
        if self._seen is not None:
            self._order, self._seen = self._completed(self._seen), None
            self._pinned = self._choice(self.limit - self._window)
            self._give_back_all()
        else:
            # What is touched in part and never to its end, such as a row of a table, is in nobody's books.
            for block in self._pages.blocks:
                if block.number not in self._held and block.number not in self._kept and self._pages.is_touched(block):
                    self._pages.give_back(block)
        self._next, self._latest = 0, None

    def _completed(self, seen: list[Block]) -> list[Block]:
        """Give the order in which blocks were seen, with those that a run passed unseen after their neighbours."""
        known = {c.number for c in seen}
        missed = [c for c in self._pages.blocks if c.number not in known and self._pages.is_touched(c)]
        order = list(seen)
        for block in missed:
            before = [i for i, c in enumerate(order) if c.number == block.number - 1]
            order.insert(before[-1] + 1 if before else len(order), block)
        return order

    def _choice(self, room: int) -> set[int]:
        """Choose the blocks to pin: what a run reads most often; of what it reads equally often an even share."""
        groups: dict[int, list[int]] = {}
        for number, times in Counter(b.number for b in self._order).items():
            groups.setdefault(times, []).append(number)
        count = room // BLOCK
        if sum(map(len, groups.values())) * BLOCK <= self.limit:
            count = self.limit // BLOCK
        pinned: set[int] = set()
        for times in sorted(groups, reverse=True):
            group = groups[times]
            share = min(count - len(pinned), len(group))
            pinned.update(group[(i * len(group)) // share] for i in range(share))
        self.pinned_bytes = len(pinned) * BLOCK
        return pinned

    def _may_read(self) -> bool:
        """Whether a thread is free to read; the other one has its next block waiting, so that the disk never does."""
        for number in [n for n, read in self._reading.items() if read.done()]:
            self._reading.pop(number).result()
        return len(self._reading) <= _READERS

    def _room(self) -> bool:
        """Go on to the next block of the order that is not in memory, and make room for it; say whether there is."""
        while self._next < len(self._order):
            block = self._order[self._next]
            if block.number not in self._held and block.number not in self._kept:
                break
            if block.number in self._touched:  # still there from before: from now on it counts as read for what comes
                self._pages.unmap(block)
                self._touched.remove(block.number)
                self._held[block.number] = self._held.pop(block.number)
            self._next += 1
        else:
            return False
        block = self._order[self._next]
        if block.number in self._pinned:
            return True
        while self._bytes + BLOCK > self.limit - self.pinned_bytes:
            behind = self._behind()
            if behind is None:
                return False
            self._give_back(behind)
        return True

    def _behind(self) -> Block | None:
        """The block to give back first: read longest ago and passed by the run; `None` when all are still needed.

        What belongs to the weight that was touched last is still needed, unless that weight takes half of the window.
        """
        if self._latest is None:
            return next((self._held[n] for n in self._held if n in self._touched), None)
        current: list[Block] = []
        left_out: list[Block] = []
        for number, block in self._held.items():
            if number == self._latest.number:
                break
            if number not in self._touched:
                left_out.append(block)
            elif block.weights & self._latest.weights:
                current.append(block)
            else:
                return block
        if len(left_out) > _LOOK_AHEAD:
            return left_out[0]
        return current[0] if len(current) * BLOCK > self._window // 2 else None

    def _read(self, block: Block) -> None:
        self._reading[block.number] = self._readers.submit(self._pages.read, block)
        self.traffic.read_bytes += BLOCK
        if block.number in self._pinned:
            self._kept.add(block.number)
        else:
            self._held[block.number] = block
            self._bytes += BLOCK
        self.traffic.peak_bytes = max(self.traffic.peak_bytes, self._bytes + len(self._kept) * BLOCK)

    def _give_back(self, block: Block) -> None:
        if block.number in self._reading:
            self._reading.pop(block.number).result()
        self._pages.give_back(block)
        del self._held[block.number]
        self._touched.discard(block.number)
        self._bytes -= BLOCK
        self.traffic.returned_bytes += BLOCK

    def _give_back_all(self) -> None:
        for block in list(self._held.values()):
            if block.number in self._pinned:  # it is there already
                del self._held[block.number]
                self._touched.discard(block.number)
                self._bytes -= BLOCK
                self._kept.add(block.number)
            else:
                self._give_back(block)

    def _look(self, most: int | None) -> bool:
        """See which of the blocks that were read the run has touched; say whether there are any.

        Args:
            most: Untouched ones to look at before giving up; all when `None`.
        """
        untouched, progress = 0, False
        for number, block in self._held.items():
            if number in self._touched:
                continue
            if self._pages.is_touched(block):
                self._touch(block)
                untouched, progress = 0, True
            else:
                untouched += 1
                if untouched == most:
                    break
        return progress

    def _touch(self, block: Block) -> None:
        self._touched.add(block.number)
        self._latest = block
        if self._seen is not None:
            self._seen.append(block)

    def _search(self) -> bool:
        """Find where a run is that touches nothing of what was read for it, and go on from there."""
        found = [
            c
            for c in self._pages.blocks
            if c.number not in self._held and c.number not in self._kept and self._pages.is_touched(c)
        ]
        for block in found:
            if self._bytes + BLOCK > self.limit - self.pinned_bytes and self._held:
                self._give_back(next(iter(self._held.values())))
            self.traffic.unexpected += 1
            self._read(block)
            if block.number in self._kept:
                continue
            after = [i for i, c in enumerate(self._order) if c.number == block.number]
            if after:
                self._touch(block)
                self._next = next((i for i in after if i >= self._next), after[0]) + 1
        return bool(found)
