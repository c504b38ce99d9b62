"""order: run ops in an order that keeps few bytes alive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from memoptc.ir.core import Graph
from memoptc.pass_base import Context, Pass
from memoptc.report.model import Decision
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.schedule import EFFORT, Ordered, best_order


class Order(Pass):
    """Choose the topological order with the smallest planned peak, and say how far from the optimum it can be.

    Small graphs, and narrow parts of large ones, are solved exactly (see `memoptc.runtime.memory.schedule`); elsewhere
    heuristics and a beam search give good orders. The given order stays unless another one is better, so the
    peak never grows.

    Args:
        worth: Share of the peak that another order must save at least.
        effort: How many steps from one set of executed ops to another the search may look at.
    """

    worth: float = 0.01
    effort: int = EFFORT

    def run(self, graph: Graph, context: Context) -> None:
        """Order regions first, then the graph around them."""
        dims = extents(graph, context.dims)
        for op in list(graph.walk()):
            for region in op.regions.values():
                self._order(region, context.stats, dims)
        found = self._order(graph, context.stats, dims)
        gain = self._gain(found)
        peak = found.given_bytes - gain
        context.stats["peak bytes"], context.stats["bound bytes"] = peak, found.bound_bytes
        if gain:
            gap = peak / found.bound_bytes - 1 if found.bound_bytes else 0.0
            known = "no order needs less" if found.proven else f"at most {gap:.1%} above the best there is"
            context.decisions.append(
                Decision(self.name, f"another order of the nodes ({found.how})", known, gain, "none")
            )

    def _order(self, graph: Graph, stats: Counter[str], dims: Mapping[str, int]) -> Ordered:
        found = best_order(graph, dims, effort=self.effort)
        if gain := self._gain(found):
            graph.reorder(found.order)
            stats[f"reordered: {found.how}"] += 1
            stats["bytes saved"] += gain
        return found

    def _gain(self, found: Ordered) -> int:
        """Bytes that an order saves; none where that is not worth it, and the given order stays."""
        gain = found.given_bytes - found.peak_bytes
        return gain if gain >= self.worth * found.given_bytes else 0
