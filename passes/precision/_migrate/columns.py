"""Factors per column with which blocks of few bits err least in products with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memoptc.passes.precision._quantize.blocks import encode

Floats = npt.NDArray[np.float64]

SHARES = tuple((of_data, of_weights) for of_data in (0.0, 0.25, 0.5, 0.75) for of_weights in (0.0, 0.5, 1.0))
"""Powers to try of what columns meet, and of the reciprocals of what weights they have."""

WIDEST = 16.0
"""Factors lie between 1 / WIDEST and WIDEST: a column that was silent in the data may speak later."""

_SAMPLED = 1 << 16
"""Weights of one matrix that are looked at: evenly spaced rows."""


def column_factors(
    matrices: Sequence[npt.NDArray[np.float32]], squares: Sequence[Floats], bits: int, block: int
) -> tuple[Floats, float]:
    """Find factors for the columns of matrices that read the same tensor.

    A large weight makes the steps of its whole block large; a column that meets large numbers matters more than its
    neighbours. A factor gives a column finer steps, at the cost of the others in its block. Lin et al., "AWQ", 2023,
    search one power of the activations' means; here one of the columns' own weights is searched, too, which evens out
    blocks without any data.

    Args:
        matrices: Each `[results, columns]`.
        squares: For each the mean square of what its columns meet, `[columns]`.
        bits: Of the codes.
        block: Columns that share a scale.

    Returns:
        What to multiply columns by, and by how much the expected error of the products falls, as a ratio.
    """
    sampled = [rows[:: max(1, rows.size // _SAMPLED)] for rows in matrices]
    met = _even(np.sqrt(np.mean(squares, axis=0)))
    weighs = _even(np.sqrt(np.mean([np.square(rows, dtype=np.float64).mean(0) for rows in sampled], axis=0)))
    best, least, plain = np.ones(len(met)), np.inf, 0.0
    for of_data, of_weights in SHARES:
        factors = np.clip(met**of_data / weighs**of_weights, 1 / WIDEST, WIDEST)
        error = 0.0
        for rows, seen in zip(sampled, squares, strict=True):
            scaled = (rows * factors).astype(np.float32)
            difference = encode(scaled, bits, block, symmetric=False, search=False).decoded() - scaled
            error += float((np.square(difference, dtype=np.float64).sum(0) * seen / np.square(factors)).sum())
        plain = error if not of_data and not of_weights else plain
        if error < least:
            best, least = factors, error
    return best, plain / least if least > 0 else 1.0


def _even(sizes: Floats) -> Floats:
    """Sizes of columns in parts of their mean, none far below it."""
    mean = float(sizes.mean())
    return np.maximum(sizes / mean, 1e-3) if mean > 0 else np.ones(len(sizes))
