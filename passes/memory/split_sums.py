"""split-sums: a product of joined operands becomes the sum of the products of each, so that they are never joined."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import weight_layout
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.liveness import liveness, value_bytes
from memoptc.runtime.memory.workspace import kernel_workspace

_FLOATS = (DType.FLOAT, DType.DOUBLE)


SAVED = "bytes saved"

BLOCK = 16
"""Channels that onnxruntime's convolutions take side by side: operands of other extents would get a slower kernel."""


class SplitSums(Pass):
    """Turn `[a, b] [U; V]` into `a U + b V`, for products and convolutions with constant weights.

    A Concat keeps its operands and their copy alive at once; the sum needs two results instead, of which onnxruntime
    adds the second onto the first within the convolution. Done where the planned peak, or at least half of it, is
    alive at the Concat, and only if the peak falls. Outputs may differ by float noise.

    Args:
        most: Operands of a Concat beyond which it stays.
    """

    most: int = 4

    def run(self, graph: Graph, context: Context) -> None:
        """Split all near the peak at once, on a copy first, as long as that lowers the peak: the measure that falls."""
        dims = extents(graph, context.dims)
        while True:
            found = self._near_peak(graph, dims)
            if not found:
                return
            twins: dict[Value, Value] = {}
            trial = graph.clone(twins)
            for op in found:
                _split(twins[op.result].op, trial=True)
            gain = _peak(graph, dims) - _peak(trial, dims)
            if gain <= 0:
                return
            for op in found:
                context.stats[op.op_type] += 1
                _split(op)
            context.stats[SAVED] += gain

    def _near_peak(self, graph: Graph, dims: Mapping[str, int]) -> list[Op]:
        candidates = [op for op in graph.ops if _is_split(op, self.most) and _saves(op, dims)]
        if not candidates:
            return []
        alive = liveness(graph, dims, workspace=kernel_workspace(dims))
        curve = dict(zip(alive.steps, alive.curve, strict=True))
        most = max(alive.curve)
        return [op for op in candidates if 2 * curve.get(_join(op), 0) >= most]


def _peak(graph: Graph, dims: Mapping[str, int]) -> int:
    return max(liveness(graph, dims, workspace=kernel_workspace(dims)).curve, default=0)


def _join(op: Op) -> Op:
    join = op.operands[0].op
    assert join is not None
    return join


def _is_split(op: Op, most: int) -> bool:
    if not op.is_a("Conv", "Gemm", "MatMul"):
        return False
    join = op.operands[0].op
    return (
        join is not None and join.is_a("Concat") and 2 <= len(join.operands) <= most and _split_points(op) is not None
    )


def _split_points(op: Op) -> tuple[int, list[int]] | None:
    """Axis of the weights that is summed with the concatenated one, and where each operand of the Concat ends on it."""
    join = _join(op)
    weight, shape = op.operands[1].tensor, join.result.shape
    if join.graph is not op.graph or not join.result.single_use or shape is None or not shape:
        return None
    if weight is None or not op.operands[1].single_use or DType(weight.dtype) not in _FLOATS:
        return None
    axis, layout = int(join.attrs["axis"]) % len(shape), weight_layout(op)
    if layout is None:
        return None
    along = layout.input_axis
    match op.op_type:
        case "Conv":
            fits = axis == 1 and layout.groups == 1
        case "Gemm":
            fits = axis == 1 and layout.data_axis == -1
        case _:
            fits = axis == len(shape) - 1
    known = [v.shape for v in join.operands]
    reach = [0]
    for part in known:
        extent = part[axis] if part is not None else None
        if not isinstance(extent, int) or extent == 0:
            return None
        reach.append(reach[-1] + extent)
    if op.op_type == "Conv" and reach[-1] % BLOCK == 0 and any(r % BLOCK for r in reach):
        return None
    return (along, reach) if fits and reach[-1] == weight.shape.numpy()[along] else None


def _saves(op: Op, dims: Mapping[str, int]) -> bool:
    """True if three results (two to add and their sum) need less than what is joined, twice."""
    sizes = [value_bytes(v, dims) for v in (*_join(op).operands, op.result)]
    known = [s for s in sizes if s is not None]
    return len(known) == len(sizes) and 3 * known[-1] <= 2 * sum(known[:-1])


def _split(op: Op | None, *, trial: bool = False) -> None:
    """Put the sum in the place of a product; on trial its weights stand for their shapes, and take no memory."""
    assert op is not None
    assert op.graph is not None
    assert op.operands[1].tensor is not None
    join, places = _join(op), _split_points(op)
    assert places is not None
    axis, reach = places
    weight = op.operands[1].tensor.numpy()
    b = Builder(op.graph, before=op, loc=op.loc.union(join.loc, rule="split-sums"))
    total: Value | None = None
    for index, operand in enumerate(join.operands):
        part = weight[(slice(None),) * axis + (slice(reach[index], reach[index + 1]),)]
        cut = np.broadcast_to(part.dtype.type(0), part.shape) if trial else np.ascontiguousarray(part)
        operands, attrs = [operand, b.const(cut, op.operands[1].name)], dict(op.attrs)
        if total is None:
            operands += op.operands[2:]
        elif op.op_type == "Gemm":
            operands, attrs = [*operands, total], {**attrs, "beta": 1.0}
        made = b.op(op.op_type, operands, attrs, type=op.result.type)
        made.name = op.name if index == 0 else f"{op.name}_{index}" if op.name else ""
        plain = total is None or op.op_type == "Gemm"
        total = made.result if plain else b.op("Add", [total, made.result], type=op.result.type).result
    assert total is not None
    whole = op.operands[1].op
    op.replace_by(total)
    join.erase()
    if whole is not None and not whole.result.has_uses:
        whole.erase()  # its parts are there now
