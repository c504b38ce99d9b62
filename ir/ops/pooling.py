"""Pools."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from memoptc.ir.core import Op, Value
from memoptc.ir.ops import double_windows
from memoptc.ir.ops.axis import SUMMED, Along, Axis, Join, accumulated, axis_of_result, dtype_of, extents
from memoptc.ir.ops.definition import Blocked, Family, IntegerKernel, Operator, also, define
from memoptc.ir.ops.double import Lowering, NoDouble, OpBuilder, rank_of, reduced
from memoptc.ir.ops.sample import Rng, Sample, floats
from memoptc.ir.ops.sample import extents as drawn_extents
from memoptc.ir.ops.schema import MICROSOFT
from memoptc.ir.ops.sizes import FLOAT, Sizes
from memoptc.ir.ops.windows import spatial_axes


def _pool(op: Op) -> list[Axis]:
    x = extents(op, 0)
    if len(x) < 3 or any(r.has_uses for r in op.results[1:]):
        return []
    if op.op_type == "MaxPool" and op.attrs.get("storage_order"):
        return []
    if op.op_type == "AveragePool" and op.attrs.get("ceil_mode") and op.attrs.get("count_include_pad"):
        return [axis_of_result(op, i, (0, Along(i))) for i in (0, 1)]
    return [*(axis_of_result(op, i, (0, Along(i))) for i in (0, 1)), *spatial_axes(op)]


def _global_pool(op: Op) -> list[Axis]:
    return [axis_of_result(op, i, (0, Along(i))) for i in (0, 1)]


def _global_terms(op: Op) -> list[Axis]:
    if dtype_of(op, 0) not in SUMMED:
        return []
    return [
        accumulated(op, Join.MEAN if op.op_type == "GlobalAveragePool" else Join.LARGEST, (0, axis))
        for axis in range(2, len(extents(op, 0)))
    ]


def _as_floats(s: Sizes) -> int:
    """The first operand as float (quantization/qlinear_pool.cc)."""
    return FLOAT * prod(s.operand(0))


_FACTS: dict[str, Any] = {"family": Family.POOL}


def _global_double(kind: str) -> Lowering:
    return lambda b, op: [reduced(b, kind, op.operand, range(2, rank_of(op.operand, op)))]


def _global_lp_double(b: OpBuilder, op: Op) -> Sequence[Value]:
    order = int(op.attrs.get("p", 2))
    if order not in (1, 2):
        raise NoDouble(f"GlobalLpPool {op.name!r} of order {order}")
    return [reduced(b, f"ReduceL{order}", op.operand, range(2, rank_of(op.operand, op)))]


def _pool_sample(r: Rng) -> Sample:
    image = [int(d) for d in r.integers(4, 9, int(r.integers(1, 3)))]
    kernel = [int(d) for d in r.integers(2, 4, len(image))]
    strides = [int(d) for d in r.integers(1, 3, len(image))]
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": [1] * 2 * len(image)}
    return Sample((floats(r, *(int(d) for d in r.integers(1, 4, 2)), *image),), attrs)


def _image_sample(r: Rng) -> Sample:
    return Sample((floats(r, *drawn_extents(r, 3, 4)),))


_CODES = IntegerKernel.FIRST_OPERAND

OPERATORS: tuple[Operator, ...] = (
    *define("MaxPool", space=_pool, sample=_pool_sample, homogeneous=True, integer=_CODES, **_FACTS),
    *define(
        "AveragePool",
        sample=_pool_sample,
        space=_pool,
        homogeneous=True,
        integer=_CODES,
        integer_workspace=_as_floats,
        double=double_windows.average_pool,
        **_FACTS,
    ),
    *define("LpPool", space=_global_pool, sample=_pool_sample, **_FACTS),
    *define(
        "GlobalAveragePool",
        sample=_image_sample,
        space=_global_pool,
        accumulates=_global_terms,
        homogeneous=True,
        integer=_CODES,
        integer_workspace=_as_floats,
        double=_global_double("ReduceMean"),
        **_FACTS,
    ),
    *define(
        "GlobalMaxPool",
        sample=_image_sample,
        space=_global_pool,
        accumulates=_global_terms,
        homogeneous=True,
        double=_global_double("ReduceMax"),
        **_FACTS,
    ),
    *define("GlobalLpPool", space=_global_pool, sample=_image_sample, double=_global_lp_double, **_FACTS),
    *define("MaxUnpool", **_FACTS),
    *define("MaxRoiPool RoiAlign", unchecked_ranks=True, **_FACTS),
    *define("NhwcMaxPool", MICROSOFT, **_FACTS),
    *define("QLinearAveragePool", MICROSOFT, workspace=_as_floats),
)
OPERATORS = also(OPERATORS, "AveragePool GlobalAveragePool GlobalMaxPool MaxPool", blocked=Blocked.ONE_RESULT)
OPERATORS = also(OPERATORS, "AveragePool LpPool MaxPool", ort_forgets_symbols=True)
OPERATORS = also(OPERATORS, "MaxPool", ort_passes_codes=True)
OPERATORS = also(OPERATORS, "QLinearAveragePool", MICROSOFT, on_codes=True)
OPERATORS = also(OPERATORS, "MaxUnpool", equal_extents=tuple(((0, axis), (1, axis)) for axis in range(5)))
OPERATORS = also(OPERATORS, "RoiAlign", equal_extents=(((1, 0), (2, 0)),))
