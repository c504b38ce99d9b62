"""The exact search compiled to machine code, where numba is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TypeAlias

from memoptc.runtime.memory import canonical_search
from memoptc.runtime.memory.canonical_tables import Tables, Work

Search: TypeAlias = Callable[[Tables, Work, int, int, int, int], int]


@cache
def compiled() -> Search | None:
    """The search compiled by numba, or `None` where numba is not installed.

    The machine code is kept beside this file or in numba's folder of the user; where neither can be written, it is
    made anew in every process.
    """
    try:
        import numba
    except ImportError:
        return None
    # The functions call each other by global name: give compiled twins a namespace of their own.
    scope = dict(vars(canonical_search))
    plain = [f for f in scope.values() if isinstance(f, FunctionType) and f.__module__ == canonical_search.__name__]
    for function in plain:
        twin = FunctionType(function.__code__, scope, function.__name__)
        twin.__module__, twin.__qualname__ = function.__module__, function.__qualname__
        try:
            scope[function.__name__] = numba.njit(cache=True)(twin)
        except RuntimeError:
            scope[function.__name__] = numba.njit(twin)
    search: Search = scope["search"]
    return search
