"""Distributions of tensors in bounded memory: cells of a power-of-two width, joined as the range grows.

Cell i of exponent e holds the values in [i * 2^e, (i + 1) * 2^e). e is the smallest for which the range seen needs
at most `CELLS` cells. As ranges only grow, so does e, and joining 2^d cells is exact: floor(floor(x / a) / 2^d) is
floor(x / (a * 2^d)). Hence counts depend on the values alone, neither on their order nor on how they were batched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

CELLS = 4096
"""Most cells of one histogram. Between half of them and all are in use: 8 to 16 per step of an 8-bit code."""

_DEPTH = 22
"""Binary digits that indices may have: of 24 that float32 has; finer cells would stay empty."""

_LEAST = -160
"""Smallest exponent, below all float32 numbers."""

_CHUNK = 1 << 18
"""Elements counted at once: they stay in the cache."""

_KEPT = 12
"""Largest values of single calls that are remembered, at each end."""

_LEAST_SINGLE = -100
"""Exponent from which what elements are multiplied with, and the result, are float32 numbers."""


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's elements.

    Args:
        low: Left edge of the first cell.
        high: Right edge of the last cell.
        counts: int64, one per cell of equal width.
        zeros: How many of the elements are exactly 0 (a code has no error there).
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]
    zeros: int = 0

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Edges of the cells, one more than there are cells."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    def quantile(self, part: float) -> float:
        """Give the value below which `part` (0 ... 1) of the elements lie, interpolated inside its cell."""
        total = self.counts.sum()
        if not total or self.high <= self.low:
            return self.low
        below = np.concatenate([[0], np.cumsum(self.counts)]) / total
        return float(np.interp(part, below, self.edges))


@dataclass
class Accumulator:
    """Histogram of one tensor, filled call by call.

    Args:
        low: Smallest element, exactly.
        high: Largest element, exactly.
        count: Elements seen.
        zeros: Elements that are exactly 0.
        exponent: Cells are 2^exponent wide.
        first: Index of the first cell.
        counts: int64, one per cell from `first` on; as many as `low` to `high` need.
        lows: Smallest elements of single calls, the smallest few in order.
        highs: Largest elements of single calls, the largest few in order.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    zeros: int = 0
    exponent: int = _LEAST
    first: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """True if no call had NaN or Inf."""
        return not self.count or (math.isfinite(self.low) and math.isfinite(self.high))

    def note(self, least: float, most: float) -> None:
        """Remember the extremes of one call."""
        self.lows = sorted([*self.lows, least])[:_KEPT]
        self.highs = sorted([*self.highs, most], reverse=True)[:_KEPT]

    def growth(self) -> tuple[float, float]:
        """By how much each end moved outwards, on average, when the calls became twice as many as they were.

        That is the extreme of all less the expected one of a random half. In a half, the k-th most extreme call is the
        most extreme with probability 2^-k, whatever the distribution, so a few calls at each end are enough; 0 where
        all reach equally far, as pixels do, and where there was one call only.
        """
        return _growth([-value for value in self.lows]), _growth(self.highs)

    def add(self, array: npt.NDArray[np.generic], ends: Sequence[float] | None = None) -> bool:
        """Count elements of any shape and float type, as float32.

        Args:
            array: The elements.
            ends: Smallest and largest of all, and their sum (NaN where one is), where these are some of more.

        Returns:
            Whether all were finite, here and in earlier calls; else no cells are counted.
        """
        flat = np.asarray(array, np.float32).reshape(-1)
        if not flat.size:
            return True
        least, most, total = (float(flat.min()), float(flat.max()), 0.0) if ends is None else ends
        if not (self.finite and math.isfinite(least) and math.isfinite(most)) or math.isnan(total):
            self.low, self.high, self.count = -math.inf, math.inf, self.count + flat.size
            return False
        self._reach(least, most)
        self.note(least, most)
        # a power of two from 1 on scales exactly, and indices have fewer digits than float32
        exact = np.float32 if _LEAST_SINGLE <= self.exponent <= 0 else np.float64
        factor, first = exact(2.0**-self.exponent), exact(self.first)
        for start in range(0, flat.size, _CHUNK):
            index = np.multiply(flat[start : start + _CHUNK], factor, dtype=exact)
            np.floor(index, out=index)
            index -= first
            self.counts += np.bincount(index.astype(np.intp), minlength=len(self.counts))
        self.count += flat.size
        self.zeros += flat.size - int(np.count_nonzero(flat))
        return True

    def histogram(self) -> Histogram:
        """Give what was counted."""
        width = 2.0**self.exponent
        return Histogram(
            self.first * width, (self.first + len(self.counts)) * width, self.counts.copy(), zeros=self.zeros
        )

    def _reach(self, least: float, most: float) -> None:
        """Make room for a range."""
        low, high = min(self.low, least), max(self.high, most)
        if self.count and (low, high) == (self.low, self.high):
            return
        exponent = _exponent(low, high)
        first, last = _cell(low, exponent), _cell(high, exponent)
        counts = np.zeros(last - first + 1, np.int64)
        if self.count:
            moved = (np.arange(len(self.counts)) + self.first >> (exponent - self.exponent)) - first
            np.add.at(counts, moved, self.counts)
        self.low, self.high, self.exponent, self.first, self.counts = low, high, exponent, first, counts


def _growth(ends: Sequence[float]) -> float:
    """The largest of some numbers, in falling order, less the expected largest of a random half of them."""
    if len(ends) < 2:
        return 0.0
    expected = math.fsum(math.ldexp(value, -k - 1) for k, value in enumerate(ends)) + math.ldexp(ends[-1], -len(ends))
    return max(ends[0] - expected, 0.0)


def _cell(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent(low: float, high: float) -> int:
    """The smallest exponent whose cells are few enough and whose indices are short enough."""
    start = math.frexp(high - low)[1] - CELLS.bit_length() if high > low else _LEAST
    digits = math.frexp(max(abs(low), abs(high)))[1] - _DEPTH
    exponent = max(start, digits, _LEAST)
    while _cell(high, exponent) - _cell(low, exponent) >= CELLS:
        exponent += 1
    return exponent
