"""split-outliers: channels of extreme range leave the products that will be coded, and are computed beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.not_finite import has_infinite_weight
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.sites import shape_of
from memoptc.passes.precision._quantize.matrix import as_weight_of, replace_constant, rows_of
from memoptc.passes.precision._quantize.observe import observe
from memoptc.report.model import Decision
from memoptc.runtime.channels import Channels, channel_statistics

SUFFIX = "_outliers"
"""How names of the products end that are to stay in float."""


class SplitOutliers(Pass):
    """Write `x W` as `(x mask) W + x[outliers] W[outliers]`, so that the first product can be coded finely.

    Outliers are the fewest channels without which the range of x falls to a part. Their products stay in float32
    (Dettmers et al., "LLM.int8()", 2022, with channels that calibration data shows instead of the run's own). The sum
    is that of the original up to its order. For tensors whose channels have constants before them, `smooth` costs
    nothing at run time and comes first. Needs calibration data.

    Args:
        least: How much narrower the range must get.
        most: Largest part of the channels that may leave.
    """

    least: float = 4.0
    most: float = 0.0625

    def run(self, graph: Graph, context: Context) -> None:
        """Split products of the top graph."""
        if context.calibration is None:
            context.stats["left: no calibration data"] += 1
            return
        found = _readers(graph)

        def look(path: Path, names: dict[str, Value]) -> dict[str, Channels]:
            return channel_statistics(path, dict.fromkeys(names, -1), context.calibration, infinite={})

        split = 0
        for value, seen in observe(graph, found, context, look).items():
            reach = np.maximum(np.abs(seen.low), np.abs(seen.high))
            outliers = self._outliers(reach)
            if len(outliers) == 0:
                context.stats["left: no outliers"] += 1
                continue
            _split(graph, value, found[value], outliers)
            split += len(outliers)
            context.stats["moved outliers"] += len(found[value])
        if split:
            products = context.stats["moved outliers"]
            what = f"{split} channels before {products} products are computed in float32 beside them"
            why = f"without them the ranges of these activations are at most 1/{self.least:g}"
            context.decisions.append(Decision(self.name, what, why))

    def _outliers(self, reach: np.ndarray) -> np.ndarray:
        """Indices of the fewest channels that must go, sorted; none when they are too many."""
        largest = float(reach.max())
        found = np.flatnonzero(reach * self.least > largest)
        return found if 0 < largest and len(found) <= self.most * len(reach) else found[:0]


def names_of_split(graph: Graph) -> frozenset[str]:
    """Names of products that are to stay in float."""
    return frozenset(op.name for op in graph.ops if op.op_type == "MatMul" and op.name.endswith(SUFFIX))


def _readers(graph: Graph) -> dict[Value, list[Op]]:
    """Products with constant weights of their own, by what they read."""
    found: dict[Value, list[Op]] = {}
    for op in graph.walk("MatMul", "Gemm", nested=False):
        weight, shape = op.input(1), shape_of(op.operand)
        if weight is None or weight.tensor is None or not weight.single_use or weight.tensor.dtype != DType.FLOAT:
            continue
        if shape is None or len(shape) < 2 or not isinstance(shape[-1], int) or op.operand.tensor is not None:
            continue
        if has_infinite_weight(op):
            continue
        if len(weight.tensor.shape) == 2 and not op.attrs.get("transA", 0) and not op.name.endswith(SUFFIX):
            if op.attrs.get("alpha", 1.0) == 1.0:
                found.setdefault(op.operand, []).append(op)
    return found


def _split(graph: Graph, value: Value, readers: list[Op], outliers: np.ndarray) -> None:
    first = readers[0]
    type_ = value.tensor_type
    assert type_ is not None
    assert type_.shape is not None
    few = type_.with_shape((*type_.shape[:-1], len(outliers)))
    mask = np.ones(rows_of(first).shape[1], np.float32)
    mask[outliers] = 0.0
    builder = Builder(graph, before=first, loc=first.loc.union(rule="split-outliers"))
    # Not a Gather of all others: it copies number by number, and took longer than the products of a small encoder.
    kept = builder.const(mask, f"{value.name}_mask")
    main = builder.op("Mul", [value, kept], type=value.type, name=f"{value.name}_rest").result
    places = builder.const(outliers.astype(np.int64), f"{value.name}_places")
    extreme = builder.op("Gather", [value, places], {"axis": -1}, type=few, name=f"{value.name}_outliers").result
    for op in readers:
        rows, name = rows_of(op), op.operands[1].name
        op.set_operand(0, main)
        replace_constant(graph, op, 1, as_weight_of(op, rows * mask), "split-outliers")
        after = Builder(graph, before=op.next, loc=op.loc.union(rule="split-outliers"))
        weight = after.const(np.ascontiguousarray(rows[:, outliers].T).astype(np.float32), f"{name}_outliers")
        beside = after.op("MatMul", [extreme, weight], type=op.result.type)
        beside.name = f"{op.name or op.result.name}{SUFFIX}"
        users = op.result.uses
        total = after.op("Add", [op.result, beside.result], type=op.result.type)
        for user, index in users:
            user.set_operand(index, total.result)
        total.result.name, op.result.name = op.result.name, total.result.name
