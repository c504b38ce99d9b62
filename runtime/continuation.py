"""A decoder that takes a prompt in part and the rest token by token, against the original: wrong caches show there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph
from memoptc.ir.decoder import DecoderFacts, recognised
from memoptc.ir.diagnostics import InputError, InternalError, MemoptcError, first_line
from memoptc.runtime.compare import Totals, difference
from memoptc.runtime.decoding import Decoder
from memoptc.runtime.evaluate import Evaluator, ModelSource
from memoptc.runtime.judge import Evidence, Judge, dtype_name, judge_last_step, judge_output
from memoptc.runtime.options import RunOptions
from memoptc.runtime.spool import trim

_STEPS = {"fast": (10, 6), "full": (8, 48)}
"""Tokens of the prompt that are taken at once, and one by one behind them."""


@dataclass(frozen=True)
class Continuation:
    """Differences seen while both models continued texts.

    Args:
        output: The report's entry, as for an output.
        judged_by: What decided.
        failure: One sentence, `""` where all is well.
        note: Why nothing could be compared, `""` where it was.
    """

    output: dict[str, Any] | None = None
    judged_by: str = ""
    failure: str = ""
    note: str = ""


def compare_decoding(
    graph: Graph,
    original: ModelSource,
    candidate: ModelSource,
    judge: Judge,
    mode: str,
    options: RunOptions,
    sample: Mapping[str, Any],
    seed: int = 0,
) -> Continuation | None:
    """Decode with both models, and compare scores: each step's, and the last with the original's whole prompt at once.

    Args:
        graph: The original.
        original: The same, to run.
        candidate: What is compared with it.
        judge: What is asked of the candidate.
        mode: `fast` or `full`.
        options: How to run both.
        sample: A feed whose ids are taken, where they are enough; others are made up.
        seed: Of made-up ids.

    Returns:
        What was seen; `None` where the original is no decoder with a cache.
    """
    facts = recognised(graph)
    if facts is None:
        return None
    first, more = _STEPS[mode]
    ids, context = _prompt(facts, sample, first + more, seed)
    first = min(first, max(1, ids.shape[1] - 1))
    if ids.shape[1] < 2:
        return None
    try:
        steps, whole = _decoded(original, facts, options, ids, first, context, InputError)
    except MemoptcError as error:
        return Continuation(note=f"decoding token by token was not compared: {error.message}")
    trim()
    name = f"{facts.logits}, {first} tokens and {ids.shape[1] - first} more one by one"
    try:
        got, at_once = _decoded(candidate, facts, options, ids, first, context, InternalError, once=judge.asks_no_sqnr)
    except MemoptcError as error:
        return Continuation(failure=f"{name}: {error.message}")
    finally:
        trim()
    evidence = Evidence(Totals(name), dtype_name(steps))
    evidence.pairs.append(difference(steps, got))
    if not judge.bit_exact and not evidence.pairs[0].exact:
        evidence.pairs.append(difference(whole, got[-1]))
        evidence.own.append(difference(whole, steps[-1]))
    for pair in evidence.pairs:
        evidence.totals.add(pair)
    fault, judged = judge_output(evidence, judge)
    if not fault and judge.asks_no_sqnr:
        fault = judge_last_step(difference(whole, at_once), difference(steps[-1], got[-1]), judge)
    failure = f"{name}: {fault}" if fault else ""
    return Continuation(evidence.totals.to_json(), judged, failure)


def _prompt(
    facts: DecoderFacts, sample: Mapping[str, Any], count: int, seed: int
) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
    """Ids and context: those of a sample, with ids made up where it has few."""
    held = [c.shape[c.axis] for c in facts.own if c.form == "fixed" and c.shape[c.axis] > 0]
    count = min([count, *held, *([facts.max_length] if facts.max_length else [])])
    context = {name: np.asarray(sample[name]) for name in facts.context_inputs if name in sample}
    given = np.atleast_2d(np.asarray(sample.get(facts.ids, ())))
    batch = len(given) if context and given.ndim == 2 and given.size else 1
    if given.ndim == 2 and given.shape[1] >= count:
        return given[:batch, :count].astype(np.int64), context
    rng = np.random.default_rng(seed)
    return rng.integers(0, facts.vocabulary, (batch, count)), context


def _decoded(
    model: ModelSource,
    facts: DecoderFacts,
    options: RunOptions,
    ids: npt.NDArray[Any],
    first: int,
    context: Mapping[str, npt.NDArray[Any]],
    blame: type[MemoptcError],
    *,
    once: bool = True,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scores after each token behind the first part, [steps, batch, words], and those after all tokens at once."""
    evaluator = Evaluator(model, options, blame=blame)
    decoder = Decoder.over(evaluator.session, facts)
    try:
        whole = decoder.prefill(ids, context=context) if once else np.empty(0)
        decoder.prefill(ids[:, :first], context=context)
        steps = [decoder.step(ids[:, at]) for at in range(first, ids.shape[1])]
    except MemoptcError:
        raise
    except Exception as error:  # onnxruntime's own, which are of many classes
        raise blame(f"{evaluator.label}: onnxruntime cannot run it: {first_line(error)}") from error
    return np.stack(steps), whole
