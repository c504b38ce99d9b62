"""Counting single changes, so that bisection can stop between two of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_limit: ContextVar[tuple[int, list[str]] | None] = ContextVar("memoptc_rewrite_limit", default=None)


@contextlib.contextmanager
def limit_rewrites(limit: int) -> Iterator[list[str]]:
    """Make only the first `limit` counted changes inside; gives the list that describes each one as it happens."""
    applied: list[str] = []
    token = _limit.set((limit, applied))
    try:
        yield applied
    finally:
        _limit.reset(token)


def exhausted() -> bool:
    """True if no further counted change may be made."""
    limit = _limit.get()
    return limit is not None and len(limit[1]) >= limit[0]


def counted(what: str) -> bool:
    """Count one change that is about to be made, and say whether it may be.

    Rules are counted by their driver. A pass that changes the graph by hand becomes one that bisection can look
    into by `if not counted(f"fold {op!r}"): continue` before each change.

    Args:
        what: What is changed, and where.
    """
    limit = _limit.get()
    if limit is None:
        return True
    if len(limit[1]) >= limit[0]:
        return False
    limit[1].append(what)
    return True
