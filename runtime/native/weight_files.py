"""Files that weights are read from, past the page cache where that can be had."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

from memoptc.ir.diagnostics import InputError

PAGE = mmap.PAGESIZE


class WeightFile:
    """A file, open for reading.

    Args:
        path: Where it is.

    Raises:
        InputError: it is not there any more, or may not be read.
    """

    def __init__(self, path: str) -> None:
        try:
            self.plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"The weights in {path} cannot be opened: {error.strerror}.", hint="Leave the model's files in place."
            ) from None
        self._direct = self.plain
        with contextlib.suppress(OSError):  # some file systems have no such thing
            self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)

    def read(self, buffer: mmap.mmap, size: int, offset: int) -> None:
        """Read whole pages into a buffer; what lies behind the end of the file, in its last page, is zero.

        Raises:
            OSError: it cannot be read, or ends before the last of these pages.
        """
        got, descriptor = 0, self._direct
        with memoryview(buffer) as view:
            while got < size:
                with view[got:size] as rest:
                    try:
                        count = os.preadv(descriptor, [rest], offset + got)
                    except OSError as error:
                        if error.errno != errno.EINVAL or descriptor == self.plain:
                            raise
                        descriptor = self.plain  # not at this place, or not in this size
                        continue
                if count == 0:
                    break
                got += count
            if got <= size - PAGE:
                raise OSError(errno.EIO, "a file is shorter than it was")
            view[got:size] = bytes(size - got)

    def close(self) -> None:
        """Give the descriptors back."""
        if self._direct != self.plain:
            os.close(self._direct)
        os.close(self.plain)
