"""The place where two models' outputs lie farthest apart, in a few numbers that a person can read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from memoptc.runtime.compare import difference, flatten

NEIGHBOURS = 4
"""Elements that are shown on either side."""


def farthest(where: str, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the output, of one sample, that differs most, and its elements around the largest difference.

    Args:
        where: Which sample it is.
        wanted: The original's outputs.
        got: The candidate's.

    Returns:
        `where`, `output`, `place` (indices of the element), `first` (the last index of the first number shown),
        `original` and `candidate` (numbers along the last axis); `None` where no two arrays can be compared.
    """
    best: tuple[float, str, Any, Any] | None = None
    for name in wanted:
        other = dict(flatten(name, got.get(name)))
        for key, a in flatten(name, wanted[name]):
            b = other.get(key)
            if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)) or a.shape != b.shape or not a.size:
                continue
            found = difference(a, b)
            score = math.inf if found.fault else found.max_abs / found.scale if found.scale else found.max_abs
            if a.dtype.kind in "fiub" and (best is None or score > best[0]):
                best = score, key, a, b
    if best is None:
        return None
    _, key, a, b = best
    with np.errstate(invalid="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    place = np.unravel_index(int(np.argmax(gap)), a.shape) if a.ndim else ()
    last = int(place[-1]) if place else 0
    row = (*place[:-1], slice(max(0, last - NEIGHBOURS), last + NEIGHBOURS + 1)) if place else ()
    return {
        "where": where,
        "output": key,
        "place": [int(i) for i in place],
        "first": max(0, last - NEIGHBOURS),
        "original": [float(v) for v in np.atleast_1d(a[row])],
        "candidate": [float(v) for v in np.atleast_1d(b[row])],
    }
