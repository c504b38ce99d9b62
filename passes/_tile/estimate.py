"""What a tiling would need and cost, on paper: bytes alive while its pieces run, and time beside the whole's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import facts
from memoptc.ir.types import TensorType
from memoptc.passes._tile.frame import DoesNotFitError, Static, spans_of
from memoptc.passes._tile.region import Region
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import aligned, evaluate, footprint, is_resident
from memoptc.runtime.memory.liveness import inner_bytes, liveness, value_bytes
from memoptc.runtime.memory.workspace import kernel_workspace

FLOPS = 150e9
"""Multiplications and additions per second that a product or convolution reaches."""
BANDWIDTH = 15e9
"""Bytes per second that an operator moves."""
OVERHEAD = 4e-6
"""Seconds that running one node costs."""
PRODUCTS = frozenset("FusedGemm FusedMatMul Gemm MatMul MatMulInteger MatMulNBits QLinearMatMul".split())
SLOW = {"Softmax": 3.0, "Erf": 3.0, "Gelu": 4.0, "Tanh": 3.0, "Sigmoid": 3.0, "Exp": 3.0, "Pow": 6.0, "Sin": 6.0}
"""Operators whose arithmetic, not their bytes, takes the time: by what factor."""


class Costs:
    """Sizes and times of a graph's values and ops at the planned extents."""

    def __init__(self, graph: Graph, dims: Mapping[str, int]) -> None:
        self.dims = extents(graph, dims)
        self._workspace = kernel_workspace(self.dims)
        self._seconds: dict[Op, float] = {}
        self._bytes: dict[Value, int | None] = {}
        self._scratch: dict[Op, int] = {}

    def extent(self, value: Value, axis: int) -> int:
        """Extent of a value's axis.

        Raises:
            DoesNotFitError: it is not known.
        """
        if isinstance(value.type, TensorType) and value.type.shape is not None:
            found = evaluate(value.type.shape[axis], self.dims)
            if found is not None:
                return found
        raise DoesNotFitError(f"the extent of %{value.name} is not known")

    def nbytes(self, value: Value) -> int:
        """Bytes of a value; those of unknown size count as none."""
        if value not in self._bytes:
            self._bytes[value] = value_bytes(value, self.dims)
        return self._bytes[value] or 0

    def scratch(self, op: Op) -> int:
        """Bytes that an op's kernel needs besides."""
        if op not in self._scratch:
            self._scratch[op] = inner_bytes(op, self.dims, self._workspace)
        return self._scratch[op]

    def seconds(self, op: Op) -> float:
        """Time of an op without the cost of a node."""
        if op not in self._seconds:
            self._seconds[op] = self._time(op)
        return self._seconds[op]

    def _time(self, op: Op) -> float:
        if facts(op).view is not None or is_resident(op) or _joins_convolution(op):
            return 0.0
        moved = sum(self.nbytes(v) for v in (*op.operands, *op.results) if v.tensor is None)
        return max(self._multiplications(op) * 2 / FLOPS, moved * SLOW.get(op.op_type, 1.0) / BANDWIDTH)

    def _multiplications(self, op: Op) -> float:
        result = self._shape(op.results[0]) if op.results else ()
        if op.op_type in ("Conv", "FusedConv", "ConvInteger", "QLinearConv"):
            weights = self._shape(op.operands[3 if op.op_type == "QLinearConv" else 1])
            return prod(result) * prod(weights[1:])
        if op.op_type == "ConvTranspose":
            return prod(self._shape(op.operands[0])) * prod(self._shape(op.operands[1])[1:])
        if op.op_type in (
            "MatMul",
            "Gemm",
            "FusedMatMul",
            "FusedGemm",
            "MatMulInteger",
            "QLinearMatMul",
            "MatMulNBits",
        ):
            left = self._shape(op.operands[0])
            depth = left[-2] if op.attrs.get("transA") and len(left) > 1 else left[-1] if left else 1
            return prod(result) * depth
        if op.op_type in ("LSTM", "GRU", "RNN") and len(op.operands) > 2:
            rows = self._shape(op.operands[0])
            return prod(rows[:2]) * (prod(self._shape(op.operands[1])) + prod(self._shape(op.operands[2])))
        if op.op_type == "MultiHeadAttention":
            q, k = self._shape(op.operands[0]), self._shape(op.operands[1])
            return 2.0 * prod(q) * (k[1] if len(k) > 1 else 1)
        return 0.0

    def _shape(self, value: Value) -> tuple[int, ...]:
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            return ()
        return tuple(evaluate(d, self.dims) or 1 for d in value.type.shape)


