"""Held-out samples: a fifth of the calibration data, which nothing is calibrated on, verifies what came of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

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


def can_hold_out(data: Iterable[Sample]) -> bool:
    """True if there are enough samples for one to be held out."""
    return sum(1 for _ in islice(data, SHARE)) == SHARE
