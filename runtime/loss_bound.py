"""Bounds on lost accuracy: how much of all inputs may be lost where samples show so much."""

from __future__ import annotations

import math
import sys
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DOUBT = 0.1
"""Probability, at most, of taking a loss for allowed that is not."""

SLACK = 1e-12
"""Rounding of ratios of counts."""

_HALVINGS = 40
"""Of an interval of shares, to its part of 1e-12."""


def disagreements(share: float, samples: int) -> int | None:
    """Give how many disagreements among samples still show that they are at most a share of all inputs.

    The largest number that so few or fewer would be seen with a probability of at most `DOUBT` if the share were
    larger (Clopper and Pearson, 1934, one-sided).

    Returns:
        The number; `None` when not even none at all among so few samples shows it.
    """
    if share <= 0:
        return None
    seldom = int(np.count_nonzero(_at_most(samples, samples, share) <= DOUBT))
    return seldom - 1 if seldom else None


def samples_for(share: float, disagreeing: int = 0) -> int:
    """Number of samples that bound the share of disagreements where so many of them disagree."""
    if not 0 < share < 1:
        return sys.maxsize if share <= 0 else disagreeing + 1
    found = max(math.ceil(math.log(DOUBT) / math.log(1 - share)), disagreeing + 1)
    while disagreeing and _at_most(disagreeing, found, share)[-1] > DOUBT:
        found += max(1, found // 64)
    return found


def share_for(count: int, samples: int) -> float:
    """Give the largest share of all inputs that so many disagreements among samples do not rule out."""
    if count >= samples:
        return 1.0
    low, high = count / samples, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _at_most(count, samples, middle)[-1] <= DOUBT else (middle, high)
    return high


def _at_most(most: int, samples: int, share: float) -> npt.NDArray[np.float64]:
    """Probabilities of at most 0, 1, ... `most` disagreements; by logarithms, since powers of a share underflow."""
    if share >= 1:
        return np.asarray(np.arange(most + 1) >= samples, np.float64)
    counts = np.arange(most + 1)
    ways = np.cumsum(np.log((samples + 1 - counts[1:]) / counts[1:]))
    ways = np.concatenate([[0.0], ways])
    return np.cumsum(np.exp(ways + counts * math.log(share) + (samples - counts) * math.log1p(-share)))


class PairedHits(NamedTuple):
    """Right and wrong answers of two models on the same labelled rows.

    Args:
        lost: Rows that the original has right and the candidate wrong.
        won: Rows that the candidate has right and the original wrong.
        rows: All of them.
    """

    lost: int
    won: int
    rows: int

    @staticmethod
    def of(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> PairedHits:
        """Count, from which rows each model has right; a candidate that answers other rows has none right."""
        after = after if after.shape == before.shape else np.zeros_like(before)
        return PairedHits(int((before & ~after).sum()), int((after & ~before).sum()), before.size)

    def __add__(self, other: tuple[int, ...]) -> PairedHits:  # type: ignore[override]
        return PairedHits(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def loss(self) -> float:
        """Accuracy lost on these rows, in [-1, 1]."""
        return (self.lost - self.won) / self.rows

    @property
    def bound(self) -> float:
        """Accuracy lost of all inputs of their kind, at most, with a probability of 1 - `DOUBT`.

        Only rows on which the two differ tell them apart (McNemar, 1947). The larger of two bounds: the score interval
        of a difference of paired shares (Tango, "Equivalence test and confidence interval for the difference in
        proportions for the paired-sample design", 1998), which is a little short where hardly any row differs, and the
        exact one as though what is lost beyond what is won were all that differs (Clopper and Pearson, 1934). A search
        that looks at several candidates finds the luckiest more often than that; most look at ten or so, each of which
        loses more than the one before.
        """
        return max(share_for(max(self.lost - self.won, 0), self.rows), self._score_bound())

    def _score_bound(self) -> float:
        low, high, least = self.loss, 1.0, NormalDist().inv_cdf(DOUBT)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._score(middle) < least else (middle, high)
        return high

    def _score(self, loss: float) -> float:
        """Standard deviations by which the loss seen lies above a true one."""
        rows, lost, won = self.rows, self.lost, self.won
        # The share of rows won that is likeliest at this loss: the root of 2 n q^2 + b q + c.
        b = (2 * rows - lost + won) * loss - lost - won
        c = -won * loss * (1 - loss)
        share = (math.sqrt(max(b * b - 8 * rows * c, 0.0)) - b) / (4 * rows)
        spread = rows * (2 * share + loss * (1 - loss))
        return (lost - won - rows * loss) / math.sqrt(spread) if spread > 0 else 0.0

    def __str__(self) -> str:
        counts = f"{self.lost} lost and {self.won} won of {self.rows}"
        return f"{counts}: with a confidence of {1 - DOUBT:.0%} a loss of at most {self.bound:.4f}"

    def are_enough(self, max_loss: float) -> bool:
        """True if so many rows, none of them lost, show that no more than this is lost."""
        return self.rows >= samples_for(max_loss)

    def allow(self, max_loss: float) -> bool:
        """True if these rows show that no more is lost; where they are too few for that, if nothing is lost on them."""
        return self.loss <= SLACK if not self.are_enough(max_loss) else self.bound <= max_loss + SLACK

    def doubt(self, max_loss: float) -> str:
        """Say how many rows it takes, where these are too few; `""` where they are enough, or nothing may be lost."""
        if max_loss <= 0 or self.are_enough(max_loss):
            return ""
        return (
            f"a loss of at most {max_loss:g} cannot be shown on {self.rows} labelled rows: with a confidence of "
            f"{1 - DOUBT:.0%} they bound it by {self.bound:.4f}; it takes {samples_for(max_loss)}, none of them lost"
        )
