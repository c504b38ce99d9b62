"""Predicted peak and run time of a tiling, without making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memoptc.ir.core import Op, Value
from memoptc.ir.ops import Family, facts, in_family
from memoptc.passes.memory._tile.accumulation_costs import joining, must_wait, part_bytes
from memoptc.passes.memory._tile.costs import BANDWIDTH, CACHE, Costs, joins_convolution
from memoptc.passes.memory._tile.grid import Interval, NotTileableError, StaticGrid
from memoptc.passes.memory._tile.memory_profile import OVERHEAD, MemoryProfile
from memoptc.passes.memory._tile.propagation import TileWork, tile_work
from memoptc.passes.memory._tile.region import Region
from memoptc.runtime.memory.footprint import aligned, is_resident

CONVOLUTION_OVERHEAD = 2e-6
"""Seconds that it costs beside convolutions: between them and what is sliced lie changes of layout, and their kernels
wake threads. Tiles of next to nothing take 1 to 1.5 microseconds a node, changes of layout not counted."""
CROP = 4
"""How often a byte that is cropped inside is moved: by the slice, and into and out of the runtime's layouts."""


@dataclass(frozen=True)
class TilingEstimate:
    """A tiling on paper.

    Args:
        region: What is cut.
        count: Into how many tiles.
        peak: Bytes of the whole graph's peak afterwards.
        inside: Bytes alive while the tiles run.
        seconds: Time that it takes longer.
        nodes: Nodes that it adds.
        overcompute: Whether ops compute more than is needed, so that nothing is cropped inside.
        ordered: Whether tiles must wait for what is accumulated.
    """

    region: Region
    count: int
    peak: int
    inside: int
    seconds: float
    nodes: int
    overcompute: bool
    ordered: bool


@dataclass(frozen=True)
class TileCosts:
    """Bytes, time and nodes that a tiling takes, whatever else is alive beside it.

    Args:
        count: Tiles.
        tile: Bytes alive at most inside one of them.
        seconds: Time that all take longer than the whole.
        nodes: Nodes that they add.
        overcompute: As in `TilingEstimate`.
        ordered: As in `TilingEstimate`.
    """

    count: int
    tile: int
    seconds: float
    nodes: int
    overcompute: bool
    ordered: bool


class KnownTilings:
    """Costs of tilings, each worked out once: further rounds begin with clones of the same graph, and meet many of the
    same regions again, as does each step of a round."""

    def __init__(self) -> None:
        self.effort = 0
        """Ops looked at so far: in regions, in tilings, and in graphs that tilings were made in."""
        self._known: dict[tuple[object, int], list[TileCosts] | NotTileableError] = {}

    def of(self, region: Region, count: int, costs: Costs) -> list[TileCosts]:
        """Give the costs of a region cut into `count` tiles: exactly, and loosely where that saves cropping.

        Raises:
            NotTileableError: it cannot be.
        """
        key = region.identity, count
        found = self._known.get(key)
        if found is None:
            self.effort += 2 * len(region.ops)
            try:
                found = list(_tile_costs(region, count, costs))
            except NotTileableError as reason:
                found = reason
            self._known[key] = found
        if isinstance(found, NotTileableError):
            raise found
        return found


