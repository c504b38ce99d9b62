"""Emit the ops of all tiles; tile results are concatenated or, along a reduction axis, accumulated (`accumulation`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value, clone_op
from memoptc.ir.iteration import Form
from memoptc.passes.memory._tile.accumulation import Accumulated, accumulated, exponentials
from memoptc.passes.memory._tile.building import TileBuilder
from memoptc.passes.memory._tile.control_dependence import ControlDependence
from memoptc.passes.memory._tile.grid import (
    TO_END,
    DynamicGrid,
    Interval,
    NotTileableError,
    StaticGrid,
    TileGrid,
    tiles,
    within,
)
from memoptc.passes.memory._tile.marks import TILED
from memoptc.passes.memory._tile.propagation import TileWork, tile_work
from memoptc.passes.memory._tile.region import Region
from memoptc.passes.memory._tile.smallest_extent import smallest_extent
from memoptc.passes.memory._tile.tile_operators import FORMS, TileOp

LARGE = 1 << 16
"""Bytes above which a weight that is used elsewhere, too, is not cut."""

FEWER = 8
"""An extent smaller than the planned one by this factor is not cut: the tiles would be crumbs."""


def is_decoded(value: Value) -> bool:
    """True if a value is a weight that is stored in codes."""
    op = value.op
    return op is not None and op.op_type == "DequantizeLinear" and all(v.tensor is not None for v in op.operands)


@dataclass
class Tiled:
    """Ops and values of one tiled region.

    Args:
        count: Tiles.
        ops: Ops made, in order.
        whole: Results put together, by the value they replace.
    """

    count: int
    ops: list[Op] = field(default_factory=list)
    whole: dict[Value, Value] = field(default_factory=dict)


class Emitter(TileBuilder):
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
        super().__init__(region, grid, extent)
        self.overcompute, self.ordered = overcompute, ordered
        self.outside = self.b
        self.branch: Op | None = None
        self.settled: list[tuple[Op, Op]] = []
        self.parts: dict[tuple[Value, int, Interval], Value] = {}
        self.sums: dict[Op, Accumulated] = {}
        self.waiting: ControlDependence | None = None

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
        value, axis, rate = self.reference()
        planned = self.extent(value, axis)
        least = max(grid.count * rate, planned // FEWER)
        if grid.overlaps:
            least = max(least, smallest_extent(grid, self.reference()))
        if planned < least:
            raise NotTileableError("tiles smaller than what they overlap by")
        return least

    def _branch(self, least: int) -> None:
        """Put the tiles into one branch of an If, and what was there into the other.

        Weights of convolutions are given to the tiles once more: onnxruntime lays out only those that stand in the
        branch itself. What decodes a weight goes along: only within one graph it finds what runs on integers,
        and looks for the codes there, too.
        """
        value, axis, _ = self.reference()
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
            for codes in dict.fromkeys(decoded.op.operands) if ops.needs_own_codes(decoded.op) else ():
                assert codes.tensor is not None
                if codes not in mapping:
                    mapping[codes] = whole.const(codes.tensor, whole.fresh_name(f"{codes.name}_whole"))
            copy = clone_op(decoded.op, mapping)
            copy.name = self.node_name(copy.name, self.grid.count)
            copy.result.name = whole.fresh_name(f"{decoded.name}_whole")
            whole.append(copy)
        for op in self.region.ops:
            copy = clone_op(op, mapping)
            copy.name = self.node_name(op.name, self.grid.count)
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
        types = [self.part_type(r, place, work.interval) for r, place in zip(op.results, axis.results, strict=True)]
        return list(zip(op.results, self.copied(op, operands, attrs, index, types=types), strict=True))

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
                own = ops.needs_own_codes(operand.op)
                codes = [self._own(v) if own else v for v in operand.op.operands]
                (self.shared[key],) = self.copied(operand.op, codes, operand.op.attrs, 0, types=[operand.type])
            return self.shared[key]
        # onnxruntime lays these weights out anew only where they stand in the same graph
        laid_out = ops.facts(op).packs_weights and ops.in_family(op, ops.Family.CONVOLUTION)
        return self._own(operand) if operand.tensor is not None and laid_out else operand

    def _own(self, weight: Value) -> Value:
        """A copy of a weight in the branch itself."""
        key = ("given", weight)
        if key not in self.shared:
            assert weight.tensor is not None
            self.shared[key] = self.b.const(weight.tensor, f"{weight.name}_given")
        return self.shared[key]

    # -- parts of values ------------------------------------------------------------------------------

    def _part(self, value: Value, axis: int, interval: Interval, held: Mapping[Value, tuple[Value, Interval]]) -> Value:
        """The part of a value that a tile needs: of what the tile made, or of what is there before it."""
        if value in held:
            source, outer = held[value]
            start, end = within(outer, interval)
            return self.crop(source, axis, start, end, self.part_type(value, axis, interval))
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
                value, axis, interval.lo, TO_END if whole else interval.hi or 0, self.part_type(value, axis, interval)
            )
        start: int | Value = interval.lo if isinstance(interval.lo, int) else self.bound(interval.lo)
        end = TO_END if interval.hi is None else self.bound(interval.hi)
        return self.slice(value, axis, start, end, self.part_type(value, axis, interval))

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

    # -- putting in place -----------------------------------------------------------------------------

    def _replace(self, found: Tiled) -> None:
        for op in self.b.made:
            op.metadata[TILED] = "1"
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
