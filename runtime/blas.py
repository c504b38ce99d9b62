"""One thread for numpy's products: on busy machines, threads that wait for each other cost ten times what they save."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_SPELLINGS = (("scipy_openblas_", "64_"), ("openblas_", "64_"), ("openblas_", ""))
"""Prefix and suffix of OpenBLAS's own functions, as wheels of numpy have named them."""


def _library() -> tuple[ctypes.CDLL, str, str] | None:
    """The OpenBLAS that numpy brought along, and how its functions are spelled."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for file in sorted(folder.glob("*openblas*")):
            with contextlib.suppress(OSError):
                library = ctypes.CDLL(str(file))
                for before, after in _SPELLINGS:
                    if hasattr(library, f"{before}set_num_threads{after}"):
                        return library, before, after
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let numpy's products run on one thread; where numpy has another library than OpenBLAS, nothing changes."""
    found = _library()
    if found is None:
        yield
        return
    library, before, after = found
    threads = int(getattr(library, f"{before}get_num_threads{after}")())
    put = getattr(library, f"{before}set_num_threads{after}")
    put(1)
    try:
        yield
    finally:
        put(threads)
