"""Freed memory of this process's heap."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library can."""
    with suppress(OSError, AttributeError, TypeError):  # musl has no such function, Windows no library without a name
        ctypes.CDLL(None).malloc_trim(0)
