"""Weights of a decoder in blocks of 8 bits, which a kernel reads as codes at every step."""

from __future__ import annotations

from collections.abc import Sequence

from memoptc.ir.core import Graph
from memoptc.pass_base import Context, Precision
from memoptc.passes.precision._quantize.accuracy_check import AccuracyCheck
from memoptc.passes.precision._quantize.nearest_products import nearest_products
from memoptc.passes.precision._quantize.replay import take_over
from memoptc.passes.precision._quantize.sensitivity import bytes_of
from memoptc.passes.precision._quantize.weight_format import DECODER_BLOCK
from memoptc.passes.precision._quantize.weight_operands import find_weights
from memoptc.passes.precision.quantize_weights import QuantizeWeights
from memoptc.report.model import Decision
from memoptc.runtime.quality import FAILED, Quality, decibels

_TRIES = 3
"""How often the weights of a decoder are coded in blocks, each time with more products in float."""

_SMALL_PART, _SPARE = 1 / 256, 0.25
"""Part of the weights that may stay in float for single outputs, and decibels below which these count as bad."""


def code_decoder_in_blocks(
    name: str, graph: Graph, context: Context, wanted: AccuracyCheck, exclude: Sequence[str]
) -> bool:
    """Code a decoder's weights in blocks, in place, if that is accurate enough.

    Where a few outputs err too much, as values of a cache do, the products before them stay in float.

    Args:
        name: Of the pass.
        graph: The top graph of a decoder.
        context: Of the compile.
        wanted: What is asked for.
        exclude: Node names or operators to leave in float.

    Returns:
        Whether it was; if not, the graph is as before.
    """
    left: list[str] = []
    for _ in range(_TRIES):
        blocks = QuantizeWeights(
            bits=8, block=DECODER_BLOCK, symmetric=True, rounding=False, activations=8, exclude=(*exclude, *left)
        )
        copy, trial = graph.clone(), Context()
        blocks.run(copy, trial)
        if not trial.stats["weights quantized"]:
            return False
        quality = wanted.look(copy)
        if wanted.good(quality):
            break
        worse = _behind_the_worst(graph, wanted, quality)
        if set(worse) <= set(left):
            return False
        left += worse
    else:
        return False
    take_over(graph, copy, context, trial)
    what = f"weights of a decoder in blocks of {DECODER_BLOCK} with 8 bits, activations coded by the kernel"
    why = "a step multiplies one row, so that reading weights takes the time"
    context.decisions.append(Decision(name, what, why))
    if left:
        why = f"the outputs behind them would keep less than {wanted.min_sqnr:g} dB"
        context.decisions.append(Decision(name, f"products in float: {', '.join(left)}", why))
    context.artefacts.precision = Precision([], wanted.reached(quality, "weights in blocks of 8 bits"))
    return True


def _behind_the_worst(graph: Graph, wanted: AccuracyCheck, quality: Quality) -> list[str]:
    """Name the products before outputs that err too much; none where their weights are no small part of all."""
    if not wanted.fallback or wanted.min_sqnr is None or FAILED in quality.noise:
        return []
    worst = {key for key, noise in quality.noise.items() if decibels(noise) < wanted.min_sqnr + _SPARE}
    found = nearest_products(graph, worst)
    if sum(map(bytes_of, found)) > _SMALL_PART * sum(weight.bytes for weight in find_weights(graph, frozenset())):
        return []
    for op in found:
        op.name = op.name or f"{op.op_type}_{op.result.name}"
    return [op.name for op in found]
