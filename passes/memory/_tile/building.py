"""What the parts of tiling need of the tile emitter: the region, its grid, and ways to make nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType, Type
from memoptc.passes.memory._tile.grid import TileGrid
from memoptc.passes.memory._tile.region import Region


class TileBuilder(Protocol):
    """Makes nodes of tiles; `Emitter` is the one there is.

    Args:
        b: Inserts before the region, or in its branch.
        graph: The region's graph.
        region: What is tiled.
        grid: Into which tiles.
        extent: Gives the planned extent of a value's axis.
        shared: Values made once for all tiles, by what they are.
        weights: Of softmaxes tiled along their own axis, the tile's largest elements and the sums of its exponentials.
    """

    b: Builder
    graph: Graph
    region: Region
    grid: TileGrid
    extent: Callable[[Value, int], int]
    shared: dict[tuple[object, ...], Value]
    weights: dict[Op, tuple[Value, Value]]

    def made(
        self,
        op_type: str,
        operands: list[Value],
        attrs: Mapping[str, object] | None = None,
        type: Type | None = None,
    ) -> Value:
        """Make an op with one result, as part of the tiles."""

    def copied(
        self,
        op: Op,
        operands: Sequence[Value],
        attrs: Mapping[str, object],
        index: int,
        op_type: str | None = None,
        types: Sequence[Type | None] | None = None,
    ) -> tuple[Value, ...]:
        """Make an op's like for a tile, of another type if one is given, and named after it."""

    def scalar(self, number: float, dtype: DType) -> Value:
        """A constant, made once."""

    def ints(self, values: list[int]) -> Value:
        """A constant vector of 64-bit integers, made once."""
