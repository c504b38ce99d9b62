"""Texts in part: what a decoder that scores its last step only says behind each of several beginnings of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from memoptc.ir.core import Graph
from memoptc.ir.decoder import recognised
from memoptc.ir.decoder_facts import DecoderFacts
from memoptc.runtime.data import Sample
from memoptc.runtime.decoder_feeds import first_feed

ROWS = 16
"""Rows of scores from which samples are taken as they are: of fewer, single tokens would decide."""


def rows_enough(samples: Iterable[Sample], graph: Graph) -> Iterable[Sample]:
    """Give samples, those of a decoder that scores its last step only with shorter beginnings, where they are few.

    Args:
        samples: To be walked again and again.
        graph: The model.
    """
    scores_one_step = any(v.rank == 3 and v.shape is not None and v.shape[1] == 1 for v in graph.outputs)
    facts = recognised(graph) if scores_one_step else None
    return WithPrefixes(samples, facts) if facts is not None and facts.last_only and not facts.steps else samples


class WithPrefixes:
    """Samples, and behind them shorter beginnings of each, at even lengths, so that there are `ROWS` rows of scores.

    Such a decoder gives one row of scores for a whole text, where others give one for each token. Samples whose caches
    hold a past, or that have inputs beside ids, mask, positions and context, stay as they are.

    Args:
        samples: To be walked again and again.
        facts: Of the decoder.
    """

    def __init__(self, samples: Iterable[Sample], facts: DecoderFacts) -> None:
        self._samples, self._facts = samples, facts

    def __iter__(self) -> Iterator[Sample]:
        yield from self._samples
        lengths = -(-ROWS // max(sum(1 for _ in islice(self._samples, ROWS)), 1))
        for sample in self._samples if lengths > 1 else ():
            steps = np.shape(sample.feed[self._facts.ids])[-1] if self._begins(sample) else 0
            for number in range(1, lengths):
                length = steps * number // lengths
                if length:
                    yield self._first(sample, length)

    def _begins(self, sample: Sample) -> bool:
        """True if a sample is a text from its first token on, without padding."""
        ids = np.asarray(sample.feed[self._facts.ids])
        if ids.ndim != 2:
            return False
        whole = first_feed(self._facts, ids)
        others = sample.feed.keys() - whole.keys() - {self._facts.ids, *self._facts.context_inputs}
        return not others and all(_alike(sample.feed.get(name), value) for name, value in whole.items())

    def _first(self, sample: Sample, length: int) -> Sample:
        ids = np.asarray(sample.feed[self._facts.ids])[:, :length]
        feed = {**sample.feed, **first_feed(self._facts, ids), self._facts.ids: ids}
        return Sample(feed, None, f"{sample.where}, its first {length} tokens")


def _alike(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.array_equal(np.asarray(one), np.asarray(other))
