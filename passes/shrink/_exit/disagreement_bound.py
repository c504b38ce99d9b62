"""Number of disagreements among samples that still shows that few inputs are affected."""

from __future__ import annotations

import math
import sys

DOUBT = 0.1
"""Probability, at most, of taking a disagreement for allowed that is not."""


def disagreements(share: float, samples: int) -> int | None:
    """Give how many disagreements among samples still show that they are at most a share of all inputs.

    The largest number that so few or fewer would be seen with a probability of at most `DOUBT` if the share were
    larger (Clopper and Pearson, 1934, one-sided).

    Returns:
        The number; `None` when not even none at all among so few samples shows it.
    """
    if share <= 0:
        return None
    below, term = 0.0, (1 - share) ** samples
    for count in range(samples + 1):
        below += term
        if below > DOUBT:
            return count - 1 if count else None
        term *= (samples - count) / (count + 1) * share / (1 - share)
    return samples


def samples_for(share: float) -> int:
    """Number of samples that, all in agreement, bound the share of disagreements."""
    return math.ceil(math.log(DOUBT) / math.log(1 - share)) if share > 0 else sys.maxsize