def _joins_convolution(op: Op) -> bool:
    """Whether onnxruntime makes the op part of the convolution before it."""
    maker = op.operands[0].op if op.operands else None
    return op.op_type in ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh") and (
        maker is not None and maker.op_type in ("Conv", "BatchNormalization", "Gemm") and op.operands[0].single_use
    )


@dataclass
class Landscape:
    """A graph at its planned extents: what is alive at each step.

    Args:
        graph: The graph.
        costs: Sizes and times.
    """

    graph: Graph
    costs: Costs

    def __post_init__(self) -> None:
        self.ops: list[Op] = [op for op in self.graph.ops if not is_resident(op)]
        self.position = {op: i for i, op in enumerate(self.ops)}
        found = liveness(self.graph, self.costs.dims)
        self.curve = found.curve[: len(self.ops)]
        self.end = found.curve[-1] if found.curve else 0
        self.peak = max(found.curve, default=0)
        self.layout = footprint(self.graph)
        self.sizes = [size or 0 for size in self.layout.bind(self.costs.dims)]

    @cached_property
    def seconds(self) -> float:
        """Time of one run, on paper."""
        return sum(self.costs.seconds(op) + OVERHEAD for op in self.ops)

    @cached_property
    def users(self) -> list[list[int]]:
        """Per group the ops that use it."""
        found: list[list[int]] = [[] for _ in self.layout.groups]
        for index, groups in enumerate(self.layout.needs):
            for group in groups:
                found[group].append(index)
        return found

    @cached_property
    def maker(self) -> dict[int, int]:
        """Per group the op that makes it."""
        return {group: index for index, groups in enumerate(self.layout.makes) for group in groups}

    @cached_property
    def home(self) -> dict[Value, int]:
        """Per value its group."""
        return {value: i for i, group in enumerate(self.layout.groups) for value in group.values}


@dataclass(frozen=True)
class Estimate:
    """A tiling on paper.

    Args:
        region: What is cut.
        count: Into how many pieces.
        peak: Bytes of the whole graph's peak afterwards.
        inside: Bytes alive while the pieces run.
        seconds: Time that it takes longer.
        nodes: Nodes that it adds.
    """

    region: Region
    count: int
    peak: int
    inside: int
    seconds: float
    nodes: int


def estimate(region: Region, count: int, land: Landscape, extent: Callable[[Value, int], int]) -> Estimate:
    """Look at a region cut into `count` pieces.

    Raises:
        DoesNotFitError: it cannot be.
    """
    frame = Static(region, count, extent)
    costs = land.costs
    inside = set(region.ops)
    middle = frame.count // 2
    spans = spans_of(region, frame, middle)
    base, freed = _around(region, inside, land)
    outputs = sum(aligned(costs.nbytes(v)) for v in region.outputs)
    tile, seconds, nodes = _one(region, spans, frame, costs, inside)
    whole = sum(costs.seconds(op) for op in region.ops)
    joined = max((aligned(costs.nbytes(v)) for v in region.outputs), default=0)
    peak = max(base + outputs + tile, base - freed + outputs + joined)
    first, last = land.position[region.ops[0]], land.position[region.ops[-1]]
    outside = max((*land.curve[:first], *land.curve[last + 1 :], land.end), default=0)
    more = (seconds + nodes * OVERHEAD) * frame.count + 2 * outputs / BANDWIDTH - whole - len(region.ops) * OVERHEAD
    return Estimate(region, frame.count, max(peak, outside), peak, more, (nodes * frame.count) - len(region.ops))


