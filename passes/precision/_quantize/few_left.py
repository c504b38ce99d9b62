"""The few layers that a quantized model owes most of its error to, found by measuring them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import GateError
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.accuracy_check import AccuracyCheck
from memoptc.passes.precision._quantize.pace import Pace
from memoptc.passes.precision._quantize.places import find_weights
from memoptc.passes.precision._quantize.sensitivity import EXACT, SAMPLES, bytes_of, work_of
from memoptc.passes.precision._quantize.tradeoff import FLOAT, INTEGER, Layer, greedy_moves
from memoptc.report.model import Decision
from memoptc.runtime.quality import decibels

_NAMED = 5
"""Nodes that a message lists."""


def left_in_float(
    name: str, graph: Graph, context: Context, min_sqnr: float, quantize: Callable[[Graph, frozenset[str]], None]
) -> frozenset[str]:
    """Give the names of nodes without which a way to quantize is accurate enough: on data, else on made-up inputs.

    None where these hold most of the weights, which are smaller coded alone, or where nothing is accurate enough.
    Layers are measured alone, in at most `EXACT` groups of neighbours, and leave the integers by what that brings for
    their bytes and work.

    Args:
        name: Of the pass.
        graph: The graph in float; nodes without a name get one.
        context: Of the compile; gets the decision.
        min_sqnr: Least signal to difference of every output, in decibels.
        quantize: Quantizes a copy in place, without nodes of these names.

    Raises:
        InputError: no inputs were found on which the graph runs.
    """
    layers: dict[str, Op] = {}
    for op in (site.op for weight in find_weights(graph, frozenset()) for site in weight.sites):
        op.name = op.name or f"{op.op_type}_{op.result.name}"
        layers[op.name] = op
    wanted = AccuracyCheck(graph, context, min_sqnr, None, fallback=True)
    size = -(-len(layers) // EXACT) or 1
    names = list(layers)
    groups = {names[i]: names[i : i + size] for i in range(0, len(names), size)}

    def floats(states: Mapping[str, str]) -> frozenset[str]:
        return frozenset(n for first, members in groups.items() if states[first] == FLOAT for n in members)

    def copy(states: Mapping[str, str]) -> Graph:
        made = graph.clone()
        quantize(made, floats(states))
        return made

    everywhere = dict.fromkeys(groups, INTEGER)
    before = wanted.look(copy(everywhere))
    if wanted.good(before):
        return frozenset()
    found, pace = [], Pace(len(groups))
    for number, (first, members) in enumerate(groups.items()):
        context.say(f"each layer alone, {pace.at(number)}")
        noise = wanted.trials.quick(copy({**dict.fromkeys(groups, FLOAT), first: INTEGER}), SAMPLES).noise
        nbytes = sum(bytes_of(layers[n]) for n in members)
        work = sum(work_of(layers[n], context.dims) for n in members)
        found.append(Layer(first, layers[first].op_type, nbytes, work, {INTEGER: noise}, True))
    try:
        states, quality = wanted.choose(greedy_moves(found), found, copy, before)
    except GateError:  # a model that does not repeat itself
        return frozenset()
    left = floats(states)
    if 2 * sum(bytes_of(layers[n]) for n in left) > sum(map(bytes_of, layers.values())):
        return frozenset()
    what = (
        f"{len(left)} of {len(layers)} layers in float: {', '.join(sorted(left)[:5])}{', …' if len(left) > 5 else ''}"
    )
    why = f"{before.sqnr_db:.1f} dB with all of them on integers, {quality.sqnr_db:.1f} dB so"
    context.decisions.append(Decision(name, what, why))
    worst = max((la.worst for la in found), default=0.0)
    context.warnings.append(f"Left in float for accuracy: {what} ({why}; the worst alone {decibels(worst):.1f} dB).")
    return left
