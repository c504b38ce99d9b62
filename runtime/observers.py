"""From a tensor's distribution to the range that an 8-bit code is to cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.runtime.histogram import Histogram

LEVELS = 256
"""Codes of 8 bits."""

AUTO_POWER = 3.0
"""What `auto` minimizes is the sum of this power of the errors. Errors of rounding have random signs and average out
in the sums that follow, those of clipping all point the same way: squares count them too low, and every real model
we measured is better with cubes."""

Ends: TypeAlias = tuple[float, float]
Observer: TypeAlias = Callable[[Histogram, Ends, float], Ends]
"""From a histogram, the exact extremes and the percentile (in percent) to the range to cover."""

_STEPS = 50
"""Clipped ends are tried at as many equal steps from 0 to each extreme."""


@dataclass(frozen=True)
class _Points:
    """A distribution as weighted values: two in each cell that is not empty."""

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    @classmethod
    def of(cls, histogram: Histogram, ends: Ends) -> _Points:
        counts, edges = _without_zeros(histogram), histogram.edges
        used = counts > 0
        left, width = edges[:-1][used], (edges[1:] - edges[:-1])[used]
        values = np.concatenate([left + width / 4, left + width * 3 / 4])
        return cls(np.clip(values, *ends), np.tile(counts[used] / 2, 2))

    def error(self, low: float, high: float, power: float = 2.0) -> float:
        """Sum of powers of the errors of the asymmetric 8-bit code of a range, widened to hold 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (LEVELS - 1)
        if scale <= 0.0:
            return float(self.weights @ np.abs(self.values) ** power)
        zero = np.round(-low / scale)
        codes = np.rint(self.values / scale)
        np.minimum(np.maximum(codes, -zero, out=codes), LEVELS - 1 - zero, out=codes)
        codes *= -scale
        codes += self.values
        error = np.abs(codes, out=codes)
        if power == 2.0:
            return float(self.weights @ np.square(error))
        return float(self.weights @ (error * np.square(error) if power == 3.0 else error**power))

    def search(self, ends: Ends, power: float) -> Ends:
        """Give the ends with the least error.

        They are tried at 1/50 steps of the range that holds 0, one after the other, twice (coordinate descent).
        """
        low, high = min(ends[0], 0.0), max(ends[1], 0.0)
        best, least = (low, high), self.error(low, high, power)
        for end in (1, 0, 1, 0):
            whole = (low, high)[end]
            if whole == 0.0:
                continue
            for step in range(1, _STEPS + 1):
                tried = (best[0], whole * step / _STEPS) if end else (whole * step / _STEPS, best[1])
                if (error := self.error(*tried, power)) < least:
                    best, least = tried, error
        return best


def _without_zeros(histogram: Histogram) -> npt.NDArray[np.float64]:
    """Counts without the exact zeros, whose code has no error whatever the range."""
    counts = histogram.counts.astype(np.float64)
    if histogram.zeros:  # the cell that holds 0 is the last whose left edge is not above it
        counts[int(np.searchsorted(histogram.edges[:-1], 0.0, side="right")) - 1] -= histogram.zeros
    return counts


def squared_error(histogram: Histogram, ends: Ends, low: float, high: float) -> float:
    """Sum of squared errors of a distribution's 8-bit code.

    Args:
        histogram: The distribution.
        ends: Its exact extremes.
        low: Smallest value that the code represents; 0 where it is above.
        high: Largest value that the code represents; 0 where it is below.
    """
    return _Points.of(histogram, ends).error(low, high)


def _minmax(histogram: Histogram, ends: Ends, percentile: float) -> Ends:
    return ends


def _percentile(histogram: Histogram, ends: Ends, percentile: float) -> Ends:
    """Leave the same part of the elements outside at either end: 99.99 leaves 0.01 % above and 0.01 % below."""
    part = percentile / 100
    low, high = np.clip([histogram.quantile(1 - part), histogram.quantile(part)], *ends)
    return float(low), float(high)


def _least_error(histogram: Histogram, ends: Ends, percentile: float) -> Ends:
    """Clip where the squared error of the code, measured over the distribution, is least."""
    return _Points.of(histogram, ends).search(ends, 2.0)


def _least_divergence(histogram: Histogram, ends: Ends, percentile: float) -> Ends:
    """Clip where the coded distribution tells least apart from the real one.

    Both ends move in at the same rate; what lies outside counts as lying at the end; the measure is the
    Kullback-Leibler divergence (Migacz, "8-bit Inference with TensorRT", 2017, here for asymmetric codes).
    """
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    counts, edges = _without_zeros(histogram), histogram.edges
    centers = (edges[:-1] + edges[1:]) / 2
    best, least = (low, high), np.inf
    for step in range(_STEPS, 4, -1):
        tried = (low * step / _STEPS, high * step / _STEPS)
        if (found := _divergence(counts, centers, *tried)) < least:
            best, least = tried, found
    return best


def _divergence(counts: npt.NDArray[np.float64], centers: npt.NDArray[np.float64], low: float, high: float) -> float:
    scale = (high - low) / (LEVELS - 1)
    inside = (centers >= low) & (centers <= high)
    if scale <= 0.0 or not counts[inside].any():
        return 0.0 if scale <= 0.0 and not (low or high) else np.inf
    within = counts[inside]
    reference = within.copy()
    reference[0] += counts[centers < low].sum()
    reference[-1] += counts[centers > high].sum()
    codes = np.round((centers[inside] - low) / scale).astype(np.intp)
    filled = reference > 0
    share = np.bincount(codes, within) / np.maximum(np.bincount(codes, filled), 1)
    coded = np.where(filled, share[codes], 0.0)
    p, q = reference[filled] / reference.sum(), coded[filled] / coded.sum()
    # cells at the ends that hold nothing but what was clipped: as if one element in a million lay there
    q = np.maximum(q, 1e-6 / within.sum())
    return float(np.sum(p * np.log(p / q)))


OBSERVERS: dict[str, Observer] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _least_divergence,
    "mse": _least_error,
}
"""Method -> function that gives the range to cover."""


def covered_range(histogram: Histogram, ends: Ends, method: str, percentile: float) -> tuple[Ends, str]:
    """Give the range to cover, and the method that gave it.

    Args:
        histogram: A tensor's distribution.
        ends: Its exact extremes.
        method: A key of `OBSERVERS`, or `auto`: of their ranges, and the one found by search, that with the least
            sum of cubed errors over the distribution; the first among equals.
        percentile: In percent, for `percentile`.
    """
    if method != "auto":
        return OBSERVERS[method](histogram, ends, percentile), method
    points = _Points.of(histogram, ends)
    tried = [(observer(histogram, ends, percentile), name) for name, observer in OBSERVERS.items()]
    tried.append((points.search(ends, AUTO_POWER), "auto"))
    return min(tried, key=lambda item: points.error(item[0][0], item[0][1], AUTO_POWER))
