"""Reductions, extremes and where they are, running sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import (
    SUMMED,
    WHOLE,
    Along,
    Axis,
    Join,
    accumulated,
    axis_of_result,
    dtype_of,
    everywhere,
    extents,
)
from memoptc.ir.ops.definition import Family, Operator, also, define
from memoptc.ir.ops.normalization import all_but_axis
from memoptc.ir.ops.parameters import Setting
from memoptc.ir.ops.sample import Rng, Sample, axis_of, floats
from memoptc.ir.ops.sample import extents as drawn_extents
from memoptc.ir.ops.schema import MICROSOFT, default_of, opset_of, since
from memoptc.ir.tensors import ints


def reduced_axes(op: Op) -> set[int] | None:
    """The axes that a reduction reduces, `None` where they are not known, or it does nothing."""
    rank = len(extents(op, 0))
    if not rank:
        return None
    axes: tuple[int, ...] | None = op.attrs.get("axes")
    if axes is None:
        operand = op.input(1)
        if operand is not None:
            axes = ints(operand.tensor) if operand.tensor is not None else None
            if axes is None:
                return None
    if not axes and op.attrs.get("noop_with_empty_axes"):
        return None
    if op.op_type in ("ArgMax", "ArgMin"):
        axes = (int(op.attrs.get("axis", 0)),)
    return {a % rank for a in axes} if axes else set(range(rank))


def _reduce(op: Op) -> list[Axis]:
    gone = reduced_axes(op)
    if gone is None:
        return []
    keep = bool(op.attrs.get("keepdims", 1))
    kept = [i for i in range(len(extents(op, 0))) if i not in gone]
    return [axis_of_result(op, i if keep else kept.index(i), (0, Along(i)), reorders=True) for i in kept]


def _cum_sum(op: Op) -> list[Axis]:
    axis, rank = op.input(1), len(extents(op, 0))
    known = ints(axis.tensor) if axis is not None and axis.tensor is not None else None
    return [everywhere(op, i) for i in range(rank) if i != known[0] % rank] if known and rank else []


_JOINS = {
    **dict.fromkeys("ReduceL1 ReduceL2 ReduceLogSum ReduceSum ReduceSumSquare".split(), Join.SUM),
    "ReduceMean": Join.MEAN,
    "ReduceLogSumExp": Join.REAPPLY,
    "ReduceProd": Join.PRODUCT,
    "ReduceMax": Join.LARGEST,
    "ReduceMin": Join.LEAST,
}


def _may_be_empty(op: Op) -> bool:
    """True if there may be nothing to reduce: parts of what onnxruntime gives then do not fit together."""
    return any(not isinstance(d, int) or not d for d in extents(op, 0))


def _reduce_terms(op: Op) -> list[Axis]:
    gone, join = reduced_axes(op), _JOINS[op.op_type]
    fractions = join is Join.MEAN or op.op_type in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
    if gone is None or _may_be_empty(op) or dtype_of(op, 0) not in (SUMMED if fractions else (*SUMMED, *WHOLE)):
        return []
    if join in (Join.LARGEST, Join.LEAST) and dtype_of(op, 0) in WHOLE and not since(op, 12):
        return []  # Max and Min took no integers
    return [accumulated(op, join, (0, axis)) for axis in sorted(gone)]


def _place_terms(op: Op) -> list[Axis]:
    gone = reduced_axes(op)
    recent = op.graph is not None and (opset_of(op.graph) or 13) >= 13
    if gone is None or _may_be_empty(op) or not recent or dtype_of(op, 0) not in (*SUMMED, *WHOLE):
        return []
    return [accumulated(op, Join.PLACE, (0, axis)) for axis in gone]


def _top_terms(op: Op) -> list[Axis]:
    rank = len(extents(op, 0))
    count = op.input(1)
    recent = op.graph is not None and (opset_of(op.graph) or 13) >= 11
    known = count is not None and count.tensor is not None
    if not rank or _may_be_empty(op) or not recent or not known or not op.attrs.get("sorted", 1):
        return []
    if dtype_of(op, 0) not in (*SUMMED, *WHOLE):
        return []
    axis = int(default_of(op, "axis") if default_of(op, "axis") is not None else -1) % rank
    return [accumulated(op, Join.TOP, (0, axis))]


def _reduce_sample(r: Rng) -> Sample:
    """Positive numbers, whose logarithms exist, along some axes."""
    rank = int(r.integers(1, 5))
    x = np.asarray(0.1 + np.abs(floats(r, *drawn_extents(r, rank, rank))), np.float32)
    axes = np.asarray(r.choice(rank, int(r.integers(1, rank + 1)), replace=False), np.int64)
    return Sample((x, axes), {"keepdims": int(r.integers(2))}, frozenset({1}))


def _arg_sample(r: Rng) -> Sample:
    x = floats(r, *drawn_extents(r, 1, 4))
    return Sample((x,), {"axis": axis_of(r, x.ndim), "keepdims": int(r.integers(2))})


def _top_sample(r: Rng) -> Sample:
    x = floats(r, *drawn_extents(r, 1, 4))
    axis = axis_of(r, x.ndim)
    count = np.asarray([r.integers(1, x.shape[axis] + 1)], np.int64)
    return Sample((x, count), {"axis": axis, "largest": int(r.integers(2))}, frozenset({1}), 2)


def _cum_sum_sample(r: Rng) -> Sample:
    x = floats(r, *drawn_extents(r, 1, 4))
    flags = {"exclusive": int(r.integers(2)), "reverse": int(r.integers(2))}
    return Sample((x, np.asarray(axis_of(r, x.ndim), np.int64)), flags, frozenset({1}))


_SUMS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
_FACTS: dict[str, Any] = {"family": Family.REDUCTION}

OPERATORS: tuple[Operator, ...] = (
    *define(_SUMS, space=_reduce, accumulates=_reduce_terms, sample=_reduce_sample, **_FACTS),
    *define("ArgMax ArgMin", space=_reduce, accumulates=_place_terms, sample=_arg_sample, **_FACTS),
    *define("TopK", space=all_but_axis, accumulates=_top_terms, sample=_top_sample),
    *define("CumSum", space=_cum_sum, sample=_cum_sum_sample),
    *define("CumProd NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"),
    *define("ReduceSumInteger", MICROSOFT, **_FACTS),
)
OPERATORS = also(OPERATORS, "TopK", ort_forgets_symbols=True)
OPERATORS = also(OPERATORS, _SUMS, parameters={1: Setting((-1, -2, -3, -4))})
OPERATORS = also(OPERATORS, "CumSum", parameters={1: Setting((0,))})
OPERATORS = also(OPERATORS, "TopK", parameters={1: Setting((1,))})
