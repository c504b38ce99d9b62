"""scale-columns: scale the columns of weights against constants before them, so that blocks of few bits err less."""

from __future__ import annotations

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op
from memoptc.ir.ops import facts, layout_of
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.columns import Floats, column_factors
from memoptc.passes.precision._migrate.migrate import seen_at
from memoptc.passes.precision._migrate.sites import WEIGHTED, RescaleSite, move, sites
from memoptc.passes.precision._quantize.matrix import rows_of
from memoptc.report.model import Decision

SOURCES = WEIGHTED | {o.key for o in ops.TABLE.values() if o.affine}


class ScaleColumns(Pass):
    """Multiply columns of the weights of products by factors, and what they read by the reciprocals.

    The reciprocals go into the scale and shift of a normalization, or into the weights of the product, before the
    tensor, so that nothing is added to the graph; outputs change by float noise. Factors are those that lower the error
    expected of blocks of `bits` bits most, by the scales of the normalizations, and by the weights themselves; on
    request by what calibration data shows of the columns, which takes a pass over it, and enough of it. (After Lin et
    al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.)

    Args:
        bits: Of the codes to come.
        block: Weights that will share a scale.
        least: How much less error it must bring, as a ratio.
        observe: Go by calibration data, where there is any.
    """

    bits: int = 4
    block: int = 32
    least: float = 1.05
    observe: bool = False

    def run(self, graph: Graph, context: Context) -> None:
        """Scale in the top graph."""
        found = [site for site in sites(graph, SOURCES) if not any(layout_of(op).taps for op in site.readers)]
        data = self.observe and context.calibration is not None and bool(found)
        seen = seen_at(graph, found, context) if data else {}
        gains = []
        for site in found:
            readers = list(site.readers)
            if data and any(op.operand not in seen for op in readers):
                context.stats["left: empty in the data"] += 1
                continue
            squares = [seen[op.operand].mean_square if data else _assumed(site) for op in readers]
            rows = [rows_of(op).astype(np.float32) for op in readers]
            if not all(np.isfinite(a).all() for a in rows) or not all(np.isfinite(a).all() for a in squares):
                context.stats["left: NaN or Inf"] += 1
                continue
            factors, gain = column_factors(rows, squares, self.bits, self.block)
            if gain < self.least:
                context.stats["left: columns are even"] += 1
                continue
            move(site, factors, self.name)
            context.stats["scaled"] += 1
            gains.append(gain)
        if gains:
            middle = 10 * np.log10(np.median(gains))
            why = f"expected error of the products falls by {middle:.1f} dB (median)"
            context.decisions.append(Decision(self.name, f"columns scaled at {len(gains)} places", why))


def _assumed(site: RescaleSite) -> Floats:
    """Mean squares without data: of normalized values by the scales and shifts that follow, else alike."""
    source = site.source
    assert source is not None
    squares = np.zeros(site.channels)
    for index in facts(source).affine:
        squares += np.square(_constant(source, index, site.channels))
    return squares if squares.any() else np.ones(site.channels)


def _constant(op: Op, index: int, channels: int) -> Floats:
    value = op.input(index)
    if value is None or value.tensor is None:
        return np.zeros(channels)
    return np.broadcast_to(np.asarray(value.tensor.numpy(), np.float64), (channels,))
