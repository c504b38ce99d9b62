"""tile: tile one operator, and what can be tiled together with it, along one axis; for looking at tiles and testing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

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
        at: Name of the operator, or of a result of it; the last one that can be tiled when empty.
        axis: The result's axis, counted from the end when negative.
        count: Tiles.
        sums: Tile an axis of operand 0 that the operator adds up along instead, and accumulate the tiles' results.
        overcompute: Let operators compute more than is needed, so that nothing is cropped on the way.
        ordered: Let each tile wait for the one before it.
    """

    names_nodes: ClassVar[tuple[str, ...]] = ("at",)
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
        for op, axis, spaces in self._seeds(ops, context.stats):
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

    def _seeds(self, ops: list[Op], stats: Counter[str]) -> Iterator[tuple[Op, Axis, IterationSpaces]]:
        """The operators to start from, last first, with the axis asked for; counts those that have none."""
        spaces, seen = IterationSpaces(), False
        for op in reversed(ops):
            if op.results and (not self.at or self.at in (op.name, *(r.name for r in op.results))):
                seen = True
                found = self._sum(op, spaces) if self.sums else self._axis(op, spaces)
                if found is not None:
                    yield op, found, spaces
                    if not self.at:
                        return
                elif self.at:
                    what = "add up" if self.sums else "tile"
                    stats[f"declined: {op.op_type} {self.at} has no axis {self.axis} to {what} along"] += 1
        if not self.at:
            stats[f"declined: no operator of the top graph has an axis {self.axis} that can be tiled"] += 1
        elif not seen:
            stats[f"declined: no operator of the top graph is called {self.at!r}"] += 1

    def _axis(self, op: Op, spaces: IterationSpaces) -> Axis | None:
        index = next((i for i, r in enumerate(op.results) if r.name == self.at), 0)
        axis = self._of(op.results[index].rank)
        return next((a for a in spaces[op] if axis is not None and a.results[index] == axis), None)

    def _sum(self, op: Op, spaces: IterationSpaces) -> Axis | None:
        axis = self._of(op.operand.rank) if op.operands else None
        along = ((a, a.operands[0]) for a in spaces.sums(op))
        return next((a for a, first in along if axis is not None and first is not None and first.axis == axis), None)

    def _of(self, rank: int | None) -> int | None:
        """The axis of a tensor of this rank; `None` where it has none such."""
        return self.axis % rank if rank and -rank <= self.axis < rank else None
