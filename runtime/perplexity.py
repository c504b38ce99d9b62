"""Perplexity of a decoder on text, of token numbers alone; the rest of a feed follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph
from memoptc.ir.decoder import DecoderFacts, recognise, recognised
from memoptc.ir.diagnostics import InputError
from memoptc.runtime.data import Sample
from memoptc.runtime.decoder_feeds import first_feed
from memoptc.runtime.decoding import Decoder
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.options import RunOptions

PERPLEXITY = "perplexity"
"""The metric's name."""


class Perplexity:
    """Mean logarithm of the probability of each next token, as a metric: more is better, `perplexity` turns it round.

    Args:
        graph: The decoder.

    Raises:
        InputError: it is none.
    """

    def __init__(self, graph: Graph) -> None:
        self.facts = recognise(graph)

    def __call__(self, outcomes: Iterable[Any]) -> float:
        """Give it for samples of a data set; the labels of ids are the ids one step later."""
        total, count = 0.0, 0
        for outcome in outcomes:
            ids = np.asarray(outcome.feed[self.facts.ids])
            logits = np.asarray(outcome.outputs[self.facts.logits])
            if logits.shape[:2] != ids.shape:
                raise InputError(
                    "Perplexity is of the scores of all steps, and the model gives others.",
                    hint="Leave out --last-logits, or --max-accuracy-loss.",
                )
            mask = outcome.feed.get(self.facts.mask) if self.facts.mask else None
            shown = np.ones(ids.shape, bool) if mask is None else np.asarray(mask)[:, -ids.shape[1] :] != 0
            both = shown[:, 1:] & shown[:, :-1]
            total += float(logarithms(logits[:, :-1], ids[:, 1:])[both].sum())
            count += int(both.sum())
        if not count:
            raise InputError("No sample has two tokens, so there is no next one to compare with.")
        return total / count


def perplexity(mean: float) -> float:
    """Give perplexity for a mean logarithm of probabilities."""
    return math.exp(min(-mean, 700.0))


def logarithms(scores: npt.NDArray[Any], tokens: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Logarithm of the probability that scores [..., vocabulary] give to tokens [...]."""
    wide = scores.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    chosen = np.take_along_axis(wide, tokens[..., None].astype(np.int64), -1)[..., 0]
    return np.asarray(chosen - np.log(np.exp(wide).sum(-1)))


def measure_perplexity(
    model: ModelSource, facts: DecoderFacts, samples: Iterable[Sample], options: RunOptions
) -> tuple[float, int]:
    """Run a decoder over text, and say how surprised it is.

    Where it scores the last step only, tokens go in one by one, which takes longer and tests its cache, too.

    Args:
        model: The decoder.
        facts: What is known of it.
        samples: Feeds with ids; a past that they bring is not used.
        options: How to run it.

    Returns:
        The mean logarithm of the probability of each next token, and of how many tokens.
    """
    decoder = Decoder.over(Evaluator(model, options).session, facts)
    total, count = 0.0, 0
    for sample in samples:
        given = {name: np.asarray(sample.feed[name]) for name in facts.context_inputs if name in sample.feed}
        rows = np.asarray(sample.feed[facts.ids])
        mask = sample.feed.get(facts.mask) if facts.mask else None
        for at, row in enumerate(rows):
            shown = np.ones(len(row), bool) if mask is None else np.asarray(mask)[at, -len(row) :] != 0
            ids = row[shown]
            if len(ids) > 1:
                scores = decoder.score(ids, context={n: v[at : at + 1] for n, v in given.items()})
                total += float(logarithms(scores, ids[1:]).sum())
                count += len(ids) - 1
    if not count:
        raise InputError("No sample has two tokens, so there is no next one to compare with.")
    return total / count, count


class Completed:
    """Adds to feeds what follows from their ids: a mask of ones, positions from 0, empty caches.

    Args:
        graph: The model; it is analysed when a feed lacks something.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._facts: DecoderFacts | None = None
        self._analysed = False

    def __call__(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Give a feed with what it lacks; as it is where the model is no decoder, or the feed has no ids."""
        if not self._analysed:
            self._facts, self._analysed = recognised(self._graph), True
        facts = self._facts
        if facts is None or np.ndim(feed.get(facts.ids, ())) != 2:
            return dict(feed)
        return first_feed(facts, np.asarray(feed[facts.ids])) | dict(feed)
