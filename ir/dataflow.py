"""Walks over the use-def graph that visit each value once, whatever the number of ways to it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


def on_demand(
    wanted: K, sources: Callable[[K], Iterable[K]], transfer: Callable[[K, dict[K, R]], R], known: dict[K, R]
) -> R:
    """Give the dataflow fact of a value: that of what it depends on first, each computed once.

    Takes time linear in the uses that are followed, and no Python stack, so that neither ladders (`x + x` again and
    again) nor long chains cost more than their length. Ends, since use-def chains have no cycles.

    Args:
        wanted: The value, or a value and what is asked of it.
        sources: Gives the keys whose facts a key's fact depends on; none where it is known without.
        transfer: Computes a key's fact; those of all its sources are in the second argument.
        known: Facts computed before; filled with those of everything that was looked at.

    Returns:
        The fact of `wanted`.
    """
    todo = [wanted]
    while todo:
        key = todo[-1]
        missing = [] if key in known else [s for s in sources(key) if s not in known]
        if missing:
            todo += missing
            continue
        if key not in known:
            known[key] = transfer(key, known)
        todo.pop()
    return known[wanted]
