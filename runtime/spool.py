"""Values kept on disk between turns, so that one model and the values of one sample are in memory at a time."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memoptc.ir.files import TemporaryFolder

_SMALL = 1 << 20
"""Bytes of one sample's values that may stay in memory."""

_ALL_SMALL = 16 << 20
"""Bytes of values that stay in memory, all together."""


class Spool:
    """Named values by key, kept until the spool goes; what is large lies in a temporary folder."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], dict[str, Any]] = {}
        self._files: dict[tuple[str, int], Path] = {}
        self._folder: TemporaryFolder | None = None
        self._held_bytes = 0

    def put(self, kind: str, index: int, values: Mapping[str, Any]) -> None:
        """Keep the values of one sample.

        Args:
            kind: Whose values they are.
            index: Number of the sample.
            values: Name -> array, list (sequence), dict (map) or `None`.
        """
        self._held.pop((kind, index), None)
        size = sum(_nbytes(value) for value in values.values())
        if size <= _SMALL and self._held_bytes + size <= _ALL_SMALL:
            self._held_bytes += size
            self._held[kind, index] = dict(values)
            return
        if self._folder is None:
            self._folder = TemporaryFolder("memoptc-spool-")
        path = Path(self._folder.name) / f"{kind}-{index}"
        with open(path, "wb") as file:
            pickle.dump(dict(values), file, protocol=5)  # in a folder of our own, read by this process only
        self._files[kind, index] = path

    def get(self, kind: str, index: int) -> dict[str, Any]:
        """Read values again."""
        if (kind, index) in self._held:
            return self._held[kind, index]
        with open(self._files[kind, index], "rb") as file:
            found: dict[str, Any] = pickle.load(file)
        return found


def _nbytes(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(_nbytes(item) for item in value)
    if isinstance(value, Mapping):
        return sum(_nbytes(item) for item in value.values())
    return int(value.nbytes) if isinstance(value, np.ndarray | np.generic) else 0


def trim(*, collect: bool = True) -> None:
    """Return memory that is free to the system, where the C library can: the next model needs it elsewhere.

    Args:
        collect: Look for garbage that refers to itself first, if that was not done a moment ago: it takes long where
            there are many objects, and what takes moments leaves little behind.
    """
    if collect:
        _garbage.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_BEGINNING = 2.0
"""Seconds of a process before garbage is looked for: looking through what was imported takes a tenth of one."""


class _Garbage:
    """Collects garbage in no more than a tenth of the time that passes."""

    def __init__(self, first: float = 0.0) -> None:
        self._next = first

    def collect(self) -> None:
        started = time.monotonic()
        if started < self._next:
            return
        gc.collect()
        ended = time.monotonic()
        self._next = ended + 9 * (ended - started)


_garbage = _Garbage(time.monotonic() + _BEGINNING)
