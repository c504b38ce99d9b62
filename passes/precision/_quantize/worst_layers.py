"""The few layers that a quantized model owes most of its error to, found by measuring them alone."""

from __future__ import annotations

from collections.abc import Callable

from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.accuracy_check import AccuracyCheck
from memoptc.passes.precision._quantize.effort import Effort
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.remaining_time import Pace
from memoptc.passes.precision._quantize.sensitivity import EXACT, SAMPLES, bytes_of, work_of
from memoptc.passes.precision._quantize.tradeoff import (
    GIVE_BACK,
    Layer,
    greedy_moves,
)
from memoptc.passes.precision._quantize.weight_operands import find_weights
from memoptc.report.model import Decision
from memoptc.runtime.quality import decibels

_NAMED = 5
"""Nodes that a message lists."""

_ALONE, _FEWEST = 0.5, 4
"""Part of what a search may look that is spent on measuring groups alone, and below how many nothing is measured."""


def left_in_float(
    name: str, graph: Graph, context: Context, min_sqnr: float, quantize: Callable[[Graph, frozenset[str]], None]
) -> frozenset[str]:
    """Give the names of nodes without which a way to quantize is accurate enough: on data, else on made-up inputs.

    None where these hold most of the weights, which are smaller coded alone, where nothing is accurate enough, or where
    nothing can be measured: no inputs were found on which the graph runs, or it runs too long.
    Layers are measured alone, in at most `EXACT` groups of neighbours, and leave the integers by what that brings for
    their bytes and work.

    Args:
        name: Of the pass.
        graph: The graph in float; nodes without a name get one.
        context: Of the compile; gets the decision.
        min_sqnr: Least signal to difference of every output, in decibels.
        quantize: Quantizes a copy in place, without nodes of these names.

    Raises:
        InputError: the graph does not run on the data.
    """
    layers = _named_layers(graph)
    total = sum(map(bytes_of, layers.values()))
    if not total:
        return frozenset()
    try:
        wanted = AccuracyCheck(graph, context, min_sqnr, None, fallback=True)
    except InputError as error:
        if context.calibration is not None or context.validation is not None:
            raise
        context.warnings.append(
            f"{error.message} Which layers to leave in float is not measured; `exclude` names some."
        )
        return frozenset()
    few, _ = wanted.examiner.samples
    effort = Effort.of(layers.values(), context.dims, few, few)
    effort.most = context.left_for_numbers
    count = min(effort.looks(_ALONE, SAMPLES), EXACT)
    if count < min(_FEWEST, len(layers)):
        context.warnings.append(
            "Which layers to leave in float is not measured: the model runs too long for that; `exclude` names some."
        )
        return frozenset()
    size = -(-len(layers) // count)
    names = list(layers)
    groups = {names[i]: names[i : i + size] for i in range(0, len(names), size)}

    def floats(states: Assignment) -> frozenset[str]:
        return frozenset(
            n for first, members in groups.items() if states[first] == LayerPrecision.FLOAT for n in members
        )

    def copy(states: Assignment) -> Graph:
        made = graph.clone()
        quantize(made, floats(states))
        return made

    everywhere = dict.fromkeys(groups, LayerPrecision.INT8)
    before = wanted.look(copy(everywhere))
    if wanted.good(before):
        return frozenset()
    found, pace = [], Pace(len(groups))
    for number, (first, members) in enumerate(groups.items()):
        context.say(f"each layer alone, {pace.at(number)}")
        noise = wanted.trials.quick(
            copy({**dict.fromkeys(groups, LayerPrecision.FLOAT), first: LayerPrecision.INT8}), SAMPLES
        ).noise
        nbytes = sum(bytes_of(layers[n]) for n in members)
        work = sum(work_of(layers[n], context.dims) for n in members)
        found.append(Layer(first, layers[first].op_type, nbytes, work, {LayerPrecision.INT8: noise}, True))
    effort.spend(len(groups) * effort.look(SAMPLES))
    try:
        states, quality = wanted.choose(greedy_moves(found), found, copy, before, min(effort.looks(1.0), GIVE_BACK))
    except GateError:  # a model that does not repeat itself
        return frozenset()
    left = floats(states)
    if not left or 2 * sum(bytes_of(layers[n]) for n in left) > total:
        return frozenset()
    shown = ", ".join(sorted(left)[:_NAMED]) + (", …" if len(left) > _NAMED else "")
    what = f"{len(left)} of {len(layers)} layers in float: {shown}"
    why = f"{before.sqnr_db:.1f} dB with all of them on integers, {quality.sqnr_db:.1f} dB so"
    context.decisions.append(Decision(name, what, why))
    worst = max((la.worst for la in found), default=0.0)
    context.warnings.append(f"Left in float for accuracy: {what} ({why}; the worst alone {decibels(worst):.1f} dB).")
    return left


def _named_layers(graph: Graph) -> dict[str, Op]:
    """Give the ops with weights by name; those without one are named after their operator and result."""
    layers: dict[str, Op] = {}
    for op in (site.op for weight in find_weights(graph, frozenset()) for site in weight.sites):
        op.name = op.name or f"{op.op_type}_{op.result.name}"
        layers[op.name] = op
    return layers
