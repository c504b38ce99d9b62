"""Pages of onnxruntime's own library in this process: where they lie, and how those are given back that are done with.

Code and constants of the library come in from its file as they are used: half of its pages while it is imported, most
of the rest while a session is made, for optimizers and registries that no run looks at again. The kernel counts them as
resident, 17 MB, until memory runs short. Given back earlier, a process is smaller by what runs do not use; what they do
use comes in again from the kernel's page cache, once, at less than a millisecond for all of it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRY = 8  # bytes per page in /proc/self/pagemap
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


class LibraryPages:
    """Address ranges of a library of this process.

    Args:
        library: Its file.

    Raises:
        OSError: the kernel does not tell.
    """

    def __init__(self, library: str | os.PathLike[str]) -> None:
        self._ranges: list[tuple[int, int, str]] = []
        size = os.stat(library)
        with open("/proc/self/maps", encoding="utf-8") as maps:
            for line in maps:
                addresses, rights, _, device, inode, *_ = line.split(maxsplit=5)
                major, minor = (int(n, 16) for n in device.split(":"))
                if (int(inode), (major << 8) | minor) != (size.st_ino, (size.st_dev >> 8 << 8) | (size.st_dev & 0xFF)):
                    continue
                start, end = (int(a, 16) for a in addresses.split("-"))
                self._ranges.append((start, end, rights))

    def executable(self, address: int, size: int) -> bool:
        """True if code of the library lies there."""
        return any(a <= address and address + size <= b and "x" in rights for a, b, rights in self._ranges)

    def pointer(self, address: int) -> int | None:
        """Read a pointer of the library; `None` where the address is none of its readable ones."""
        size = ctypes.sizeof(ctypes.c_void_p)
        if address % size or not any(a <= address and address + size <= b and "r" in r for a, b, r in self._ranges):
            return None
        return ctypes.c_void_p.from_address(address).value

    def is_known(self) -> bool:
        """True if the kernel tells where the library lies, and which of its pages are there."""
        with suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            return any(
                os.pread(pagemap.fileno(), _ENTRY, start // mmap.PAGESIZE * _ENTRY) for start, _, _ in self._ranges
            )
        return False

    def give_back(self) -> None:
        """Give back all pages that the file holds, too; they come in again where they are used.

        Ranges that may be written to are left alone, and so is a range of which this process has a page of its own:
        one that the loader relocated, or that a debugger or a tracer changed.

        Raises:
            OSError: the kernel does not tell which pages are the process's own.
        """
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for start, end, rights in self._ranges:
                if "w" in rights:
                    continue
                length = (end - start) // mmap.PAGESIZE * _ENTRY
                told = os.pread(pagemap.fileno(), length, start // mmap.PAGESIZE * _ENTRY)
                pages = np.frombuffer(told, np.uint64)
                own = (pages & (_PRESENT | _SWAPPED) != 0) & (pages & _OF_FILE == 0)
                # Of none that is there nothing is given back, and a kernel that is emulated tells of none.
                if len(told) == length and (pages & _PRESENT).any() and not own.any():
                    advise(start, end - start, mmap.MADV_DONTNEED)  # locked pages refuse, and stay


@functools.cache
def _library() -> LibraryPages | None:
    """Find onnxruntime's library once; `None` where its pages cannot be given back safely."""
    if sys.platform != "linux":  # elsewhere the advice means something else
        return None
    with suppress(OSError, ValueError):
        return LibraryPages(str(ort_state.__file__))
    return None


@functools.cache
def can_return_pages() -> bool:
    """True if pages of onnxruntime's library can be given back here."""
    library = _library()
    return library is not None and library.is_known()


@contextmanager
def library_pages_returned() -> Iterator[None]:
    """Give back pages of onnxruntime's library before a session is made and afterwards: those that only imports used,
    and those that only loading used."""
    library = _library()
    try:
        if library is not None:
            with suppress(OSError):
                library.give_back()
        yield
    finally:
        if library is not None:
            with suppress(OSError):
                library.give_back()