def _tile_costs(region: Region, count: int, costs: Costs) -> Iterator[TileCosts]:
    if region.rates is None:
        raise NotTileableError("its operators do not move together")
    grid = StaticGrid(region, count, costs.extent)
    overhead = CONVOLUTION_OVERHEAD if any(in_family(op, Family.CONVOLUTION) for op in region.ops) else OVERHEAD
    whole = sum(costs.seconds(op) + overhead for op in region.ops)
    borders, border_nodes = _borders(region, grid.count, costs)
    waits = must_wait(region, grid.count, costs)
    moved = 2 * sum(costs.nbytes(v) for v in region.outputs if v in region.cut)
    for overcompute in (False, True):
        try:
            plan = tile_work(region, grid, grid.count // 2, overcompute=overcompute)
        except NotTileableError:
            if not overcompute:
                raise
            return
        tile, seconds, nodes, crops = simulate_tile(region, plan, grid, costs)
        more = (seconds + (nodes + border_nodes + waits) * overhead) * grid.count + moved / BANDWIDTH + borders - whole
        yield TileCosts(grid.count, tile, more, nodes * grid.count - len(region.ops), overcompute, waits > 0)
        if not crops:
            return


def estimates(region: Region, count: int, profile: MemoryProfile, known: KnownTilings) -> Iterator[TilingEstimate]:
    """Look at a region cut into `count` tiles: exactly, and loosely where that saves cropping.

    Raises:
        NotTileableError: it cannot be.
    """
    every = known.of(region, count, profile.costs)
    base, outputs, floor = bound(region, profile)
    first, last = profile.position[region.ops[0]], profile.position[region.ops[-1]]
    outside = max(profile.peak_before[first], profile.peak_after[last])
    for c in every:
        inside = max(base + outputs + c.tile, floor)
        peak = max(inside, outside)
        yield TilingEstimate(region, c.count, peak, inside, c.seconds, c.nodes, c.overcompute, c.ordered)


def _borders(region: Region, count: int, costs: Costs) -> tuple[float, int]:
    """Time lost because onnxruntime's layouts and fusions end at the region's borders, and nodes added per tile."""
    if not any(in_family(op, Family.CONVOLUTION) for op in region.ops):
        return 0.0, 0
    seconds, nodes = 0.0, 0

    def laid_out(value: Value) -> float:
        moved = 2 * costs.nbytes(value)
        return costs.moving(moved, moved / count <= CACHE)

    for value in {v for op in region.ops for v in op.operands if v.op is not None and v not in region.cut}:
        if value.op is not None and not is_resident(value.op):
            seconds, nodes = seconds + laid_out(value), nodes + 1
    for op in region.ops:
        if joins_convolution(op) and op.operands[0] not in region.cut:
            seconds += 2 * costs.nbytes(op.operands[0]) / BANDWIDTH
    for value in region.outputs:
        seconds, nodes = seconds + laid_out(value), nodes + 1
        if any(joins_convolution(user) for user in value.users if user not in region.axes):
            seconds += 2 * costs.nbytes(value) / BANDWIDTH
    return seconds, nodes


def bound(region: Region, profile: MemoryProfile) -> tuple[int, int, int]:
    """Bytes beside a region while it runs, those of its outputs, and the least that any tiling of it needs."""
    held, known = profile.bounds.get(id(region), (None, (0, 0, 0)))
    if held is not region:
        base, freed = _around(region, set(region.ops), profile)
        sizes = {v: aligned(profile.costs.nbytes(v)) for v in region.outputs}
        outputs = sum(sizes.values())
        if region.is_symbolic:
            freed = 0  # what a branch reads is held until it ends
        # Beside what is put together from tiles are the tiles; beside what is accumulated, one part of it.
        whole = max((size for v, size in sizes.items() if v in region.cut), default=0)
        part = max((size for v, size in sizes.items() if v not in region.cut), default=0)
        floor = max(base + outputs + part, base - freed + outputs + whole)
        known = base, outputs, floor
        profile.bounds[id(region)] = region, known
    return known


def _around(region: Region, inside: set[Op], profile: MemoryProfile) -> tuple[int, int]:
    """Bytes that are alive beside the region while it runs, and those of them that it is the last to use."""
    first, last = profile.position[region.ops[0]], profile.position[region.ops[-1]]
    behind = _dependent_ops(region, inside, profile)
    # A view of what was there before is not the region's own.
    own = {
        g
        for op in region.ops
        for v in op.results
        if (g := profile.group_index.get(v)) is not None and _roots(g, profile) in inside
    }
    base = freed = 0
    for group in profile.groups_alive(first, last):
        if group in own:
            continue
        size = profile.sizes[group]
        maker = profile.maker.get(group)
        if maker is not None and (maker > last or (maker >= first and profile.ops[maker] in behind)):
            continue
        uses = profile.users[group]
        later = [u for u in uses if u > last or profile.ops[u] in behind]
        pinned = profile.layout.groups[group].pinned
        if later or pinned:
            base += size
        elif any(profile.ops[u] in inside for u in uses):
            base += size
            freed += size
    return base, freed


def _roots(group: int, profile: MemoryProfile) -> Op | None:
    return profile.layout.groups[group].values[0].op


def _dependent_ops(region: Region, inside: set[Op], profile: MemoryProfile) -> set[Op]:
    first, last = profile.position[region.ops[0]], profile.position[region.ops[-1]]
    behind: set[Op] = set()
    for index in range(first, last + 1):
        op = profile.ops[index]
        if op not in inside and any(v.op in inside or v.op in behind for v in op.operands if v.op is not None):
            behind.add(op)
    return behind


def simulate_tile(
    region: Region, plan: Mapping[Op, TileWork], grid: StaticGrid, costs: Costs
) -> tuple[int, float, int, int]:
    """Bytes alive at most inside one tile, its time, its nodes, and how often something is cropped inside."""
    left = Counter(operand for op in plan for operand in op.operands if operand in region.cut)
    size: dict[Value, int] = {}
    held: dict[Value, Interval] = {}
    root: dict[Value, Value] = {}
    sliced: set[tuple[Value, Interval]] = set()
    live = peak = nodes = crops = 0
    seconds = 0.0
    kept = set(region.outputs)

    def part(value: Value, axis: int, interval: Interval) -> int:
        whole = costs.extent(value, axis)
        return aligned(costs.nbytes(value) * (grid.length(interval) or 0) // max(1, whole))

    for op, work in plan.items():
        cuts = lasting = 0
        for operand, along, need in zip(op.operands, region.axes[op].operands, work.needs, strict=True):
            if along is None or need is None or operand.tensor is not None:
                continue
            if operand in region.cut:
                if held[operand] != need.interval:
                    cuts += part(operand, along.axis, need.interval)
                    seconds += part(operand, along.axis, need.interval) * (CROP - 2) / BANDWIDTH
                    nodes, crops = nodes + 1, crops + 1
            elif (operand, need.interval) not in sliced:
                sliced.add((operand, need.interval))
                again = sum(1 for user in operand.users if user in plan) > 1
                lasting += part(operand, along.axis, need.interval) if again else 0
                cuts += 0 if again else part(operand, along.axis, need.interval)
                nodes += 1
        seconds += (cuts + lasting) * 2 / BANDWIDTH
        join = region.axes[op].join
        view = costs.is_view(op) and op.operands[0] in region.cut
        made = part_made = 0
        if join is not None:
            part_made = part_bytes(op, region.axes[op], work.interval, costs)
            more, added = joining(op, region, work.interval, costs)
            seconds, nodes = seconds + more, nodes + added
        for result, place in zip(op.results, region.axes[op].results, strict=True):
            if result not in region.cut or place is None:
                continue
            held[result] = work.interval
            size[result] = 0 if view else part(result, place, work.interval)
            made += size[result]
            if view:
                source = root[result] = root.get(op.operands[0], op.operands[0])
                left[source] = left.get(source, 0) + left.get(result, 0)
        share = _share(op, region, work.interval, costs)
        scratch = costs.scratch(op)
        scratch = int(scratch * share) if scratch > 1 << 18 else scratch
        peak = max(peak, live + cuts + lasting + made + part_made - _overwrites(op, left, size, region) + scratch)
        live += lasting + made
        for operand in op.operands:
            if operand in region.cut:
                source = root.get(operand, operand)
                left[source] -= 1
                if not left[source] and source not in kept:
                    live -= size.get(source, 0)
        seconds += costs.seconds(op, share, rows=_cuts_rows(op, region), terms=join is not None)
        nodes += 1
    return peak, seconds, nodes, crops


def _cuts_rows(op: Op, region: Region) -> bool:
    axis = region.axes[op].results[0]
    return axis is not None and axis == (op.result.rank or 0) - 2


def _share(op: Op, region: Region, interval: Interval, costs: Costs) -> float:
    if region.axes[op].join is not None:
        value, axis = region.partitioned_operand(op.results[0])
        whole = costs.extent(value, axis)
        return (interval.hi - interval.lo) / whole if whole else 0.0  # type: ignore[operator]
    for result, place in zip(op.results, region.axes[op].results, strict=True):
        if place is not None and not result.omitted:
            whole = costs.extent(result, place)
            assert isinstance(interval.lo, int)
            assert isinstance(interval.hi, int)
            return (interval.hi - interval.lo) / whole if whole else 0.0
    return 1.0


def _overwrites(op: Op, left: Mapping[Value, int], size: Mapping[Value, int], region: Region) -> int:
    """Bytes of an operand that the result overwrites."""
    for index in facts(op).in_place:
        operand = op.operands[index] if index < len(op.operands) else None
        if operand in region.cut and operand is not None and left.get(operand) == 1 and operand not in region.outputs:
            made = size.get(op.results[0], 0)
            return made if size.get(operand, 0) == made else 0
    return 0
