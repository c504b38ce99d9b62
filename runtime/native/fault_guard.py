"""A thread without Python that answers faults when Python cannot: x86-64, Linux.

The thread that fills missing pages needs the interpreter. Who touches such a page while holding it (a copy in an
extension, an array over a weight) would wait for a thread that waits for it; so would everybody if that thread ended.
This one needs nothing but the kernel. It lets the other go first, and reads single pages itself when a fault is left
unread and nothing moves for a while. Pages that it fills are those of the file, so that results are right, only slow.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
import sys
from collections.abc import Sequence

PATIENCE_MS = 200
"""Milliseconds that a fault is left to the thread that knows more."""

_CODE = bytes.fromhex(
    "41574989f841bf2000000041564155415455bd0100000053bb07000000488d4424b84c8d7424b04889442488498b40204d8b20488d7c24a8"
    "4531d2c74424ac01000000be020000004883caff894424a8498b4018c74424b401000000894424b04889d80f0566837c24ae000f85420100"
    "00498b50284889d84889ee0f0566837c24ae000f852a01000041bd14000000498b00498b78184c39e07591488b7424884531d231c04c89fa"
    "0f054883f82074194889d84c89f74889ee4c89ea0f054885c00f8e65ffffffebc6498b50384c8b4c24c8498d404048c1e2054981e100f0ff"
    "ff4801c24839d073134c3b0873064883c020ebf04c3b480873f4eb0274914c8b5018488b7810ba00100000498b70304d01ca4c2b10b81100"
    "00000f054885c07f0d498b401048ffc04989401031c0498b5030483dff0f00007f0b4801c248ffc0c60200ebe931c04c894c24d8498b7818"
    "4531d24c894c249841b910000000be03aa28c048895424e0488d5424d848894424f048894424f84c89c848c74424e80010000048c74424a0"
    "001000000f05498b7818488d5424984881ee010018404c89c80f05498b400848ffc049894008e9dcfeffff5b31c05d415c415d415e415fc3"
)
"""System calls only, compiled (gcc 12, `-Os -ffreestanding -fPIC -mgeneral-regs-only -fcf-protection=none`) from:

    struct range { unsigned long start, end; long file, offset; };
    struct state { volatile long progress, served, failed; long faults, stop, patience; char *page; long count;
                   struct range ranges[]; };
    void *answer(struct state *s) {
      for (;;) {
        long seen = s->progress;
        struct pollfd two[2] = {{s->stop, POLLIN, 0}, {s->faults, POLLIN, 0}};
        poll(two, 2, -1);
        if (!two[0].revents) poll(two, 1, s->patience);
        if (two[0].revents) return 0;
        while (s->progress == seen) {
          unsigned long message[4];
          if (read(s->faults, message, sizeof message) != sizeof message) {
            if (poll(two + 1, 1, 20) > 0) continue;
            break;
          }
          unsigned long at = message[2] & -4096;
          struct range *r = s->ranges, *end = r + s->count;
          while (r < end && (at < r->start || at >= r->end)) r++;
          if (r == end) continue;
          long had = pread(r->file, s->page, 4096, r->offset + (at - r->start));
          if (had <= 0) { s->failed++; had = 0; }
          for (; had < 4096; had++) s->page[had] = 0;
          unsigned long copy[5] = {at, s->page, 4096, 0, 0}, wake[2] = {at, 4096};
          ioctl(s->faults, UFFDIO_COPY, copy);
          ioctl(s->faults, UFFDIO_WAKE, wake);
          s->served++;
        }
      }
    }
"""

_FIELDS = struct.Struct("8q")
_RANGE = struct.Struct("4q")
_PROGRESS, _SERVED, _FAILED = 0, 8, 16


def _can_run_it() -> bool:
    return sys.platform == "linux" and os.uname().machine == "x86_64" and mmap.PAGESIZE == 4096


@functools.cache
def _entry() -> int:
    """Address of the instructions, which stay as long as the process: a thread may be in them to its end."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, mmap.PAGESIZE, flags=private, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory[: len(_CODE)] = _CODE
    kept = ctypes.c_char.from_buffer(memory)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    return ctypes.addressof(kept)


class FaultGuard:
    """Answers faults that stay unread while `progress` is not told of any.

    Args:
        faults: Descriptor of the faults.
        ranges: First address, the address behind, descriptor of the file, and the first address's place in it.

    Raises:
        OSError: it cannot be had on this machine.
    """

    def __init__(self, faults: int, ranges: Sequence[tuple[int, int, int, int]]) -> None:
        if not _can_run_it():
            raise OSError("no instructions for this machine")
        entry = _entry()
        self._stop, self._stopping = os.pipe()
        page = mmap.PAGESIZE
        self._memory = mmap.mmap(-1, page + _FIELDS.size + _RANGE.size * len(ranges))
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        fields = (0, 0, 0, faults, self._stop, PATIENCE_MS, start, len(ranges))
        self._memory[page:] = _FIELDS.pack(*fields) + b"".join(_RANGE.pack(*r) for r in ranges)
        self._progress, self._served, self._failed = (
            ctypes.c_long.from_address(start + page + at) for at in (_PROGRESS, _SERVED, _FAILED)
        )
        self._thread = ctypes.c_ulong()
        libc = ctypes.CDLL(None)
        libc.pthread_create.argtypes = (ctypes.c_void_p,) * 4
        libc.pthread_join.argtypes = (ctypes.c_ulong, ctypes.c_void_p)
        error = libc.pthread_create(ctypes.byref(self._thread), None, entry, start + page)
        if error:
            os.close(self._stop)
            os.close(self._stopping)
            raise OSError(error, os.strerror(error))
        self._join = libc.pthread_join

    def progress(self) -> None:
        """Know that faults are being answered."""
        self._progress.value += 1

    @property
    def served(self) -> int:
        """Pages that it filled."""
        return self._served.value

    @property
    def failed(self) -> int:
        """Pages among them that are zeros, as they could not be read."""
        return self._failed.value

    def close(self) -> None:
        """End the thread, which must have no more faults to answer."""
        os.write(self._stopping, b"x")
        self._join(self._thread, None)
        os.close(self._stop)
        os.close(self._stopping)
