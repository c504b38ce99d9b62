"""Rounding that knows the data: the error of one weight is made up for by those that are rounded after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from memoptc.passes.precision._quantize.blocks import Blocks
from memoptc.passes.precision._quantize.numerics import Codes
from memoptc.passes.precision._quantize.refit import refit_scales
from memoptc.runtime.moments import Moments

Floats = npt.NDArray[np.float64]

DAMPINGS = (0.01, 0.1, 1.0)
"""Parts of the mean diagonal that are added to it: the more, the nearer to plain rounding."""

PROBED = 4
"""Weights of a model for which all of them are tried."""

_ROWS_AT_ONCE = 1 << 21
"""Weights that are rounded at once (it needs about ten float64 for each): rows do not depend on each other."""

_PANEL = 128
"""Columns after which the error goes to all columns that follow; within, it goes on at once."""


@dataclass(frozen=True)
class Grid:
    """Grid of values that a weight can take: `step * level` for whole levels from `low` to `high`.

    Args:
        step: Float64, broadcast to the weights.
        low: Smallest level, broadcast.
        high: Largest level, broadcast.
    """

    step: Floats
    low: Floats
    high: Floats

    def nearest(self, weight: Floats) -> Floats:
        """Round each weight by itself."""
        found: Floats = np.clip(np.rint(weight / self.step), self.low, self.high)
        return found


@dataclass(frozen=True)
class Rounded:
    """Levels, and what they are good for.

    Args:
        levels: Whole numbers in float64, as the weights; empty where they are in blocks of codes already.
        before: Energy of the product's error on rows that were kept aside, rounded plainly.
        after: The same, rounded so by the other rows; the levels go by all.
        damping: With which damping; 0 where plain rounding stays.
    """

    levels: Floats
    before: float
    after: float
    damping: float = 0.0


@dataclass
class Dampings:
    """The dampings to try for one weight after the other: all at first, then the one that did best most often.

    Args:
        won: How often each did best.
        seen: Weights so far.
    """

    won: Counter[float] = field(default_factory=Counter)
    seen: int = 0

    @property
    def next(self) -> Sequence[float]:
        """Those to try for the next weight."""
        if self.seen < PROBED or not self.won:
            return DAMPINGS
        return [max(DAMPINGS, key=lambda damping: self.won[damping])]

    def note(self, found: Rounded) -> Rounded:
        """Note what one weight gave, and hand it on."""
        self.seen += 1
        if found.damping:
            self.won[found.damping] += 1
        return found


def round_to(
    weight: npt.NDArray[np.generic],
    grid: Grid,
    moments: Moments,
    given: Floats | None = None,
    dampings: Sequence[float] = DAMPINGS,
) -> Rounded:
    """Round a matrix for the least error of its product, if that shows on rows that were kept aside.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization", 2022: columns are rounded one after the other, those
    first that meet the largest numbers (its act-order), and the error goes on to the columns not yet rounded as the
    inverse of X^T X says. Scales are not touched: they belong to blocks of neighbours, as MatMulNBits has them, so that
    no column has to move. Several dampings are tried, without the rows kept aside; what is no better on those
    than `given` gives `given`. With the damping that is best there, all rows then count: they are few for so many
    columns.

    Args:
        weight: Of shape (results, columns).
        grid: Where weights may go.
        moments: X^T X of what the columns meet.
        given: Levels to improve on; the nearest when not given.
        dampings: Parts of the mean diagonal to add to it, each tried.
    """
    w = np.asarray(weight, np.float64)
    step, low, high = (np.broadcast_to(a, w.shape) for a in (grid.step, grid.low, grid.high))
    full = Grid(step, low, high)
    levels = full.nearest(w) if given is None else given
    before = after = _energy(w - levels * step, moments.check)
    best = 0.0
    for damping in dampings if np.isfinite(moments.fit).all() and np.isfinite(before) and before > 0 else ():
        tried = _feed_back(w, full, moments.fit, damping)
        if tried is not None and (error := _energy(w - tried * step, moments.check)) < after:
            levels, after, best = tried, error, damping
    if best:
        whole = _feed_back(w, full, moments.fit + moments.check, best)
        levels = levels if whole is None else whole
    return Rounded(levels, before, after, best)


def _energy(difference: Floats, moments: Floats) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # who asks looks whether it is finite
        return max(float(np.einsum("ij,ij->", difference @ moments, difference)), 0.0)


def _inverse(upper: Floats) -> Floats:
    """Invert an upper triangular matrix, half by half."""
    if len(upper) <= _PANEL:
        return np.asarray(np.linalg.inv(upper), np.float64)
    half = len(upper) // 2
    found = np.zeros_like(upper)
    found[:half, :half], found[half:, half:] = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    found[:half, half:] = -found[:half, :half] @ upper[:half, half:] @ found[half:, half:]
    return found


def _feed_back(weight: Floats, grid: Grid, moments: Floats, damping: float) -> Floats | None:
    """Round column by column; `None` where the moments cannot be inverted."""
    found = _factor(moments, damping)
    if found is None:
        return None
    order, factor = found
    # transposed, so that a column lies in one piece
    rest, step, low, high = (np.ascontiguousarray(a.T[order]) for a in (weight, grid.step, grid.low, grid.high))
    levels = np.empty_like(rest)
    for start in range(0, len(rest), _PANEL):
        end = min(start + _PANEL, len(rest))
        errors = np.empty((end - start, rest.shape[1]))
        for i in range(start, end):
            levels[i] = np.clip(np.rint(rest[i] / step[i]), low[i], high[i])
            errors[i - start] = (rest[i] - levels[i] * step[i]) / factor[i, i]
            rest[i + 1 : end] -= np.outer(factor[i, i + 1 : end], errors[i - start])
        rest[end:] -= factor[start:end, end:].T @ errors
    ordered = np.empty_like(levels)
    ordered[order] = levels
    return np.ascontiguousarray(ordered.T)


def _factor(moments: Floats, damping: float) -> tuple[npt.NDArray[np.intp], Floats] | None:
    """Order of the columns, and the upper Cholesky factor of the inverse of their damped moments, if there is one."""
    diagonal = np.diag(moments)
    order = np.argsort(-diagonal, kind="stable")
    damped = np.asarray(moments[np.ix_(order, order)], np.float64)
    damped[np.diag_indices_from(damped)] += damping * float(diagonal.mean()) + float(np.finfo(np.float64).tiny)
    try:
        # the inverse of that of the matrix from behind
        factor = _inverse(np.asarray(np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1], np.float64))
    except np.linalg.LinAlgError:
        return None
    return (order, factor) if np.isfinite(factor).all() else None


def round_blocks(
    rows: npt.NDArray[np.float32], blocks: Blocks, moments: Moments, dampings: Dampings | None = None
) -> tuple[Blocks, Rounded]:
    """Give blocks with the same zeros, and codes and then scales that make the product's error least.

    Args:
        rows: The weights, of shape (results, columns).
        blocks: Their codes, either in rows of the same length or each block in a row of its own.
        moments: X^T X of what the columns meet.
        dampings: What earlier weights have shown.
    """
    dampings = Dampings() if dampings is None else dampings
    results, columns = rows.shape
    count = blocks.codes.size // results // blocks.block
    scales, zeros = blocks.scales.reshape(results, count), blocks.zeros.reshape(results, count)
    changed, fitted = blocks.codes.reshape(results, -1).copy(), scales.copy()
    before = after = damping = 0.0
    for part in _parts(results, columns):
        step, zero = (np.repeat(a[part].astype(np.float64), blocks.block, axis=1)[:, :columns] for a in (scales, zeros))
        grid = Grid(step, -zero, 2**blocks.bits - 1 - zero)
        found = dampings.note(round_to(rows[part], grid, moments, changed[part, :columns] - zero, dampings.next))
        changed[part, :columns] = (found.levels + zero).astype(np.uint8)
        if found.damping:
            fitted[part] = _refitted(rows[part], found.levels, scales[part], blocks.block, moments)
        before, after, damping = before + found.before, after + found.after, found.damping or damping
    coded = replace(blocks, codes=changed.reshape(blocks.codes.shape), scales=fitted.reshape(blocks.scales.shape))
    return coded, Rounded(np.empty((0, columns)), before, after, damping)


def _refitted(
    rows: npt.NDArray[np.float32], levels: Floats, scales: npt.NDArray[np.float32], block: int, moments: Moments
) -> npt.NDArray[np.float32]:
    """Scales fitted to levels, if that shows on rows that were kept aside; those that there were, else."""
    weight, before = rows.astype(np.float64), scales.astype(np.float64)

    def error(tried: Floats) -> float:
        return _energy(weight - levels * np.repeat(tried, block, axis=1)[:, : weight.shape[1]], moments.check)

    if error(refit_scales(weight, levels, before, block, moments.fit.astype(np.float64))) >= error(before):
        return scales
    whole = (moments.fit + moments.check).astype(np.float64)
    return refit_scales(weight, levels, before, block, whole).astype(np.float32)


def nearer(rows: npt.NDArray[np.float32], first: Blocks, second: Blocks, moments: Moments) -> Blocks:
    """Give those blocks whose product errs less on rows that were kept aside; the first where both err alike."""
    errors = [error_aside(rows, blocks.decoded_rows, moments) for blocks in (first, second)]
    return second if errors[1] < errors[0] else first


def error_aside(
    rows: npt.NDArray[np.float32], decoded: Callable[[slice], npt.NDArray[np.float32]], moments: Moments
) -> float:
    """Squared error of a product on rows that were kept aside.

    Args:
        rows: The weight, `[results, columns]`.
        decoded: Gives some of its rows as they are coded.
        moments: X^T X of what the columns meet.
    """
    return sum(_energy(rows[part].astype(np.float64) - decoded(part), moments.check) for part in _parts(*rows.shape))


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Rows in pieces that fit into memory."""
    step = max(1, _ROWS_AT_ONCE // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def round_channels(
    weight: npt.NDArray[np.generic], codes: Codes, moments: Moments, bits: int, dampings: Dampings | None = None
) -> Codes:
    """Give codes with the same scales, one per channel, that make the product's error least.

    Args:
        weight: Of a product or convolution.
        codes: Its codes, with channels along an axis.
        moments: X^T X of what is multiplied, input channels before the places of a window.
        bits: Bits of the codes.
        dampings: What earlier weights have shown.
    """
    dampings = Dampings() if dampings is None else dampings
    axis = codes.axis
    assert axis is not None
    top = np.asarray(2 ** (bits - 1) - 1, np.float64)
    changed = codes.codes.copy()
    first, given, after = (np.moveaxis(a, axis, 0) for a in (np.asarray(weight), codes.codes, changed))
    for part in _parts(len(first), first.size // max(len(first), 1)):
        rows = first[part].astype(np.float64).reshape(len(first[part]), -1)
        levels = given[part].astype(np.float64).reshape(rows.shape) - codes.zero_point
        grid = Grid(codes.scales[part].astype(np.float64)[:, None], -top, top)
        found = dampings.note(round_to(rows, grid, moments, levels, dampings.next))
        after[part] = (found.levels + codes.zero_point).reshape(after[part].shape)
    return replace(codes, codes=changed)
