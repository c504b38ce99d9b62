"""smooth: move outliers of single channels from activations into the weights of the products that read them."""

from __future__ import annotations

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import layout_of
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.factors import Floats
from memoptc.passes.precision._migrate.migrate import decide, migrate, seen_at
from memoptc.passes.precision._migrate.sites import Edit, RescaleSite, move, read_axis, shape_of, sites, weight_of

SOURCES = frozenset({"LayerNormalization", "Mul", "Div"})


class Smooth(Pass):
    """Divide the channels of an activation by factors, and multiply the weights that read it by the same.

    The reciprocals go into the constants of a LayerNormalization, or of a Mul or Div before it (the last step of a
    Gelu or HardSwish written out). Where there is none, or others read the tensor, too, a Mul is put in front of
    the products, if that gains enough. Factors are powers of two, so no output bit changes. They are those that
    lower the noise expected of 8-bit codes most (after Xiao et al., "SmoothQuant", 2022). Needs calibration data.

    Args:
        least: How much less noise a place must bring, as a ratio.
        insert: How much less where a Mul has to be put in; 0 for nowhere.
    """

    least: float = 1.1
    insert: float = 2.0

    def run(self, graph: Graph, context: Context) -> None:
        """Move factors in the top graph."""
        if context.calibration is None:
            context.stats["left: no calibration data"] += 1
            return
        found = list(sites(graph, SOURCES))
        taken = {op for site in found for op in site.readers}
        if self.insert:
            found += _without_constant_before(graph, taken)
        seen = seen_at(graph, found, context)

        def least(site: RescaleSite) -> float:
            return self.least if site.source is not None else self.insert

        def apply(site: RescaleSite, factors: Floats) -> None:
            if site.source is None:
                _put_in(site, factors)
                context.stats["Mul put in"] += 1
            move(site, factors, self.name)

        gains = migrate(self.name, found, seen, least, context.stats, apply)
        decide(self.name, gains, "channels differ in the calibration data", context)


def _without_constant_before(graph: Graph, taken: set[Op]) -> list[RescaleSite]:
    """Products whose left side has no constant before it that could take factors."""
    found: dict[Value, RescaleSite] = {}
    for op in graph.walk("MatMul", "Gemm", nested=False):
        value, shape = op.operand, shape_of(op.operand)
        if op in taken or weight_of(op) is None or shape is None or len(shape) < 2:
            continue
        if not isinstance(shape[-1], int) or shape[-1] < 2:
            continue
        site = found.setdefault(value, RescaleSite(None, read_axis(op), shape[-1]))
        site.readers[op] = None
        site.points[value] = None
        site.edits.append(Edit(op, 1, 2 - layout_of(op).input_axis))
    return list(found.values())


def _put_in(site: RescaleSite, factors: Floats) -> None:
    """Divide the tensor before its readers, and nobody else."""
    first = next(iter(site.readers))
    assert first.graph is not None
    value = first.operand
    builder = Builder(first.graph, before=first, loc=first.loc.union(rule="smooth"))
    scaled = builder.op(
        "Mul", [value, builder.const((1.0 / factors).astype(np.float32))], type=value.type, name=f"{value.name}_smooth"
    ).result
    for op in site.readers:
        op.set_operand(0, scaled)
