"""Pages of our own making, on Linux: what touches one that is missing waits until it is filled (`userfaultfd`).

Source: Linux kernel documentation, admin-guide/mm/userfaultfd. Only faults of user code are asked for, which needs no
privilege from Linux 5.11 on.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import platform
import struct
import sys
import time

from memoptc.ir.diagnostics import InputError

PAGE = mmap.PAGESIZE

_NUMBERS = {"x86_64": 323, "aarch64": 282, "riscv64": 282}
"""Machine -> number of the system call."""

_USER_ONLY, _NONBLOCK = 1, os.O_NONBLOCK
_API, _REGISTER, _WAKE, _COPY, _ZERO = 0xC018AA3F, 0xC020AA00, 0x8010AA02, 0xC028AA03, 0xC020AA04
_VERSION, _MISSING = 0xAA, 1
_MESSAGE, _ADDRESS, _FAULT = 32, 16, 0x12
_PROT, _MAP = 3, 0x4032  # read and write; private, anonymous, fixed, without reserve
_DONTNEED, _DONTFORK, _NOHUGEPAGE, _DONTDUMP = 4, 10, 15, 16
_TRIES = 1000
"""Of the kernel to fill a page, each a tenth of a millisecond after the other where it did nothing."""


class Unsupported(InputError):
    """This system does not let a program fill pages of its own."""


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.madvise.argtypes = (address, size, number)
    library.mmap.argtypes = (address, size, number, number, number, ctypes.c_long)
    library.mmap.restype = address
    library.munlock.argtypes = (address, size)
    library.ioctl.argtypes = (number, ctypes.c_ulong, address)
    return library


def _failed(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


class UserFaults:
    """A descriptor that tells of missing pages in ranges of addresses, and fills them.

    Raises:
        Unsupported: the system has no such thing, or does not let this process have it.
    """

    def __init__(self) -> None:
        number = _NUMBERS.get(platform.machine())
        if sys.platform != "linux" or number is None:
            raise Unsupported(
                "Weights are streamed on Linux only: elsewhere, no program can fill its own pages.",
                hint="Leave weights= at 'loaded': the system evicts mapped weights (memoptc --external always).",
            )
        self.descriptor = _libc().syscall(number, _USER_ONLY | _NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise self._unsupported()
        if self._call(_API, struct.pack("QQQ", _VERSION, 0, 0)):
            error = self._unsupported()
            os.close(self.descriptor)
            raise error

    @staticmethod
    def _unsupported() -> Unsupported:
        return Unsupported(
            f"Weights cannot be streamed: userfaultfd is refused here ({os.strerror(ctypes.get_errno())}).",
            hint="Leave weights= at 'loaded', or allow the system call userfaultfd in this container.",
        )

    def _call(self, request: int, argument: bytes) -> int:
        """Give 0, or the number of an error."""
        buffer = ctypes.create_string_buffer(argument, len(argument))
        return 0 if _libc().ioctl(self.descriptor, request, buffer) == 0 else ctypes.get_errno()

    def replace(self, start: int, size: int) -> None:
        """Put pages that are missing, and told of, in the place of what is mapped in a range of whole pages."""
        if _libc().mmap(start, size, _PROT, _MAP, -1, 0) != start:
            raise _failed("mmap")
        _libc().madvise(start, size, _DONTFORK)  # a child would read zeros where nobody fills its pages
        _libc().madvise(start, size, _NOHUGEPAGE)
        if self._call(_REGISTER, struct.pack("QQQQ", start, size, _MISSING, 0)):
            raise _failed("userfaultfd")
        _libc().munlock(start, size)  # a process that locks all its memory has filled them already, with zeros
        give_back(start, size)

    def fill(self, start: int, source: int, size: int) -> None:
        """Copy pages in, but for those that are there, and wake who waits for them.

        Raises:
            OSError: the kernel does not do it.
        """
        self._fill(_COPY, start, size, source)

    def fill_zeros(self, start: int, size: int) -> None:
        """Fill missing pages with zeros and wake who waits: for what cannot be read.

        Raises:
            OSError: the kernel does not do it.
        """
        self._fill(_ZERO, start, size, None)

    def _fill(self, request: int, start: int, size: int, source: int | None) -> None:
        done = tries = 0
        while done < size:
            whence = () if source is None else (source + done,)
            places = (start + done, *whence, size - done)
            argument = ctypes.create_string_buffer(struct.pack(f"{len(places) + 2}q", *places, 0, 0))
            if _libc().ioctl(self.descriptor, request, argument) == 0:
                break
            error = ctypes.get_errno()
            filled = struct.unpack_from("q", argument, 8 * (len(places) + 1))[0]
            if error == errno.EEXIST:
                done += PAGE
            elif error == errno.EAGAIN and filled > 0:
                done += filled
            elif tries < _TRIES:
                tries += 1
                time.sleep(1e-4)
            else:
                raise OSError(error, f"userfaultfd: {os.strerror(error)}")
        self.wake(start, size)

    def wake(self, start: int, size: int) -> None:
        """Let those look again who wait for pages."""
        self._call(_WAKE, struct.pack("QQ", start, size))

    def faults(self) -> list[int]:
        """Give the addresses that were touched since the last call."""
        try:
            messages = os.read(self.descriptor, 64 * _MESSAGE)
        except BlockingIOError:
            return []
        found = (messages[at : at + _MESSAGE] for at in range(0, len(messages), _MESSAGE))
        return [int.from_bytes(m[_ADDRESS : _ADDRESS + 8], sys.byteorder) for m in found if m[0] == _FAULT]

    def close(self) -> None:
        """Give the descriptor back: ranges that are still there become ordinary memory, zeros where missing."""
        os.close(self.descriptor)


def give_back(start: int, size: int) -> None:
    """Let pages go; they are missing again.

    Raises:
        OSError: the kernel keeps them.
    """
    if _libc().madvise(start, size, _DONTNEED) == 0:
        return
    _libc().munlock(start, size)
    if _libc().madvise(start, size, _DONTNEED):
        raise _failed("madvise")


def mark(start: int, size: int) -> None:
    """Leave a range out of core dumps."""
    _libc().madvise(start, size, _DONTDUMP)


def map_file(start: int, size: int, descriptor: int, offset: int) -> None:
    """Map a file over a range, read-only."""
    if _libc().mmap(start, size, mmap.PROT_READ, mmap.MAP_PRIVATE | 0x10, descriptor, offset) != start:
        raise _failed("mmap")
