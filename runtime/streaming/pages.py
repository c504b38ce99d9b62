"""Pages of mapped files, on Linux: which a run has touched; reading them in and giving them back, in whole blocks."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from memoptc.ir.diagnostics import InputError

PAGE = mmap.PAGESIZE
BLOCK = 2 << 20
"""Bytes of a file that are read and given back together, aligned: the most that the page cache keeps as one piece."""

_RANDOM, _DONTNEED, _HUGEPAGE, _POPULATE_READ = 1, 4, 14, 22
_ENTRY, _PRESENT, _MAPPED = 8, 7, 0x80
"""Bytes of a pagemap entry, the one of them (little endian) with the bit for "mapped", and that bit."""


@dataclass(frozen=True)
class Mapping:
    """A part of a file in this process's memory.

    Args:
        start: Its first address.
        end: The address behind it.
        offset: Where `start` lies in the file.
        path: The file.
    """

    start: int
    end: int
    offset: int
    path: str


def mappings_below(folder: str) -> list[Mapping]:
    """Give the mappings of files in a folder, code excepted, by address.

    Raises:
        InputError: this system does not tell.
    """
    if sys.platform != "linux":
        raise InputError(
            "Weights are streamed on Linux only: elsewhere, the system does not tell which pages a run touches.",
            hint="Leave weights= at 'loaded'; mapped weights (memoptc --external always) are evicted by the system.",
        )
    inside = os.path.join(os.path.realpath(folder), "")
    found = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                parts = line.rstrip("\n").split(maxsplit=5)
                if len(parts) == 6 and parts[5].startswith(inside) and "x" not in parts[1]:
                    start, end = (int(a, 16) for a in parts[0].split("-"))
                    found.append(Mapping(start, end, int(parts[2], 16), parts[5]))
    except OSError as error:
        raise InputError(f"/proc/self/maps cannot be read: {error.strerror}.") from None
    return found


@dataclass(frozen=True)
class _File:
    """An open file.

    Args:
        descriptor: Its descriptor.
        address: Where we have mapped it, whole.
    """

    descriptor: int
    address: int


@functools.cache
def _c_library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.madvise.argtypes = (address, size, number)
    library.mmap.argtypes = (address, size, number, number, number, ctypes.c_long)
    library.mmap.restype = address
    library.munmap.argtypes = (address, size)
    return library


@dataclass(frozen=True)
class Block:
    """An aligned block of a file, and where its pages lie in memory.

    Args:
        number: Its place in the order of the file.
        file: The file.
        offset: In the file.
        pieces: Address and bytes of each part that is mapped; a weight that is stored once may be mapped twice.
        weights: Numbers of the mappings that these belong to.
    """

    number: int
    file: _File
    offset: int
    pieces: list[tuple[int, int]] = field(default_factory=list)
    weights: set[int] = field(default_factory=set)


class Pages:
    """Blocks of mapped files, and the system calls on them.

    A page that is touched and not in memory brings in its block and no more: the kernel is told not to read around it.

    Args:
        mappings: Of the weights.

    Raises:
        InputError: the kernel does not tell which pages are touched.
    """

    def __init__(self, mappings: Iterable[Mapping]) -> None:
        self._open = contextlib.ExitStack()
        found: dict[tuple[str, int], Block] = {}
        files: dict[str, _File] = {}
        self._madvise = _c_library().madvise
        self._whole = True
        try:
            self._touched = self._descriptor("/proc/self/pagemap")
            for weight, mapping in enumerate(sorted(mappings, key=lambda m: (m.path, m.offset))):
                if mapping.path not in files:
                    files[mapping.path] = self._file(mapping.path)
                self._advise(mapping.start, mapping.end - mapping.start)
                offset, end = mapping.offset, mapping.offset + mapping.end - mapping.start
                while offset < end:
                    base = offset // BLOCK * BLOCK
                    block = found.setdefault((mapping.path, base), Block(len(found), files[mapping.path], base))
                    size = min(base + BLOCK, end) - offset
                    block.pieces.append((mapping.start + offset - mapping.offset, size))
                    block.weights.add(weight)
                    offset += size
        except OSError as error:
            self.close()
            raise InputError(
                f"Weights cannot be streamed here: {error.filename}: {error.strerror}.",
                hint="The kernel must let a process read /proc/self/pagemap and the weights' file.",
            ) from None
        self.blocks = list(found.values())

    def _descriptor(self, path: str) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.callback(os.close, descriptor)
        return descriptor

    def _file(self, path: str) -> _File:
        """Map a file once more: read in there, its pages do not look as if a run had touched them."""
        descriptor = self._descriptor(path)
        size = os.fstat(descriptor).st_size
        library = _c_library()
        address = library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        self._open.callback(library.munmap, address, size)
        self._advise(address, size)
        return _File(descriptor, address)

    def _advise(self, address: int, size: int) -> None:
        self._madvise(address, size, _RANDOM)
        if self._madvise(address, size, _HUGEPAGE):
            self._whole = False  # a kernel without huge pages

    def read(self, block: Block) -> None:
        """Read a block into the page cache, mapping none of its pages where the session has them.

        A file that cannot be read any more is not noticed here: the run that touches it is then ended by the kernel, as
        with every mapped file.
        """
        # One page brings in its block: in one piece of memory, which costs the kernel a tenth of 512 pages.
        address = block.file.address + block.offset
        if not self._whole or self._madvise(address, PAGE, _POPULATE_READ):
            os.posix_fadvise(block.file.descriptor, block.offset, BLOCK, os.POSIX_FADV_WILLNEED)
        else:
            self._madvise(address, PAGE, _DONTNEED)

    def unmap(self, block: Block) -> None:
        """Unmap a block, which stays in the page cache: whether it is touched is seen anew."""
        for address, size in block.pieces:
            self._madvise(address, size, _DONTNEED)

    def give_back(self, block: Block) -> None:
        """Unmap a block and drop it from the page cache, where no other process maps it."""
        self.unmap(block)
        os.posix_fadvise(block.file.descriptor, block.offset, BLOCK, os.POSIX_FADV_DONTNEED)

    def is_touched(self, block: Block) -> bool:
        """Whether any page of a block was touched since it was read or unmapped."""
        return any(max(self._entries(*piece)) >= _MAPPED for piece in block.pieces)

    def _entries(self, address: int, size: int) -> bytes:
        return os.pread(self._touched, -(-size // PAGE) * _ENTRY, address // PAGE * _ENTRY)[_PRESENT::_ENTRY]

    def mapped_bytes(self) -> int:
        """Bytes of all blocks that are mapped."""
        pieces = [piece for block in self.blocks for piece in block.pieces]
        return sum(entry >= _MAPPED for piece in pieces for entry in self._entries(*piece)) * PAGE

    def close(self) -> None:
        """Close what was opened."""
        self._open.close()
