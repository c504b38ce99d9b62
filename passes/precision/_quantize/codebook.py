"""Codebooks: few numbers that stand for all weights of a tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CELLS = 1 << 14
"""Cells of the histogram that means are found on, evenly wide."""

_NONE = 1e-13
"""Part of all weights' importance below which differences of sums are rounding errors."""

_PIECE = 1 << 20
"""Weights that are looked at at once."""

ROUNDS = 40
"""Rounds of Lloyd's algorithm at most."""


def codebook(
    weights: npt.NDArray[np.float32], size: int, importance: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float32]:
    """Give at most `size` numbers, in order, that stand for finite weights with little squared error.

    Exact where there are no more different weights than that. Else k-means in one dimension (Lloyd, 1957, published
    1982) on a histogram, from numbers as dense as the third root of the weights' density, which is where the best
    ones lie when there are many (Panter and Dite, 1951).

    Args:
        weights: Of any shape.
        size: At least 2.
        importance: How much a squared error at each weight counts, where that differs; not negative, not all 0.
    """
    flat = weights.reshape(-1)
    different = np.unique(flat)
    if len(different) <= size:
        return different
    cells = min(CELLS, max(64 * size, 1024))
    edges, counts, totals = _histogram(flat, cells, None if importance is None else importance.reshape(-1))
    density = np.cumsum(np.cbrt(counts))
    places = (np.arange(size) + 0.5) / size * density[-1]
    dense = edges[np.minimum(np.searchsorted(density, places), cells - 1)]
    even = np.linspace(edges[0], edges[-1], size)
    found = [_improved(start, edges, counts, totals) for start in (dense, even)]
    return np.unique(max(found, key=lambda pair: pair[1])[0].astype(np.float32))


def _histogram(flat: npt.NDArray[np.float32], cells: int, each: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Edges of cells, and in each the importance of its weights and the sum of weights times that.

    In float64: of weights that differ by little, or by more than float32 can hold, cells in float32 have no width.
    """
    low, high = float(flat.min()), float(flat.max())
    counts, totals = np.zeros(cells), np.zeros(cells)
    for start in range(0, flat.size, _PIECE):
        part = flat[start : start + _PIECE].astype(np.float64)
        much = np.ones(part.shape) if each is None else each[start : start + _PIECE]
        cell = np.minimum(((part - low) / (high - low) * cells).astype(np.intp), cells - 1)
        counts += np.bincount(cell, much, cells)
        totals += np.bincount(cell, much * part, cells)
    return np.linspace(low, high, cells + 1), counts, totals


def _improved(centers: Floats, edges: Floats, counts: Floats, totals: Floats) -> tuple[Floats, float]:
    """Move each number to the mean of the cells nearest to it, again and again.

    Returns:
        The numbers, and the squared magnitude of the weights that they account for.
    """
    sums, number = np.concatenate([[0.0], np.cumsum(totals)]), np.concatenate([[0.0], np.cumsum(counts)])
    known = 0.0
    for _ in range(ROUNDS):
        middles = (centers[1:] + centers[:-1]) / 2
        borders = np.concatenate([[0], np.searchsorted(edges[:-1], middles), [len(counts)]])
        members, total = np.diff(number[borders]), np.diff(sums[borders])
        means = np.divide(total, members, out=centers.copy(), where=members > number[-1] * _NONE)
        known = float((total * means).sum())
        moved = np.sort(means)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers, known


def nearest(weights: npt.NDArray[np.float32], book: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Give the index of the nearest number of a codebook (of at most 256, in order) for each weight."""
    middles = (book[1:].astype(np.float64) + book[:-1].astype(np.float64)) / 2
    return np.searchsorted(middles, weights).astype(np.uint8)
