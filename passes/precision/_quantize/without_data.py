"""The form that needs no data beside the one that data chose: what is better in every respect is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memoptc.ir.core import Graph, Op
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.accuracy_check import AccuracyCheck
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.sensitivity import bytes_of, work_of
from memoptc.passes.precision._quantize.tradeoff import COSTS
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, RECURRENT
from memoptc.report.model import Decision
from memoptc.report.verdict import NOT_CHOSEN
from memoptc.runtime.quality import Quality

_SAME = 0.01
"""Part by which bytes and work may differ and count as alike."""

_WORTH = 1.0
"""Decibels from which a form that costs more is worth naming."""


@dataclass(frozen=True)
class RunCost:
    """What the layers of a model cost a run, in figures that are the same on every machine.

    Args:
        work: Multiplications in float.
        nbytes: Of the weights once they are loaded: those of tables are floats then.
    """

    work: float
    nbytes: float

    def covers(self, other: RunCost) -> bool:
        """True if another costs no more, in either figure."""
        return other.work <= (1 + _SAME) * self.work and other.nbytes <= (1 + _SAME) * self.nbytes


def states_without_data(layers: Mapping[str, Op]) -> dict[str, LayerPrecision]:
    """The states that the form without data gives layers: products by the range of each run, other weights alone."""
    decoded = (*CONVOLUTIONS, *RECURRENT)
    return {
        name: LayerPrecision.INT8_WEIGHTS if op.op_type in decoded else LayerPrecision.INT8
        for name, op in layers.items()
    }


def run_cost(layers: Mapping[str, Op], states: Assignment, context: Context, decoded: frozenset[str]) -> RunCost:
    """Add up what layers cost in their states.

    Args:
        layers: Nodes by name.
        states: State of each.
        context: Knows the extents.
        decoded: Names of the nodes whose weights are decoded while loading where they compute in float.
    """
    work = nbytes = 0.0
    for name, op in layers.items():
        state = states[name]
        part, in_float = COSTS[state]
        work += in_float * work_of(op, context.dims)
        nbytes += bytes_of(op) * (1.0 if name in decoded and state == LayerPrecision.INT8_WEIGHTS else part)
    return RunCost(work, nbytes)


def better_without_data(
    form: Pass,
    graph: Graph,
    found: Graph,
    layers: Mapping[str, Op],
    chosen: Assignment,
    decoded: frozenset[str],
    wanted: AccuracyCheck,
) -> tuple[Graph, Quality] | None:
    """Compare the form that needs no data with the one found by data, on samples that nothing was chosen from.

    It is taken where it costs no run more and is more exact. Where it is more exact but costs more, the decision says
    so, and how to get it.

    Args:
        form: The pass that quantizes without data.
        graph: The graph in float; it stays as it is.
        found: The form found by data.
        layers: Nodes that both give a state, by name.
        chosen: State of each in the form found by data.
        decoded: Names of those whose weights are decoded while loading where they compute in float.
        wanted: Holds both against the graph.

    Returns:
        The graph in that form with its quality, if it is better; else `None`.
    """
    context = wanted.context
    copy, trial = graph.clone(), Context(level=context.level, dims=context.dims)
    form.run(copy, trial)
    mine, other = wanted.unseen(found), wanted.unseen(copy)
    if other.sqnr_db <= mine.sqnr_db:
        return None
    states = (chosen, states_without_data(layers))
    with_data, without = (run_cost(layers, s, context, decoded) for s in states)
    many = "" if mine.samples == 1 else "s"
    where = f"{mine.samples} sample{many} " + ("held out" if context.validation is not None else "of the data")
    if with_data.covers(without):
        quality = wanted.trials.full(copy)
        if not wanted.good(quality):
            return None
        context.stats.update(trial.stats)
        context.decisions.append(
            Decision(
                form.name,
                "the form that needs no data",
                f"it costs no more, and has {other.sqnr_db:.1f} dB instead of {mine.sqnr_db:.1f} on {where}",
            )
        )
        return copy, quality
    if other.sqnr_db > mine.sqnr_db + _WORTH and other.sqnr_db >= (wanted.min_sqnr or -float("inf")):
        context.decisions.append(
            Decision(
                NOT_CHOSEN,
                f"the form that needs no data has {other.sqnr_db:.1f} dB instead of {mine.sqnr_db:.1f} on {where}; to "
                "get it, give the data as --validation instead of --calibration",
                _dearer(with_data, without),
            )
        )
    return None


def _dearer(mine: RunCost, other: RunCost) -> str:
    """Say what a form costs more."""
    parts = []
    if other.work > (1 + _SAME) * mine.work:
        parts.append(f"multiplies {other.work / 1e6:.3g} million times in float instead of {mine.work / 1e6:.3g}")
    if other.nbytes > (1 + _SAME) * mine.nbytes:
        loaded = f"{other.nbytes / 1e6:.3g} MB of weights once they are loaded instead of {mine.nbytes / 1e6:.3g}"
        parts.append(f"has {loaded}")
    return "it " + " and ".join(parts)
