"""Emits the ops of all tiles; tile results are concatenated or, along a reduction axis, accumulated (`joins`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value, clone_op
from memoptc.ir.dims import Dim, floordiv
from memoptc.ir.iteration import Form
from memoptc.ir.types import DType, TensorType, Type
from memoptc.passes.memory._tile.control_dependence import ControlDependence
from memoptc.passes.memory._tile.forms import FORMS, TileOp
from memoptc.passes.memory._tile.grid import (
    AffineBound,
    Bound,
    DynamicGrid,
    Interval,
    NotTileableError,
    StaticGrid,
    TileGrid,
    tiles,
)
from memoptc.passes.memory._tile.joins import Accumulated, accumulated, exponentials
from memoptc.passes.memory._tile.propagation import TileWork, tile_work
from memoptc.passes.memory._tile.region import MARK, REMATERIALISED, Region
from memoptc.passes.memory._tile.smallest_extent import smallest_extent

TO_END = np.iinfo(np.int64).max

LAID_OUT = ("Conv", "ConvTranspose", "FusedConv")
"""Operators whose weights onnxruntime lays out anew, and only where they stand in the same graph."""

LARGE = 1 << 16
"""Bytes above which a weight that is used elsewhere, too, is not cut."""

FEWER = 8
"""An extent smaller than the planned one by this factor is not cut: the tiles would be crumbs."""


def is_decoded(value: Value) -> bool:
    """Whether a value is a weight that is stored in codes."""
    op = value.op
    return op is not None and op.op_type == "DequantizeLinear" and all(v.tensor is not None for v in op.operands)


@dataclass
class Tiled:
    """What was made.

    Args:
        count: Tiles.
        ops: Ops made, in order.
        whole: Results put together, by the value they replace.
    """

    count: int
    ops: list[Op] = field(default_factory=list)
    whole: dict[Value, Value] = field(default_factory=dict)


class Emitter:
    """Makes a region's tiles, before its first op.

    Args:
        region: What is cut.
        grid: Into which tiles.
        extent: Gives the planned extent of a value's axis.
        overcompute: Whether ops may compute more than is needed, so that nothing is cropped on the way.
        ordered: Whether each tile waits for what the one before it gives.
    """

    def __init__(
        self,
        region: Region,
        grid: TileGrid,
        extent: Callable[[Value, int], int],
        *,
        overcompute: bool = False,
        ordered: bool = False,
    ) -> None:
        self.region, self.grid, self.extent, self.overcompute, self.ordered = region, grid, extent, overcompute, ordered
        first = region.ops[0]
        assert first.graph is not None
        self.graph = first.graph
        loc = first.loc.union(*(op.loc for op in region.ops[1:]), rule="tile")
        self.b = self.outside = Builder(self.graph, before=first, loc=loc)
        self.branch: Op | None = None
        self.reference: tuple[Value, int, int] | None = None
        self.steps: dict[AffineBound, Value] = {}
        self.whole: Value | None = None
        self.names: set[str] | None = None
        self.settled: list[tuple[Op, Op]] = []
        self.places: dict[tuple[Bound, Dim], Dim] = {}
        self.parts: dict[tuple[Value, int, Interval], Value] = {}
        self.shared: dict[tuple[object, ...], Value] = {}
        self.sums: dict[Op, Accumulated] = {}
        self.weights: dict[Op, tuple[Value, Value]] = {}
        """Of softmaxes cut along their own axis, the tile's largest elements and the sums of its exponentials."""
        self.waiting: ControlDependence | None = None
        # Slices of rematerialised values spell "to the end" differently: onnxruntime would merge equal ops.
        self.all = TO_END - 1 if any(REMATERIALISED in op.metadata for op in region.ops) else TO_END

    def run(self) -> Tiled:
        """Make everything and put it in place; the region's own ops go.

        Raises:
            NotTileableError: the region cannot be cut so; nothing was changed.
        """
        if isinstance(self.grid, DynamicGrid) and (ops.opset_of(self.graph) or 13) < 10:
            raise NotTileableError("Slice takes no computed places before opset 10")
        if isinstance(self.grid, DynamicGrid) and any(axis.join is not None for axis in self.region.axes.values()):
            raise NotTileableError("sums over an extent that is known at run time only")
        plans = [tile_work(self.region, self.grid, index, overcompute=self.overcompute) for index in tiles(self.grid)]
        least = self._smallest_extent(self.grid) if isinstance(self.grid, DynamicGrid) else None
        self._settle()
        if least is not None:
            self._branch(least)
        found = Tiled(len(plans))
        made: dict[Value, list[Value]] = {v: [] for v in self.region.outputs if v in self.region.cut}
        self.sums = {op: accumulated(op, axis, self) for op, axis in self.region.axes.items() if axis.join is not None}
        try:
            for index, work in enumerate(plans):
                self._tile_of(index, work, made)
            for op, total in self.sums.items():
                self.b.loc = op.loc.union(rule="tile")
                found.whole.update(zip(op.results, total.finish(), strict=False))
            for value, parts in made.items():
                axis = self.region.cut[value]
                joined = self.b.op("Concat", parts, {"axis": axis}, type=value.type) if len(parts) > 1 else None
                found.whole[value] = joined.result if joined is not None else parts[0]
            found.whole = {value: found.whole[value] for value in self.region.outputs}
        except NotTileableError:
            self._take_back()
            raise
        if self.branch is not None:
            self._branches(found)
        self._replace(found)
        return found

    def _take_back(self) -> None:
        if self.branch is not None:
            self.outside.made.append(self.branch)
            self.branch.set_region("then_branch", None)
            self.b.made.clear()
        for op in reversed([*self.outside.made, *(self.b.made if self.b is not self.outside else ())]):
            op.erase()
        for moved, following in reversed(self.settled):
            moved.move_before(following)

    def _smallest_extent(self, grid: DynamicGrid) -> int:
        """The extent below which the region runs as it is: tiles overlap too far, or are not worth their nodes."""
        value, axis, rate = self._reference()
        planned = self.extent(value, axis)
        least = max(grid.count * rate, planned // FEWER)
        if grid.overlaps:
            least = max(least, smallest_extent(grid, self._reference()))
        if planned < least:
            raise NotTileableError("tiles smaller than what they overlap by")
        return least

    def _branch(self, least: int) -> None:
        """Put the tiles into one branch of an If, and what was there into the other.

        Weights of convolutions are given to the tiles once more: onnxruntime lays out only those that stand in the
        branch itself. What decodes a weight goes along: only within one graph it finds what runs on integers.
        """
        value, axis, _ = self._reference()
        b = self.b
        extent = self.made("Gather", [self.made("Shape", [value]), self.ints([axis])], {"axis": 0})
        wide = self.made("Squeeze", [self.made("Greater", [extent, self.ints([least - 1])])])
        then = Graph("tiles")
        self.branch = b.op(
            "If",
            [wide],
            outputs=len(self.region.outputs),
            type=[v.type for v in self.region.outputs],
            regions={"then_branch": then},
        )
        b.made.remove(self.branch)
        self.graph = then
        self.b = Builder(then, loc=b.loc)
        self.shared.clear()

    def _branches(self, found: Tiled) -> None:
        """Finish the If: outputs of the tiles, and the region as it was."""
        assert self.branch is not None
        outputs = list(found.whole)
        self.graph.set_outputs([found.whole[v] for v in outputs])
        whole = Graph("whole")
        self.branch.set_region("else_branch", whole)
        mapping: dict[Value, Value] = {}
        for decoded in dict.fromkeys(v for op in self.region.ops for v in op.operands if is_decoded(v)):
            assert decoded.op is not None
            copy = clone_op(decoded.op, mapping)
            copy.name = self._node_name(copy.name, self.grid.count)
            copy.result.name = whole.fresh_name(f"{decoded.name}_whole")
            whole.append(copy)
        for op in self.region.ops:
            copy = clone_op(op, mapping)
            copy.name = self._node_name(op.name, self.grid.count)
            for result in copy.results:
                result.name = "" if result.omitted else whole.fresh_name(f"{result.name}_whole")
            whole.append(copy)
        whole.set_outputs([mapping[v] for v in outputs])
        found.whole = dict(zip(outputs, self.branch.results, strict=True))
        self.outside.made.append(self.branch)
        self.b = self.outside

    def _settle(self) -> None:
        """Ops that run between the region's and do not depend on it go before it."""
        inside = set(self.region.ops)
        behind: set[Op] = set()
        op: Op | None = self.region.ops[0]
        last = self.region.ops[-1]
        first = self.region.ops[0]
        while op is not None:
            following = op.next
            if op not in inside:
                uses = [v.op for v in (*op.operands, *(c for r in op.regions.values() for c in r.captures()))]
                if any(o in inside or o in behind for o in uses if o is not None):
                    behind.add(op)
                elif following is not None:
                    op.move_before(first)
                    self.settled.append((op, following))
            if op is last:
                break
            op = following

    def _tile_of(self, index: int, plan: Mapping[Op, TileWork], made: dict[Value, list[Value]]) -> None:
        held: dict[Value, tuple[Value, Interval]] = {}
        self.parts.clear()
        if self.ordered and index:
            sums = [total.latest for total in self.sums.values()]
            every = [*sums, *(parts[-1] for parts in made.values() if parts)]
            self.waiting = ControlDependence(self, [v for v in every if v is not None])
        wanted = self.grid.tile(index)
        for op in self.region.ops:
            work = plan.get(op)
            if work is None:
                continue
            self.b.loc = op.loc.union(rule="tile")
            for old, new in self._op(op, work, held, index):
                held[old] = (new, work.interval)
        for value, interval in wanted.items():
            if value in made:
                made[value].append(self._part(value, self.region.cut[value], interval, held))

    def _op(
        self, op: Op, work: TileWork, held: Mapping[Value, tuple[Value, Interval]], index: int
    ) -> list[tuple[Value, Value]]:
        axis = self.region.axes[op]
        operands: list[Value] = []
        for operand, along, need in zip(op.operands, axis.operands, work.needs, strict=True):
            if along is not None and need is not None:
                operands.append(self._part(operand, along.axis, need.interval, held))
            elif operand in self.region.cut:
                raise NotTileableError(f"{op.op_type} needs all of what is cut")
            else:
                operands.append(self._given(op, operand))
        if self.waiting is not None and not any(v in held for v in op.operands):
            operands = self.waiting.after(op, operands)
        if op in self.sums:
            self.sums[op].add(operands, work.interval, index)
            return []
        if axis.form is Form.EXPONENTIALS:
            return [(op.result, exponentials(op, operands[0], index, self))]
        attrs, operands = FORMS[axis.form](TileOp(op, axis, work, tuple(operands), self.grid, self))
        types = [self._type(r, place, work.interval) for r, place in zip(op.results, axis.results, strict=True)]
        return list(zip(op.results, self.copied(op, operands, attrs, index, types=types), strict=True))

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
        new.name = self._node_name(op.name, index)
        new.overload = op.overload
        for old, result in zip(op.results, new.results, strict=True):
            result.omitted = old.omitted
            if not old.omitted:
                result.name = self.graph.fresh_name(f"{old.name}_{index}")
        return tuple(new.results)

    def _node_name(self, name: str, index: int) -> str:
        """A name that no node has: onnxruntime refuses twins."""
        if not name:
            return ""
        if self.names is None:
            self.names = {op.name for op in self.graph.root.walk()}
        found, n = f"{name}_{index}", 0
        while found in self.names:
            found, n = f"{name}_{index}_{n}", n + 1
        self.names.add(found)
        return found

    def _type(self, value: Value, place: int | None, interval: Interval) -> TensorType | None:
        """The type of the part of a value: its extent is an expression of the whole's where that is a symbol."""
        type_ = value.tensor_type
        if type_ is None or type_.shape is None or place is None:
            return None
        whole = type_.shape[place]
        lo, hi = self._known_place(interval.lo, whole), self._known_place(interval.hi, whole)
        shape = list(type_.shape)
        shape[place] = None if lo is None or hi is None else hi - lo
        return type_.with_shape(tuple(shape))

    def _known_place(self, bound: Bound, whole: Dim) -> Dim:
        key = (bound, whole)
        if key not in self.places:
            self.places[key] = self._find_place(bound, whole)
        return self.places[key]

    def _find_place(self, bound: Bound, whole: Dim) -> Dim:
        if isinstance(bound, int):
            return bound
        if bound is None or whole is None:
            return whole
        share = self._share_extent(bound.i)
        return None if share is None else share * bound.a + bound.b

    def _share_extent(self, index: int) -> Dim:
        """The bound before a tile as an expression of the whole's extent."""
        value, axis, rate = self._reference()
        whole = value.shape[axis] if value.shape is not None else None
        return None if whole is None else floordiv(floordiv(whole, rate) * index, self.grid.count)

    def _reference(self) -> tuple[Value, int, int]:
        if self.reference is None:
            self.reference = reference(self.region, self.grid)
        return self.reference

    def _given(self, op: Op, operand: Value) -> Value:
        """An operand that is needed whole."""
        if operand.is_absent:
            return self.graph.absent()
        if self.branch is None:
            return operand
        key = ("given", operand)
        if is_decoded(operand):
            if key not in self.shared:
                assert operand.op is not None
                (self.shared[key],) = self.copied(
                    operand.op, operand.op.operands, operand.op.attrs, 0, types=[operand.type]
                )
            return self.shared[key]
        if operand.tensor is None or op.op_type not in LAID_OUT:
            return operand
        if key not in self.shared:
            self.shared[key] = self.b.const(operand.tensor, f"{operand.name}_given")
        return self.shared[key]

    # -- parts of values ------------------------------------------------------------------------------

    def _part(self, value: Value, axis: int, interval: Interval, held: Mapping[Value, tuple[Value, Interval]]) -> Value:
        """The part of a value that a tile needs: of what the tile made, or of what is there before it."""
        if value in held:
            source, outer = held[value]
            start, end = within(outer, interval)
            return self.crop(source, axis, start, end, self._type(value, axis, interval))
        if value in self.region.cut:
            raise NotTileableError("a part that no tile makes")
        key = (value, axis, interval)
        if key not in self.parts:
            self.parts[key] = self._outer(value, axis, interval)
        return self.parts[key]

    def _outer(self, value: Value, axis: int, interval: Interval) -> Value:
        whole = interval.hi is None or (isinstance(self.grid, StaticGrid) and interval.hi == self.extent(value, axis))
        if interval.lo == 0 and whole:
            return value
        if self.sums and is_decoded(value):
            raise NotTileableError("a part of a weight that is stored in codes")
        if isinstance(interval.lo, int) and isinstance(interval.hi, int | None):
            if value.tensor is not None:
                return self._weight(value, axis, interval)
            return self.crop(
                value, axis, interval.lo, TO_END if whole else interval.hi or 0, self._type(value, axis, interval)
            )
        start: int | Value = interval.lo if isinstance(interval.lo, int) else self.place(interval.lo)
        end = TO_END if interval.hi is None else self.place(interval.hi)
        return self._slice(value, axis, start, end, self._type(value, axis, interval))

    def _weight(self, value: Value, axis: int, interval: Interval) -> Value:
        """A part of a weight is a weight."""
        key = ("weight", value, axis, interval)
        if key not in self.shared:
            assert value.tensor is not None
            if value.tensor.nbytes > LARGE and any(user not in self.region.axes for user in value.users):
                raise NotTileableError("a large weight, of which the file would hold parts beside the whole")
            cut = (slice(None),) * axis + (slice(interval.lo, interval.hi),)
            array = np.ascontiguousarray(value.tensor.numpy()[cut])
            dtype = value.dtype
            self.shared[key] = self.b.const(array, f"{value.name}_part", dtype)
        return self.shared[key]

    def crop(self, value: Value, axis: int, start: int, end: int, type: TensorType | None) -> Value:
        """A slice with ends that are known; the value itself when nothing is cut off."""
        if start == 0 and end >= TO_END:
            return value
        extent = value.shape[axis] if value.shape is not None else None
        if start == 0 and isinstance(extent, int) and end == extent:
            return value
        return self._slice(value, axis, start, end, type)

    def _slice(self, value: Value, axis: int, start: int | Value, end: int | Value, type: TensorType | None) -> Value:
        """Cut along two axes, the second one in full: onnxruntime would turn plain disjoint slices of one value into
        a Split, which makes all of them at once (its GatherSliceToSplitFusion)."""
        rank = len(value.shape or ()) if value.tensor_type is not None else 1
        axes = [axis] if rank < 2 else [axis, 0 if axis else rank - 1]
        if (ops.opset_of(self.graph) or 13) < 10:
            rest = [0] * (len(axes) - 1), [self.all] * (len(axes) - 1)
            attrs = {"axes": axes, "starts": [start, *rest[0]], "ends": [end, *rest[1]]}
            return self.made("Slice", [value], attrs, type)
        operands = [
            self._ends(start, 0, len(axes)), self._ends(end, self.all, len(axes)), self.ints(axes),
        ]  # fmt: skip
        return self.made("Slice", [value, *operands], type=type)

    def made(
        self,
        op_type: str,
        operands: list[Value],
        attrs: Mapping[str, object] | None = None,
        type: Type | None = None,
    ) -> Value:
        """Make an op with one result, as part of the tiles."""
        made = self.b.op(op_type, operands, dict(attrs or {}), type=type)
        made.metadata[MARK] = "1"
        return made.result

    def scalar(self, number: float, dtype: DType) -> Value:
        """A constant, made once."""
        key = ("scalar", number, dtype)
        if key not in self.shared:
            self.shared[key] = self.b.const(number, "number", dtype)
        return self.shared[key]

    def _ends(self, place: int | Value, other: int, count: int) -> Value:
        if not isinstance(place, Value):
            return self.ints([place, *[other] * (count - 1)])
        if count == 1:
            return place
        key = ("ends", place, other)
        if key not in self.shared:
            self.shared[key] = self.made("Concat", [place, self.ints([other])], {"axis": 0})
        return self.shared[key]

    def ints(self, values: list[int]) -> Value:
        """A constant vector of 64-bit integers, made once."""
        key = ("ints", *values)
        if key not in self.shared:
            self.shared[key] = self.b.const(np.asarray(values, np.int64), "place")
        return self.shared[key]

    # -- places known at run time ---------------------------------------------------------------------

    def place(self, bound: int | AffineBound | None) -> Value:
        """A place on an axis as a vector of one integer."""
        if not isinstance(bound, AffineBound):
            return self.ints([TO_END if bound is None else bound])
        if bound not in self.steps:
            value = self._share(bound.i)
            if bound.a != 1:
                value = self.made("Mul", [value, self.ints([bound.a])])
            if bound.b:
                value = self.made("Add", [value, self.ints([bound.b])])
            self.steps[bound] = value
        return self.steps[bound]

    def _share(self, index: int) -> Value:
        """The bound before a tile: as many even shares of the extent, rounded down."""
        key = ("share", index)
        if key not in self.shared:
            if self.whole is None:
                value, axis, rate = self._reference()
                self.whole = self.made("Gather", [self.made("Shape", [value]), self.ints([axis])], {"axis": 0})
                if rate != 1:
                    self.whole = self.made("Div", [self.whole, self.ints([rate])])
            parts = self.made("Mul", [self.whole, self.ints([index])]) if index > 1 else self.whole
            self.shared[key] = self.made("Div", [parts, self.ints([self.grid.count])])
        return self.shared[key]

    # -- putting in place -----------------------------------------------------------------------------

    def _replace(self, found: Tiled) -> None:
        for op in self.b.made:
            op.metadata[MARK] = "1"
        found.ops = [op for op in self.b.made if not op.is_const]
        inside = set(self.region.ops)
        renamed = []
        for old, new in found.whole.items():
            old.replace_by(new, where=lambda op, _: op not in inside)
            new.doc, new.metadata = old.doc, dict(old.metadata)
            renamed.append((new, old.name))
        given = dict.fromkeys(v for op in self.region.ops for v in op.operands if v.op is not None and v.op.is_const)
        for op in reversed(self.region.ops):
            op.erase()
        for value in given:
            if value.op is not None and not value.has_uses:
                value.op.erase()  # a weight of which there are parts now
        for new, name in renamed:
            new.name = name


def reference(region: Region, grid: TileGrid) -> tuple[Value, int, int]:
    """A value from outside whose extent is the region's: (value, axis, rate)."""
    for op in region.ops:
        for operand, along in zip(op.operands, region.axes[op].operands, strict=True):
            if along is not None and operand not in region.cut and operand.tensor is None:
                rate = region.rate(op) * along.stride
                if rate % along.per == 0:
                    return operand, along.axis, rate // along.per
    raise NotTileableError("no operand has the extent")


def within(outer: Interval, inner: Interval) -> tuple[int, int]:
    """Where an interval lies in one that holds it, as (start, end) of a Slice."""
    return _start(outer.lo, inner.lo), _stop(outer, inner)


def _start(outer: object, inner: object) -> int:
    if isinstance(outer, int) and isinstance(inner, int):
        return inner - outer
    if isinstance(outer, AffineBound) and isinstance(inner, AffineBound) and outer.a == inner.a:
        return inner.b - outer.b
    raise NotTileableError("a part whose place is not known")


def _stop(outer: Interval, inner: Interval) -> int:
    if outer.hi == inner.hi:
        return TO_END
    if isinstance(outer.hi, int) and isinstance(inner.hi, int) and isinstance(outer.lo, int):
        return inner.hi - outer.lo
    if isinstance(outer.hi, AffineBound) and isinstance(inner.hi, AffineBound) and outer.hi.a == inner.hi.a:
        return inner.hi.b - outer.hi.b
    raise NotTileableError("a part whose place is not known")
