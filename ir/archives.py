"""Errors that reading damaged arrays and archives raises."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np

UNREADABLE: tuple[type[Exception], ...] = (
    OSError, ValueError, EOFError, KeyError, IndexError, TypeError, SyntaxError, RuntimeError, NotImplementedError,
    MemoryError, OverflowError, RecursionError, AssertionError, struct.error, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""Exceptions of `zipfile` and of numpy's reader of `.npy` on bytes that are none."""

_PIECE = 1 << 16


class _Pieces:
    """Reads no more at once than there may be: a header that claims gigabytes does not get a buffer of that size."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, _PIECE))


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: shape, whether in Fortran's order, element type; `stream` is at its data then.

    Raises:
        Exception: one of `UNREADABLE`.
    """
    pieces: Any = _Pieces(stream)
    first = np.lib.format.read_magic(pieces) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(pieces)
    if any(n < 0 for n in shape):
        raise ValueError("an array has a negative extent")
    return shape, fortran, dtype
