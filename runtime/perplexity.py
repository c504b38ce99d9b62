"""Perplexity of a language model on text; of a decoder with a cache the rest of a feed follows from token numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph
from memoptc.ir.decoder import DecoderFacts, recognise, recognised
from memoptc.ir.decoder_paths import is_integer, shape_of
from memoptc.ir.decoder_positions import rows_of_table
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import inferred
from memoptc.runtime.data import Sample
from memoptc.runtime.decoder_feeds import first_feed
from memoptc.runtime.decoding import Decoder
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.options import RunOptions

PERPLEXITY = "perplexity"
"""The metric's name."""

_Run: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Feed and outputs."""


@dataclass(frozen=True)
class StepScores:
    """Inputs and output of a language model without a cache: all tokens go in, scores of each next one come out.

    Args:
        ids: The input with numbers of tokens, [batch, steps].
        logits: The output with scores of the vocabulary, [batch, steps, words].
        mask: The input with a one for each token that counts; "" without.
        words: Size of the vocabulary.
    """

    ids: str
    logits: str
    mask: str
    words: int


def step_scores(graph: Graph) -> DecoderFacts | StepScores:
    """Read off a graph what perplexity needs to know of a language model, with a cache or without.

    Raises:
        InputError: it is none; the message says why it is no decoder.
    """
    graph, _ = inferred(graph)
    try:
        return recognise(graph, inferred=True)
    except InputError:
        found = _without_cache(graph)
        if found is None:
            raise
        return found


def _without_cache(graph: Graph) -> StepScores | None:
    """Find token numbers that look rows of a table up, and scores of as many words for each of them."""
    given = [v for v in graph.inputs if v not in graph.defaults and is_integer(v) and len(shape_of(v) or ()) == 2]
    tables = {v: rows for v in given if (rows := rows_of_table(v)) is not None}
    for value, info in zip(graph.outputs, graph.outputs_info, strict=True):
        shape = shape_of(value) or ()
        scored = [v for v, rows in tables.items() if len(shape) == 3 and shape[2] == rows]
        if len(scored) == 1 and value.is_floating_point:
            others = [v.name for v in given if v not in tables]
            return StepScores(scored[0].name, info.name, others[0] if len(others) == 1 else "", tables[scored[0]])
    return None


class Perplexity:
    """Mean logarithm of the probability of each next token, as a metric: more is better, `perplexity` turns it round.

    Args:
        graph: The language model.

    Raises:
        InputError: it is none.
    """

    def __init__(self, graph: Graph) -> None:
        self.facts = step_scores(graph)

    def __call__(self, outcomes: Iterable[Any]) -> float:
        """Give it for samples of a data set; the labels of ids are the ids one step later."""
        total, count = _summed(self.facts, ((outcome.feed, outcome.outputs) for outcome in outcomes))
        return total / count


def _summed(facts: DecoderFacts | StepScores, runs: Iterable[_Run]) -> tuple[float, int]:
    """Add up the logarithms of the next tokens' probabilities over feeds and outputs, and count the tokens."""
    total, count = 0.0, 0
    for feed, outputs in runs:
        ids = np.asarray(feed[facts.ids])
        logits = np.asarray(outputs[facts.logits])
        if logits.shape[:2] != ids.shape:
            raise InputError(
                "Perplexity is of the scores of all steps, and the model gives others.",
                hint="Leave out --last-logits, or --max-accuracy-loss.",
            )
        shown = _shown(facts, feed)
        both = shown[:, 1:] & shown[:, :-1]
        total += float(logarithms(logits[:, :-1], ids[:, 1:])[both].sum())
        count += int(both.sum())
    if not count:
        raise InputError("No sample has two tokens, so there is no next one to compare with.")
    return total, count


def _shown(facts: DecoderFacts | StepScores, feed: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Which tokens of a feed count, [batch, steps]."""
    shape = np.shape(feed[facts.ids])
    mask = feed.get(facts.mask) if facts.mask else None
    return np.ones(shape, bool) if mask is None else np.asarray(mask)[:, -shape[1] :] != 0


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
    model: ModelSource, facts: DecoderFacts | StepScores, samples: Iterable[Sample], options: RunOptions
) -> tuple[float, int]:
    """Run a language model over text, and say how surprised it is.

    Where a decoder scores the last step only, tokens go in one by one, which takes longer and tests its cache, too.

    Args:
        model: The model.
        facts: What is known of it.
        samples: Feeds with ids; a past that they bring is not used.
        options: How to run it.

    Returns:
        The mean logarithm of the probability of each next token, and of how many tokens.

    Raises:
        InputError: no sample has two tokens, or scores of a step depend on later tokens.
    """
    if isinstance(facts, StepScores):
        return _over_whole_texts(Evaluator(model, options), facts, samples)
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


def _over_whole_texts(model: Evaluator, facts: StepScores, samples: Iterable[Sample]) -> tuple[float, int]:
    def runs() -> Iterator[_Run]:
        checked = False
        for sample in samples:
            outputs = model.run(sample.feed)
            ids, shown = np.array(sample.feed[facts.ids]), _shown(facts, sample.feed)
            if not checked and (shown.sum(1) > 1).any() and outputs[facts.logits].shape[:2] == ids.shape:
                checked = True
                last = ids.shape[1] - 1 - shown[:, ::-1].argmax(1)  # behind it the mask hides what is there
                rows = np.arange(len(ids))
                ids[rows, last] = (ids[rows, last] + 1) % facts.words
                earlier = shown & (np.arange(ids.shape[1]) < last[:, None])
                changed = model.run({**sample.feed, facts.ids: ids})[facts.logits]
                _check_causal(outputs[facts.logits][earlier], changed[earlier])
            yield sample.feed, outputs

    total, count = _summed(facts, runs())
    return total / count, count


def _check_causal(scores: npt.NDArray[Any], changed: npt.NDArray[Any]) -> None:
    """Refuse a model that has seen the next token when it scores it, as masked language models have."""
    before, after = scores.astype(np.float64), changed.astype(np.float64)
    largest = float(np.abs(before[np.isfinite(before)]).max(initial=0.0))  # words may be ruled out by -Inf
    if not np.allclose(before, after, rtol=1e-3, atol=1e-3 * largest, equal_nan=True):
        raise InputError(
            "The scores of a step depend on later tokens, so they are no predictions of the next one.",
            hint="Perplexity is of models that look back only; use --metric module:function.",
        )


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