def _around(region: Region, inside: set[Op], land: Landscape) -> tuple[int, int]:
    """Bytes that are alive beside the region while it runs, and those of them that it is the last to use."""
    first, last = land.position[region.ops[0]], land.position[region.ops[-1]]
    behind = _behind(region, inside, land)
    own = {land.home[v] for op in region.ops for v in op.results if v in land.home}
    base = freed = 0
    for group, size in enumerate(land.sizes):
        if not size or group in own:
            continue
        maker = land.maker.get(group)
        if maker is not None and (maker > last or (maker >= first and land.ops[maker] in behind)):
            continue
        uses = land.users[group]
        later = [u for u in uses if u > last or land.ops[u] in behind]
        pinned = land.layout.groups[group].pinned
        if later or pinned:
            base += size
        elif any(land.ops[u] in inside for u in uses):
            base += size
            freed += size
    return base, freed


def _behind(region: Region, inside: set[Op], land: Landscape) -> set[Op]:
    first, last = land.position[region.ops[0]], land.position[region.ops[-1]]
    behind: set[Op] = set()
    for index in range(first, last + 1):
        op = land.ops[index]
        if op not in inside and any(v.op in inside or v.op in behind for v in op.operands if v.op is not None):
            behind.add(op)
    return behind


def _one(
    region: Region, spans: Mapping[Op, object], frame: Static, costs: Costs, inside: set[Op]
) -> tuple[int, float, int]:
    """Bytes alive at most inside one piece, its time, and its nodes."""
    left: dict[Value, int] = {}
    size: dict[Value, int] = {}
    for op in region.ops:
        for operand in op.operands:
            if operand in region.cut:
                left[operand] = left.get(operand, 0) + 1
    live = peak = nodes = 0
    seconds = 0.0
    kept = set(region.outputs)
    sliced: set[tuple[Value, object]] = set()
    root: dict[Value, Value] = {}
    for op in region.ops:
        span = spans.get(op)
        if span is None:
            continue
        axis = region.axes[op]
        share = _share(op, region, span, costs)
        cuts = 0
        for operand, along in zip(op.operands, axis.operands, strict=True):
            if along is None or operand in region.cut:
                continue
            need = frame.need(along, span, operand).span  # type: ignore[arg-type]
            if (operand, need) not in sliced and operand.tensor is None:
                sliced.add((operand, need))
                part = frame.length(need) or 0
                cuts += aligned(costs.nbytes(operand) * part // max(1, costs.extent(operand, along.axis)))
                nodes += 1
        view = facts(op).view is not None and op.operands[0] in region.cut
        made = 0
        for result in op.results:
            if result in region.cut:
                place = region.cut[result]
                part = frame.length(span) or 0  # type: ignore[arg-type]
                whole = costs.nbytes(result)
                size[result] = 0 if view else aligned(whole * part // max(1, costs.extent(result, place)))
                made += size[result]
                if view:
                    root[result] = root.get(op.operands[0], op.operands[0])
                    left[root[result]] = left.get(root[result], 0) + left.get(result, 0)
        scratch = costs.scratch(op)
        scratch = int(scratch * share) if scratch > 1 << 18 else scratch
        in_place = _overwrites(op, left, size, region)
        peak = max(peak, live + cuts + made - in_place + scratch)
        live += cuts + made
        for operand in op.operands:
            if operand in region.cut:
                source = root.get(operand, operand)
                left[source] -= 1
                if not left[source] and source not in kept:
                    live -= size.get(source, 0)
        live -= cuts if cuts and not _needed_later(op, region) else 0
        seconds += costs.seconds(op) * share + cuts / BANDWIDTH
        nodes += 1
    return peak, seconds, nodes


def _needed_later(op: Op, region: Region) -> bool:
    """Whether another op of the region may use what was cut for this one."""
    return any(user in region.axes and user is not op for v in op.operands for user in v.users if v not in region.cut)


def _share(op: Op, region: Region, span: object, costs: Costs) -> float:
    for result, place in zip(op.results, region.axes[op].results, strict=True):
        if place is not None and not result.omitted:
            whole = costs.extent(result, place)
            length = span.hi - span.lo  # type: ignore[attr-defined]
            return length / whole if whole else 0.0
    return 1.0


def _overwrites(op: Op, left: Mapping[Value, int], size: Mapping[Value, int], region: Region) -> int:
    """Bytes of an operand that the result overwrites."""
    for index in facts(op).in_place:
        operand = op.operands[index] if index < len(op.operands) else None
        if operand in region.cut and operand is not None and left.get(operand) == 1 and operand not in region.outputs:
            made = size.get(op.results[0], 0)
            return made if size.get(operand, 0) == made else 0
    return 0
