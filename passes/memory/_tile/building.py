"""The nodes that tiles are made of: ops, constants made once, slices, and bounds that only a run knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, floordiv
from memoptc.ir.types import DType, TensorType, Type
from memoptc.passes.memory._tile.grid import TO_END, AffineBound, Bound, Interval, NotTileableError, TileGrid
from memoptc.passes.memory._tile.marks import REMATERIALISED, TILED
from memoptc.passes.memory._tile.region import Region


class TileBuilder:
    """Makes nodes of tiles, before a region's first op or in a branch.

    Args:
        region: What is tiled.
        grid: Into which tiles.
        extent: Gives the planned extent of a value's axis.

    Attributes:
        b: Inserts before the region, or in its branch.
        graph: The region's graph, or the branch.
        shared: Values made once for all tiles, by what they are.
        weights: Of softmaxes tiled along their own axis, the tile's largest elements and the sums of its exponentials.
    """

    def __init__(self, region: Region, grid: TileGrid, extent: Callable[[Value, int], int]) -> None:
        self.region, self.grid, self.extent = region, grid, extent
        first = region.ops[0]
        assert first.graph is not None
        self.graph = first.graph
        self.b = Builder(self.graph, before=first, loc=first.loc.union(*(op.loc for op in region.ops[1:]), rule="tile"))
        self.shared: dict[tuple[object, ...], Value] = {}
        self.weights: dict[Op, tuple[Value, Value]] = {}
        self._whole: Value | None = None
        self._names: set[str] | None = None
        self._extents: dict[tuple[Bound, Dim], Dim] = {}
        self._bounds: dict[AffineBound, Value] = {}
        self._reference: tuple[Value, int, int] | None = None
        # Slices of rematerialised values spell "to the end" differently: onnxruntime would merge equal ops.
        self._end = TO_END - 1 if any(REMATERIALISED in op.metadata for op in region.ops) else TO_END

    def made(
        self,
        op_type: str,
        operands: list[Value],
        attrs: Mapping[str, object] | None = None,
        type: Type | None = None,
    ) -> Value:
        """Make an op with one result, as part of the tiles."""
        made = self.b.op(op_type, operands, dict(attrs or {}), type=type)
        made.metadata[TILED] = "1"
        return made.result

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
        kind = op_type or op.op_type
        new = self.b.op(kind, operands, dict(attrs), domain=op.domain, outputs=len(op.results), type=types)
        new.name = self.node_name(op.name, index)
        new.overload = op.overload
        for old, result in zip(op.results, new.results, strict=True):
            result.omitted = old.omitted
            if not old.omitted:
                result.name = self.graph.fresh_name(f"{old.name}_{index}")
        return tuple(new.results)

    def node_name(self, name: str, index: int) -> str:
        """A tile's name for a node, which no node has yet: onnxruntime refuses twins."""
        if not name:
            return ""
        if self._names is None:
            self._names = {op.name for op in self.graph.root.walk()}
        found, n = f"{name}_{index}", 0
        while found in self._names:
            found, n = f"{name}_{index}_{n}", n + 1
        self._names.add(found)
        return found

    def scalar(self, number: float, dtype: DType) -> Value:
        """A constant, made once."""
        key = ("scalar", number, dtype)
        if key not in self.shared:
            self.shared[key] = self.b.const(number, "number", dtype)
        return self.shared[key]

    def ints(self, values: list[int]) -> Value:
        """A constant vector of 64-bit integers, made once."""
        key = ("ints", *values)
        if key not in self.shared:
            self.shared[key] = self.b.const(np.asarray(values, np.int64), "place")
        return self.shared[key]

    # -- slices -------------------------------------------------------------------------------------

    def crop(self, value: Value, axis: int, start: int, end: int, type: TensorType | None) -> Value:
        """A slice with ends that are known; the value itself when nothing is cut off."""
        if start == 0 and end >= TO_END:
            return value
        extent = value.shape[axis] if value.shape is not None else None
        if start == 0 and isinstance(extent, int) and end == extent:
            return value
        return self.slice(value, axis, start, end, type)

    def slice(self, value: Value, axis: int, start: int | Value, end: int | Value, type: TensorType | None) -> Value:
        """Cut along two axes, the second one in full: onnxruntime would turn plain disjoint slices of one value into
        a Split, which makes all of them at once (its GatherSliceToSplitFusion)."""
        rank = len(value.shape or ()) if value.tensor_type is not None else 1
        axes = [axis] if rank < 2 else [axis, 0 if axis else rank - 1]
        if (ops.opset_of(self.graph) or 13) < 10:
            rest = [0] * (len(axes) - 1), [self._end] * (len(axes) - 1)
            attrs = {"axes": axes, "starts": [start, *rest[0]], "ends": [end, *rest[1]]}
            return self.made("Slice", [value], attrs, type)
        operands = [
            self._ends(start, 0, len(axes)), self._ends(end, self._end, len(axes)), self.ints(axes),
        ]  # fmt: skip
        return self.made("Slice", [value, *operands], type=type)

    def _ends(self, bound: int | Value, other: int, count: int) -> Value:
        if not isinstance(bound, Value):
            return self.ints([bound, *[other] * (count - 1)])
        if count == 1:
            return bound
        key = ("ends", bound, other)
        if key not in self.shared:
            self.shared[key] = self.made("Concat", [bound, self.ints([other])], {"axis": 0})
        return self.shared[key]

    # -- bounds known at run time -------------------------------------------------------------------

    def bound(self, bound: int | AffineBound | None) -> Value:
        """A bound of an interval as a vector of one integer."""
        if not isinstance(bound, AffineBound):
            return self.ints([TO_END if bound is None else bound])
        if bound not in self._bounds:
            value = self._share(bound.i)
            if bound.a != 1:
                value = self.made("Mul", [value, self.ints([bound.a])])
            if bound.b:
                value = self.made("Add", [value, self.ints([bound.b])])
            self._bounds[bound] = value
        return self._bounds[bound]

    def _share(self, index: int) -> Value:
        """The bound before a tile: as many even shares of the extent, rounded down."""
        key = ("share", index)
        if key not in self.shared:
            if self._whole is None:
                value, axis, rate = self.reference()
                self._whole = self.made("Gather", [self.made("Shape", [value]), self.ints([axis])], {"axis": 0})
                if rate != 1:
                    self._whole = self.made("Div", [self._whole, self.ints([rate])])
            parts = self.made("Mul", [self._whole, self.ints([index])]) if index > 1 else self._whole
            self.shared[key] = self.made("Div", [parts, self.ints([self.grid.count])])
        return self.shared[key]

    def reference(self) -> tuple[Value, int, int]:
        """A value from outside whose extent is the region's: (value, axis, rate)."""
        if self._reference is None:
            self._reference = reference_axis(self.region, self.grid)
        return self._reference

    # -- types of parts -----------------------------------------------------------------------------

    def part_type(self, value: Value, place: int | None, interval: Interval) -> TensorType | None:
        """The type of a part of a value: its extent is an expression of the whole's where that is a symbol."""
        type_ = value.tensor_type
        if type_ is None or type_.shape is None or place is None:
            return None
        whole = type_.shape[place]
        lo, hi = self._known_bound(interval.lo, whole), self._known_bound(interval.hi, whole)
        shape = list(type_.shape)
        shape[place] = None if lo is None or hi is None else hi - lo
        return type_.with_shape(tuple(shape))

    def _known_bound(self, bound: Bound, whole: Dim) -> Dim:
        key = (bound, whole)
        if key not in self._extents:
            self._extents[key] = self._find_bound(bound, whole)
        return self._extents[key]

    def _find_bound(self, bound: Bound, whole: Dim) -> Dim:
        if isinstance(bound, int):
            return bound
        if bound is None or whole is None:
            return whole
        share = self._share_extent(bound.i)
        return None if share is None else share * bound.a + bound.b

    def _share_extent(self, index: int) -> Dim:
        """The bound before a tile as an expression of the whole's extent."""
        value, axis, rate = self.reference()
        whole = value.shape[axis] if value.shape is not None else None
        return None if whole is None else floordiv(floordiv(whole, rate) * index, self.grid.count)


def reference_axis(region: Region, grid: TileGrid) -> tuple[Value, int, int]:
    """A value from outside whose extent is the region's: (value, axis, rate)."""
    for op in region.ops:
        for operand, along in zip(op.operands, region.axes[op].operands, strict=True):
            if along is not None and operand not in region.cut and operand.tensor is None:
                rate = region.rate(op) * along.stride
                if rate % along.per == 0:
                    return operand, along.axis, rate // along.per
    raise NotTileableError("no operand has the extent")
