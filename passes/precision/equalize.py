"""equalize: even out the ranges of channels between convolutions or products, for codes with one scale per tensor."""

from __future__ import annotations

import numpy as np

from memoptc.ir.core import Graph, Value
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.migrate import decide, migrate, seen_at
from memoptc.passes.precision._migrate.sites import RescaleSite, sites
from memoptc.runtime.channels import Channels

SOURCES = frozenset({"Conv", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization"})

_ROUNDS = 10


class Equalize(Pass):
    """Divide a channel by a factor where it is made, and multiply the weights that read it by the same.

    Between Conv, Gemm, MatMul (or a normalization) and the same kinds of readers, across what commutes with
    positive factors: Relu, LeakyRelu, PRelu, pooling, constants added. Factors are powers of two, so no output bit
    changes. They are those that lower the noise expected of 8-bit codes most, by what calibration data shows of the
    channels; without data, by the weights alone (Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", 2019).

    Args:
        least: How much less noise a place must bring, as a ratio.
    """

    least: float = 1.1

    def run(self, graph: Graph, context: Context) -> None:
        """Even out channels in the top graph."""
        blind = context.calibration is None
        gains: list[float] = []
        # What data shows holds until the end; what weights suggest changes as their neighbours do.
        for _ in range(_ROUNDS if blind else 1):
            found = list(sites(graph, SOURCES))
            seen = _assumed(found) if blind else seen_at(graph, found, context)
            moved = migrate(self.name, found, seen, lambda site: self.least, context.stats)
            gains += moved
            if not moved:
                break
        decide(self.name, gains, "by the weights alone" if blind else "by what the calibration data shows", context)


def _assumed(found: list[RescaleSite]) -> dict[Value, Channels]:
    """Channels as wide as the weights that make them, which is all that is known without data."""
    seen = {}
    for site in found:
        assert site.source is not None
        reach = np.ones(site.channels)
        for edit in site.edits[:1]:
            tensor = site.source.operands[edit.index].tensor
            assert tensor is not None
            array = np.abs(np.asarray(tensor.numpy(), np.float64))
            along = array.ndim - edit.axis
            reach = array.max(tuple(i for i in range(array.ndim) if i != along), initial=0.0)
        for point in site.points:
            seen[point] = Channels(-reach, reach, np.zeros(site.channels), np.square(reach) / 9, 1)
    return seen
