"""Held-out samples: a fifth of the calibration data, which nothing is calibrated on, verifies what came of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np

from memoptc.runtime.data import LABEL_KEYS, Data, Sample

SHARE = 5
"""Of so many samples, the last is held out: 20 %, spread evenly over data that is sorted."""


class Part(Data):
    """One part of some samples: those that are held out, or the others.

    Args:
        data: All samples; they can be walked again and again.
        held_out: Which part.
    """

    def __init__(self, data: Data, *, held_out: bool) -> None:
        self.name, self._data, self._held_out = data.name, data, held_out

    def __iter__(self) -> Iterator[Sample]:
        return (s for i, s in enumerate(self._data) if (i % SHARE == SHARE - 1) is self._held_out)

    def feeds(self) -> Iterator[dict[str, Any]]:
        """Give the samples as data: dictionaries with labels among the inputs."""
        for sample in self:
            key = next(k for k in LABEL_KEYS if k not in sample.feed)
            yield sample.feed | ({} if sample.label is None else {key: sample.label})


class FollowedBy:
    """Samples, and behind them the first ones of others.

    Args:
        first: Samples that are all taken.
        others: What comes behind them.
        more: How many of those.
    """

    def __init__(self, first: Iterable[Sample], others: Iterable[Sample], more: int) -> None:
        self._first, self._others, self._more = first, others, more

    def __iter__(self) -> Iterator[Sample]:
        return chain(self._first, islice(self._others, self._more))


def samples_with(data: Iterable[Sample], rows: int) -> int:
    """Number of samples that have so many rows with labels; of all samples, where these have fewer."""
    samples = 0
    for sample in data if rows > 0 else ():
        samples += 1
        rows -= labelled_rows(sample)
        if rows <= 0:
            break
    return samples


def labelled_rows(sample: Sample) -> int:
    """Number of labels of a sample; negative ones stand for none."""
    label = sample.label
    if label is None:
        return 0
    return int(np.count_nonzero(label >= 0)) if label.dtype.kind in "iu" else label.size


def can_hold_out(data: Iterable[Sample]) -> bool:
    """True if there are enough samples for one to be held out."""
    return sum(1 for _ in islice(data, SHARE)) == SHARE
