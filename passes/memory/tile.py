"""tile: tile one operator, and what can be tiled together with it, along one axis; for looking at tiles and testing."""

from __future__ import annotations

from collections.abc import Iterator

from memoptc.ir.core import Graph, Op
from memoptc.ir.iteration import Axis
from memoptc.pass_base import Context, Pass
from memoptc.passes.memory._tile.costs import Costs
from memoptc.passes.memory._tile.emit import Emitter
from memoptc.passes.memory._tile.grid import DynamicGrid, NotTileableError, StaticGrid
from memoptc.passes.memory._tile.growth import Growth
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.reachability import Reachability


class Tile(Pass):
    """Tile where one is told to, whether it helps or not; `fit` finds out where it does.

    The region grows from one operator to all others that can be tiled together with it. Where its extents are numbers,
    so are the bounds of its tiles; otherwise they are shares of the extent at run time. Tiled once, an operator is left
    alone.

    Args:
        at: Name of a result of the operator; the last one that can be tiled when empty.
        axis: The result's axis, counted from the end when negative.
        count: Tiles.
        sums: Tile an axis of operand 0 that the operator adds up along instead, and accumulate the tiles' results.
        overcompute: Let operators compute more than is needed, so that nothing is cropped on the way.
        ordered: Let each tile wait for the one before it.
    """

    at: str = ""
    axis: int = 0
    count: int = 2
    sums: bool = False
    overcompute: bool = False
    ordered: bool = False

    def run(self, graph: Graph, context: Context) -> None:
        """Tile the first region that can be, and say why the others cannot."""
        ops = [op for op in graph.ops if not op.is_const and op.op_type != "absent"]
        extent, reach = Costs(graph, context.dims).extent, None
        for op, axis, spaces in self._seeds(ops):
            reach = reach or Reachability(ops)
            region = Growth(op, axis, spaces, reach).within(0, len(ops) - 1)
            if region is None or region.rates is None:
                context.stats["declined: nothing sound can be tiled there"] += 1
                continue
            try:
                grid = DynamicGrid(region, self.count) if region.is_symbolic else StaticGrid(region, self.count, extent)
                made = Emitter(region, grid, extent, overcompute=self.overcompute, ordered=self.ordered).run()
            except NotTileableError as reason:
                context.stats[f"declined: {reason}"] += 1
                continue
            context.stats["regions"], context.stats["tiles"] = 1, made.count
            return

    def _seeds(self, ops: list[Op]) -> Iterator[tuple[Op, Axis, IterationSpaces]]:
        """The operators to start from, last first, with the axis asked for."""
        spaces = IterationSpaces()
        for op in reversed(ops):
            if op.results and (not self.at or any(r.name == self.at for r in op.results)):
                found = self._sum(op, spaces) if self.sums else self._axis(op, spaces)
                if found is not None:
                    yield op, found, spaces
                    if not self.at:
                        return

    def _axis(self, op: Op, spaces: IterationSpaces) -> Axis | None:
        index = next((i for i, r in enumerate(op.results) if r.name == self.at), 0)
        rank = op.results[index].rank
        return next((a for a in spaces[op] if rank and a.results[index] == self.axis % rank), None)

    def _sum(self, op: Op, spaces: IterationSpaces) -> Axis | None:
        rank = op.operand.rank if op.operands else None
        along = ((axis, axis.operands[0]) for axis in spaces.sums(op))
        return next((a for a, first in along if rank and first is not None and first.axis == self.axis % rank), None)
