"""Freed memory of this process's heap."""

from __future__ import annotations

import ctypes
from contextlib import suppress

from memoptc.runtime.control_groups import bytes_left


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library can."""
    with suppress(OSError, AttributeError, TypeError):  # musl has no such function, Windows no library without a name
        ctypes.CDLL(None).malloc_trim(0)


def available_bytes() -> int | None:
    """Give the bytes that this process can still take: of memory and swap, and of its control groups' limits.

    `None` where the system does not tell.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in file)}
    except (OSError, ValueError, IndexError):
        return None
    there = [1024 * (found["MemAvailable"] + found.get("SwapFree", 0))] if "MemAvailable" in found else []
    left = bytes_left()
    return min([*there, *([] if left is None else [left])], default=None)
