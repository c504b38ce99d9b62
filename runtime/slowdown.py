"""Slowdown of one model against another, with a confidence interval, from alternating turns."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TICK_MS = 0.02
"""Milliseconds below which a difference of latencies says nothing."""

_UNSURE = 0.07
"""Share of cases in which the interval of a slowdown may miss the true one."""


@dataclass(frozen=True)
class Slowdown:
    """Slowdown of one model against another: the middle of the ratios of their turns, and an interval for it.

    Args:
        ratio: The middle of the ratios' means in pairs (Hodges and Lehmann's estimate).
        low: Lower end of the interval that holds the true middle in at least 93 % of cases; of fewer than five turns,
            all of which count, in 87.5 % (four), 75 % (three) or 50 % (two).
        high: Its upper end.
    """

    ratio: float
    low: float
    high: float

    @staticmethod
    def of(before: Sequence[float], after: Sequence[float]) -> Slowdown:
        """Compare two models whose turns alternated: Wilcoxon's signed-rank test on the logarithms of their ratios.

        What disturbs turns meets both models alike, so these lie symmetrically around the true one, whatever the noise
        looks like otherwise. The ends are order statistics of the geometric means of all pairs of ratios.
        """
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        means = sorted(
            a if i == j else math.sqrt(a * b) for i, a in enumerate(ratios) for j, b in enumerate(ratios[: i + 1])
        )
        drop = _dropped(len(ratios))
        return Slowdown(statistics.median(means), means[drop], means[-1 - drop])

    def above(self, bound: float) -> bool:
        """True if noise alone does not explain that the bound is exceeded."""
        return self.low > bound

    def breaks(self, bound: float) -> bool:
        """True if a promise of at most `bound` is to be taken for broken.

        Where the interval holds the bound after all turns that there was time for, the ratio decides; but not where
        noise may explain more than half of the slowdown that is allowed: then nothing is known to be slow.
        """
        return self.above(bound) or (self.ratio > bound and self.low > (1 + bound) / 2)


@functools.cache
def _dropped(count: int) -> int:
    """Number of means to drop at each end, so that the interval still holds the middle in 93 % of cases.

    None below five turns: then even the whole range holds it less often.

    Of the 2**count ways to choose among the ranks 1 ... count, those with a sum of at most n make up the probability
    that the true middle lies below the mean number n + 1.
    """
    ways = [1]  # by sum
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        ways = [n + (longer[i - rank] if i >= rank else 0) for i, n in enumerate(longer)]
    below, drop = ways[0], 0
    while 2 * (below + ways[drop + 1]) <= _UNSURE * 2**count:
        drop += 1
        below += ways[drop]
    return drop
