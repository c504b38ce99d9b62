"""Sizes of values, and run times of operators, at the planned extents."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim
from memoptc.ir.ops import Family, definition, facts, in_family
from memoptc.passes.memory._tile.grid import NotTileableError
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import evaluate, is_resident
from memoptc.runtime.memory.integer import fused_pairs
from memoptc.runtime.memory.liveness import inner_bytes, value_bytes
from memoptc.runtime.memory.workspace import kernel_workspace

FLOPS = 125e9
"""Multiplications and additions per second that a product or convolution reaches on two threads.

With this and the two rates of bytes, runs of 20 of 22 models of 1 to 1,500 ms are predicted within a factor of two:
what a node costs is weighed against that."""
BANDWIDTH = 8e9
"""Bytes per second that an operator moves when they come from memory."""
CACHED = 24e9
"""Bytes per second that an operator moves when they fit into a cache."""
CACHE = 8 << 20
"""Bytes that a cache holds."""
RECURRENT_FLOPS = 60e9
"""The same of a recurrent operator, whose products are narrow and whose gates are computed element by element: from
four sequences on, time grows with their number."""
STEP = 5e-6
"""Seconds that one step of a recurrent operator costs, however few sequences there are."""
ROWS = 14
"""Rows of a product that cost as much as none: packing the other operand, and what does not fill a register block."""
DEPTH = 64
"""Terms of a sum that cost as much as none: a product of short rows moves more than it multiplies."""


class Costs:
    """Sizes and times of a graph's values and ops at the planned extents.

    Args:
        graph: The graph.
        dims: Extents of its symbolic dimensions.
        caches: Whether what fits into a cache moves faster.
    """

    def __init__(self, graph: Graph, dims: Mapping[str, int], *, caches: bool = True) -> None:
        self._cached = CACHED if caches else BANDWIDTH
        self.dims = extents(graph, dims)
        self._fused = fused_pairs(graph)
        self._workspace = kernel_workspace(self.dims)
        self._work: dict[Op, tuple[float, float]] = {}
        self._bytes: dict[Value, int | None] = {}
        self._scratch: dict[Op, int] = {}
        self._extents: dict[Dim, int | None] = {}
        self._axes: dict[tuple[Value, int], int] = {}

    def extent(self, value: Value, axis: int) -> int:
        """Extent of a value's axis.

        Raises:
            NotTileableError: it is not known.
        """
        found = self._axes.get((value, axis))
        if found is None:
            shape = value.shape
            found = None if shape is None else self._known_extent(shape[axis])
            if found is None:
                raise NotTileableError(f"the extent of %{value.name} is not known")
            self._axes[value, axis] = found
        return found

    def nbytes(self, value: Value) -> int:
        """Bytes of a value; those of unknown size count as none."""
        if value not in self._bytes:
            stored = self._fused.coded.get(value, value)
            self._bytes[value] = 0 if value in self._fused.resident else value_bytes(stored, self.dims)
        return self._bytes[value] or 0

    def is_view(self, op: Op) -> bool:
        """True if an op's result is another name for its first operand's bytes."""
        return facts(op).view is not None or (bool(op.results) and op.results[0] in self._fused.views)

    def scratch(self, op: Op) -> int:
        """Bytes that an op's kernel needs besides."""
        if op not in self._scratch:
            self._scratch[op] = inner_bytes(op, self.dims, self._workspace)
        return self._scratch[op]

    def seconds(self, op: Op, share: float = 1.0, *, rows: bool = False, terms: bool = False) -> float:
        """Time of an op, or of a share of it, without the cost of a node.

        Args:
            op: The op.
            share: Share of its result.
            rows: Whether that share has fewer rows of a product: those are computed several at once.
            terms: Whether it is a share of what is added up instead, for every element of the result.
        """
        if op not in self._work:
            self._work[op] = self._measure(op)
        flops, moved = (w * share for w in self._work[op])
        slow = facts(op).arithmetic
        if rows and in_family(op, Family.MATMUL):
            shape = self.shape(op.results[0])
            count = shape[-2] * share if len(shape) > 1 else 1.0
            flops *= (count + ROWS) / max(count, 1.0)
        if terms and in_family(op, Family.MATMUL):
            flops += 2.0 * (1 - share) * prod(self.shape(op.results[0])) * DEPTH
        transfer = max(self.moving(moved, moved <= CACHE), slow * moved / CACHED)
        if in_family(op, Family.RECURRENT):
            steps = (self.shape(op.operands[0]) or (0,))[0]
            return steps * STEP + flops / RECURRENT_FLOPS + transfer
        return flops / FLOPS + transfer

    def moving(self, size: float, cached: bool) -> float:
        """Time of moving bytes that come from a cache, or from memory."""
        return size / (self._cached if cached else BANDWIDTH)

    def _measure(self, op: Op) -> tuple[float, float]:
        """Operations, and bytes moved."""
        if self.is_view(op) or is_resident(op) or joins_convolution(op):
            return 0.0, 0.0
        moved = sum(self.nbytes(v) for v in (*op.operands, *op.results) if v.tensor is None)
        return self._multiplications(op) * 2, moved

    def _multiplications(self, op: Op) -> float:
        count = definition(op).multiplications
        if count is None:
            return 0.0
        depth = DEPTH * prod(self.shape(op.results[0])) if in_family(op, Family.MATMUL) else 0
        return count(op, self.shape) + depth

    def shape(self, value: Value) -> tuple[int, ...]:
        """Extents of a value; 1 for those that are not known."""
        return tuple(self._known_extent(d) or 1 for d in value.shape or ())

    def _known_extent(self, dim: Dim) -> int | None:
        if dim is None or isinstance(dim, int):
            return evaluate(dim, self.dims)
        if dim not in self._extents:
            self._extents[dim] = evaluate(dim, self.dims)
        return self._extents[dim]


def joins_convolution(op: Op) -> bool:
    """True if onnxruntime makes the op part of the convolution before it."""
    maker = op.operands[0].op if op.operands else None
    return (
        facts(op).joins_convolution
        and maker is not None
        and maker.op_type in ("Conv", "BatchNormalization", "Gemm")
        and op.operands[0].single_use
    )
