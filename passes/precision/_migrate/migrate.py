"""Shared by equalize and smooth: observe, weigh, move, say what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from memoptc.ir.core import Graph, Value
from memoptc.ir.not_finite import has_infinite_weight
from memoptc.pass_base import Context
from memoptc.passes.precision._migrate.factors import Floats, Reader, best_factors
from memoptc.passes.precision._migrate.sites import RescaleSite, move
from memoptc.passes.precision._quantize.steps import observe_steps
from memoptc.report.model import Decision
from memoptc.runtime.channels import Channels, channel_statistics


def seen_at(graph: Graph, found: Sequence[RescaleSite], context: Context) -> dict[Value, Channels]:
    """Observe the tensors that the readers of sites read, channel by channel."""
    axes = {point: site.axis for site in found for point in site.points}

    def look(path: Path, names: dict[str, Value]) -> dict[str, Channels]:
        return channel_statistics(path, {n: axes[v] for n, v in names.items()}, context.calibration, infinite={})

    return observe_steps(graph, axes, context, look)


def migrate(
    name: str,
    found: Sequence[RescaleSite],
    seen: dict[Value, Channels],
    least: Callable[[RescaleSite], float],
    stats: Counter[str],
    apply: Callable[[RescaleSite, Floats], None] | None = None,
) -> list[float]:
    """Move factors where that lowers the expected noise.

    Args:
        name: Of the pass.
        found: Where they can move.
        seen: What the tensors hold.
        least: How much less noise a site must bring, as a ratio.
        stats: Counts what was done, and why not.
        apply: How to move them; by `move` when not given.

    Returns:
        For each site that changed, by how much its noise fell.
    """
    gains = []
    for site in found:
        if any(point not in seen for point in site.points):
            stats["left: empty in the data, or NaN or Inf"] += 1
            continue
        if any(has_infinite_weight(op) for op in site.readers):
            stats["left: weights hold NaN or Inf"] += 1
            continue
        factors, gain = best_factors([(Reader.of(op), seen[op.operand]) for op in site.readers])
        if gain < least(site) or not np.ptp(factors):
            stats["left: channels are even"] += 1
            continue
        if apply is None:
            move(site, factors, name)
        else:
            apply(site, factors)
        stats[f"moved before {next(iter(site.readers)).op_type}"] += 1
        gains.append(gain)
    return gains


def decide(name: str, gains: Sequence[float], why: str, context: Context) -> None:
    """Note what was done, for the report."""
    if gains:
        middle = 10 * np.log10(np.median(gains))
        what = f"factors per channel moved at {len(gains)} places, exactly (powers of two)"
        context.decisions.append(Decision(name, what, f"{why}; expected noise falls by {middle:.1f} dB (median)"))
