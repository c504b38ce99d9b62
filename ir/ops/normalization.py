"""Normalizations and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import same
from memoptc.ir.ops.axis import Along, Axis, axis_of_result, everywhere, extents, shape
from memoptc.ir.ops.definition import Family, Operator, also, define
from memoptc.ir.ops.double import OpBuilder, f64, i64, rank_of, reduced
from memoptc.ir.ops.parameters import Index
from memoptc.ir.ops.sample import Rng, Sample, axis_of, floats
from memoptc.ir.ops.sample import extents as drawn_extents
from memoptc.ir.ops.schema import MICROSOFT, default_of, opset_of
from memoptc.ir.ops.sizes import FLOAT, Sizes


def _softmax(op: Op) -> list[Axis]:
    whole = shape(op.results[0]) or ()
    rank = len(whole)
    axis = int(default_of(op, "axis") or 0)
    axis = axis % rank if rank else 0
    recent = op.domain or op.graph is None or (opset_of(op.graph) or 13) >= 13
    return [everywhere(op, i) for i in range(rank) if (i != axis if recent else i < axis)]


def _layer_norm(op: Op) -> list[Axis]:
    rank = len(extents(op, 0))
    axis = int(op.attrs.get("axis", -1)) % rank if rank else 0
    # Scale and bias may have leading axes of their own in principle; those that do are left alone.
    if any(len(extents(op, i)) > rank - axis for i in range(1, len(op.operands))):
        return []
    return [everywhere(op, i) for i in range(axis)]


def _skip_layer_norm(op: Op) -> list[Axis]:
    x = extents(op, 0)
    skip = extents(op, 1)
    if len(x) < 2 or len(skip) != len(x) or any(not same(a, b) for a, b in zip(x, skip, strict=True)):
        return []
    if any(r.has_uses for r in op.results[1:3]):
        return []
    found = []
    for axis in range(len(x) - 1):
        cut = tuple(Along(axis) if i < 2 else None for i in range(len(op.operands)))
        found.append(Axis(tuple(axis if i in (0, 3) else None for i in range(len(op.results))), cut))
    return found


def _instance_norm(op: Op) -> list[Axis]:
    batches = axis_of_result(op, 0, (0, Along(0)), reorders=True)
    return [batches, axis_of_result(op, 1, (0, Along(1)), (1, Along(0)), (2, Along(0)), reorders=True)]


def _batch_norm(op: Op) -> list[Axis]:
    if op.attrs.get("training_mode") or any(r.has_uses for r in op.results[1:]) or op.attrs.get("spatial") == 0:
        return []
    channels = [(i, Along(0)) for i in range(1, len(op.operands))]
    return [
        axis_of_result(op, axis, (0, Along(axis)), *(channels if axis == 1 else ()))
        for axis in range(len(extents(op, 0)))
    ]


def _batch_only(op: Op) -> list[Axis]:
    return [axis_of_result(op, 0, (0, Along(0)), reorders=True)] if len(op.results) == 1 and extents(op, 0) else []


def _all_but_channels(op: Op) -> list[Axis]:
    return [axis_of_result(op, i, (0, Along(i)), reorders=True) for i in range(len(extents(op, 0))) if i != 1]


def all_but_axis(op: Op) -> list[Axis]:
    """Every axis but the one that the attribute `axis` names."""
    rank = len(extents(op, 0))
    axis = int(default_of(op, "axis") if default_of(op, "axis") is not None else -1) % rank if rank else 0
    return [everywhere(op, i) for i in range(rank) if i != axis]


def _along_inner_axis(s: Sizes) -> int:
    """An axis that is not the last one is moved there, and back (math/softmax.cc, opset 13)."""
    rank = len(s.result)
    axis = int(s.op.attrs.get("axis", -1)) % max(rank, 1)
    recent = s.op.graph is not None and (opset_of(s.op.graph) or 0) >= 13
    return 2 * s.result_bytes if rank and axis != rank - 1 and recent else 0


def _response(s: Sizes) -> int:
    """Scales of all, squares of one image with a margin of channels (nn/lrn.cc)."""
    shape = s.result
    return s.result_bytes + FLOAT * (shape[1] + int(s.op.attrs["size"]) - 1) * prod(shape[2:])


def _two_results(s: Sizes) -> int:
    return 2 * s.result_bytes


def _instance_norm_double(b: OpBuilder, op: Op) -> Sequence[Value]:
    x, scale, shift = op.operands
    rank = rank_of(x, op)
    column = i64(1, -1, *[1] * (rank - 2))
    centred = b.Sub(x, reduced(b, "ReduceMean", x, range(2, rank)))
    variance = reduced(b, "ReduceMean", b.Mul(centred, centred), range(2, rank))
    unit = b.Div(centred, b.Sqrt(b.Add(variance, f64(op.attrs.get("epsilon", 1e-5)))))
    return [b.Add(b.Mul(unit, b.Reshape(scale, column)), b.Reshape(shift, column))]


def _along_axis_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    return Sample((floats(r, *shape),), {"axis": axis_of(r, len(shape))})


def _layer_norm_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    axis = axis_of(r, len(shape))
    return Sample((floats(r, *shape), *(floats(r, *shape[axis:]) for _ in range(2))), {"axis": axis}, frozenset({1, 2}))


def _rms_norm_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 1, 4)
    axis = axis_of(r, len(shape))
    return Sample((floats(r, *shape), floats(r, *shape[axis:])), {"axis": axis}, frozenset({1}), opset=23)


def _instance_norm_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 3, 4)
    return Sample((floats(r, *shape), *(floats(r, shape[1]) for _ in range(2))), weights=frozenset({1, 2}))


def _batch_norm_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 2, 4)
    vectors = [np.asarray(0.1 + r.random(shape[1]), np.float32) for _ in range(4)]
    return Sample((floats(r, *shape), *vectors), weights=frozenset({1, 2, 3, 4}))


_NORM: dict[str, Any] = {"family": Family.NORMALIZATION}

OPERATORS: tuple[Operator, ...] = (
    *define(
        "Softmax LogSoftmax",
        space=_softmax,
        in_place=(0,),
        workspace=_along_inner_axis,
        sample=_along_axis_sample,
        **_NORM,
    ),
    *define(
        "Hardmax", space=_softmax, stays_float32=True, workspace=_along_inner_axis, sample=_along_axis_sample, **_NORM
    ),
    *define("LayerNormalization", space=_layer_norm, affine=(1, 2), sample=_layer_norm_sample, **_NORM),
    *define("RMSNormalization", space=_layer_norm, affine=(1,), sample=_rms_norm_sample, **_NORM),
    # onnxruntime's, in the standard domain
    *define("SimplifiedLayerNormalization", space=_layer_norm, affine=(1,), **_NORM),
    *define(
        "InstanceNormalization",
        space=_instance_norm,
        affine=(1, 2),
        affine_axis=1,
        double=_instance_norm_double,
        sample=_instance_norm_sample,
        **_NORM,
    ),
    *define("BatchNormalization", space=_batch_norm, affine=(1, 2), affine_axis=1, sample=_batch_norm_sample, **_NORM),
    *define("GroupNormalization", space=_batch_only, workspace=_two_results, **_NORM),
    *define("LRN", space=_all_but_channels, workspace=_response, **_NORM),
    *define("LpNormalization", space=all_but_axis, sample=_along_axis_sample, **_NORM),
    *define("MeanVarianceNormalization", workspace=_two_results, **_NORM),
    *define("SkipLayerNormalization", MICROSOFT, space=_skip_layer_norm, affine=(2, 3), **_NORM),
    *define("SkipSimplifiedLayerNormalization", MICROSOFT, space=_skip_layer_norm, affine=(2,), **_NORM),
    *define(
        "BiasSoftmax EmbedLayerNormalization GroupNorm LayerNormalization QEmbedLayerNormalization "
        "SimplifiedLayerNormalization SkipGroupNorm",
        MICROSOFT,
        **_NORM,
    ),
)
OPERATORS = also(OPERATORS, "LayerNormalization RMSNormalization", float32_statistics=True)
OPERATORS = also(OPERATORS, "LayerNormalization", optional_results=True)
OPERATORS = also(OPERATORS, "Softmax", arithmetic=4.5)
OPERATORS = also(OPERATORS, "EmbedLayerNormalization", MICROSOFT, parameters={0: Index(2), 1: Index(4), 8: Index(3)})
