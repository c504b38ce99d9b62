"""Scales of blocks fitted to codes that are rounded already: the least squares of a product's error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_RIDGE = 1e-3
"""Part of the diagonal that holds scales where they are: blocks that the data say little of keep theirs."""

_LEAST, _MOST = 0.5, 1.5
"""Ratios to the scale before within which a new one lies; a block whose fit lies outside keeps its own."""


def refit_scales(weight: Floats, levels: Floats, scales: Floats, block: int, moments: Floats) -> Floats:
    """Give scales that make the error of a product least for given levels.

    Each row of the weight is `sum over blocks of scale * levels`, so that its squared error over the data is a
    quadratic form in as many unknowns as it has blocks, whose normal equations are solved row by row. Within one block
    alone this is the polish of `encode`.

    Args:
        weight: `[rows, columns]`.
        levels: Codes less the code of 0, `[rows, columns]`.
        scales: `[rows, blocks]`.
        block: Columns that share a scale; the last ones may be fewer.
        moments: X^T X of what the columns meet, `[columns, columns]`.
    """
    rows, count = scales.shape
    edges = np.arange(0, weight.shape[1], block)
    sums = np.empty((rows, count, count))
    for i, start in enumerate(edges):
        part = slice(start, start + block)
        sums[:, i] = np.add.reduceat((levels[:, part] @ moments[part]) * levels, edges, axis=1)
    wanted = np.add.reduceat((weight @ moments) * levels, edges, axis=1)
    ridge = _RIDGE * np.einsum("ijj->ij", sums) + float(np.finfo(np.float64).tiny)
    sums[:, np.arange(count), np.arange(count)] += ridge
    found: Floats = np.linalg.solve(sums, (wanted + ridge * scales)[..., None])[..., 0]
    ratio = found / scales
    return np.where((ratio > _LEAST) & (ratio < _MOST), found, scales)
