"""The form that needs no data beside the one that data chose: activations are codes where that pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memoptc.ir.core import Graph, Op
from memoptc.ir.ops import layout_of
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.sites import WEIGHTED
from memoptc.passes.precision._quantize.accuracy_check import AccuracyCheck
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.sensitivity import bytes_of, work_of
from memoptc.passes.precision._quantize.tradeoff import COSTS
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, RECURRENT
from memoptc.report.model import Decision
from memoptc.report.verdict import NOT_CHOSEN
from memoptc.runtime.quality import Quality

_WITHOUT_KERNEL = (*CONVOLUTIONS, *RECURRENT)
"""Operators that compute in float where their activations are floats."""

_SLOWER, _LARGER = 0.1, 0.02
"""Parts of all layers' multiplications and weights that another form may cost more: what latency and need are held to
where they are measured."""

_DECODING = 16
"""Multiplications that take as long as decoding one weight does."""

_WORTH = 1.0
"""Decibels from which a form that costs more is worth naming."""


@dataclass(frozen=True)
class RunCost:
    """What the layers of a model cost a run, in figures that are the same on every machine.

    Args:
        work: Multiplications in float, and decoding in each run as so many.
        nbytes: Of the weights once they are loaded: those of tables are floats then.
    """

    work: float
    nbytes: float

    def pays_beside(self, other: RunCost, whole: RunCost) -> bool:
        """True if another form is slower or larger by what a run of all layers in float would show."""
        slower = other.work - self.work > _SLOWER * whole.work
        return slower or other.nbytes - self.nbytes > _LARGER * whole.nbytes


def states_without_data(layers: Mapping[str, Op]) -> dict[str, LayerPrecision]:
    """The states that the form without data gives layers: products by the range of each run, other weights alone."""
    return {
        name: LayerPrecision.INT8_WEIGHTS if op.op_type in _WITHOUT_KERNEL else LayerPrecision.INT8
        for name, op in layers.items()
    }


def run_cost(layers: Mapping[str, Op], states: Assignment, context: Context, tables: frozenset[str]) -> RunCost:
    """Add up what layers cost in their states.

    Args:
        layers: Nodes by name.
        states: State of each.
        context: Knows the extents.
        tables: Names of the nodes whose weights are decoded while loading where they compute in float.
    """
    work = nbytes = 0.0
    for name, op in layers.items():
        state = states[name]
        part, in_float = COSTS[state]
        work += in_float * work_of(op, context.dims)
        in_float_weights = state == LayerPrecision.INT8_WEIGHTS and op.op_type in _WITHOUT_KERNEL
        nbytes += bytes_of(op) * (1.0 if in_float_weights else part)
        if in_float_weights and name not in tables:
            work += _DECODING * bytes_of(op) / 4
    return RunCost(work, nbytes)


def better_without_data(
    form: Pass,
    graph: Graph,
    found: Graph,
    layers: Mapping[str, Op],
    chosen: Assignment,
    tables: frozenset[str],
    wanted: AccuracyCheck,
) -> tuple[Graph, Quality] | None:
    """Compare the form that needs no data with the one found by data, on samples that nothing was chosen from.

    Activations are codes where that pays, at a loss that was agreed to: the form without data is taken where it is more
    exact and no run would show that it costs more. Where it is more exact but does cost more, the decision says so, and
    how to get it.

    Args:
        form: The pass that quantizes without data.
        graph: The graph in float; it stays as it is.
        found: The form found by data.
        layers: Nodes that both give a state, by name.
        chosen: State of each in the form found by data.
        tables: Names of those whose weights are decoded while loading where they compute in float.
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
    with_data = run_cost(layers, chosen, context, tables)
    # the form without data decodes convolutions in each run
    without = run_cost(layers, states_without_data(layers), context, frozenset(layers) - _convolutions(layers))
    many = "" if mine.samples == 1 else "s"
    where = f"{mine.samples} sample{many} " + ("held out" if context.validation is not None else "of the data")
    in_float = run_cost(layers, dict.fromkeys(layers, LayerPrecision.FLOAT), context, tables)
    if not with_data.pays_beside(without, in_float):
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


def _convolutions(layers: Mapping[str, Op]) -> frozenset[str]:
    return frozenset(name for name, op in layers.items() if op.op_type in WEIGHTED and layout_of(op).taps)


def _dearer(mine: RunCost, other: RunCost) -> str:
    """Say what a form costs more."""
    parts = []
    if other.work > mine.work:
        parts.append(
            f"computes in float as long as {other.work / 1e6:.3g} million multiplications take instead of "
            f"{mine.work / 1e6:.3g}"
        )
    if other.nbytes > mine.nbytes:
        loaded = f"{other.nbytes / 1e6:.3g} MB of weights once they are loaded instead of {mine.nbytes / 1e6:.3g}"
        parts.append(f"has {loaded}")
    return "it " + " and ".join(parts)
