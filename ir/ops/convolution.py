"""Convolutions."""

from __future__ import annotations

from math import prod
from typing import Any

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import Along, Axis, Form, extents, given
from memoptc.ir.ops.definition import Family, IntegerKernel, Operator, ShapeOf, WeightLayout, define
from memoptc.ir.ops.schema import MICROSOFT
from memoptc.ir.ops.windows import spatial_axes, window_of

FILTERS = 16
"""Filters that kernels compute side by side: onnxruntime pads fewer to as many (NCHWc layout; 8 without AVX-512)."""


def _conv(op: Op) -> list[Axis]:
    if op.domain and len(op.operands) > 3:
        return []  # a fused sum: its fourth operand has the result's shape
    x, w = extents(op, 0), extents(op, 1)
    if len(x) < 3 or len(w) != len(x):
        return []
    return [given(op, 0, (0, Along(0))), *_filters(op, len(op.operands) > 2), *spatial_axes(op)]


def _filters(op: Op, biased: bool) -> list[Axis]:
    """Filters: all need the whole input, unless each channel is convolved by itself."""
    group = int(op.attrs.get("group", 1))
    cut = [(1, Along(0))] + ([(2, Along(0))] if biased and op.input(2) is not None else [])
    if group == 1:
        return [given(op, 1, *cut, grain=FILTERS, reorders=True)]
    return []


def _integer_conv(op: Op) -> list[Axis]:
    x = extents(op, 0)
    scalar = all(not extents(op, i) or extents(op, i) == (1,) for i in (2, 3))
    # What lies in the padding is the zero point, whichever piece it borders on.
    return [given(op, 0, (0, Along(0))), *spatial_axes(op)] if len(x) > 2 and scalar else []


def _transposed(op: Op) -> list[Axis]:
    x = extents(op, 0)
    if len(x) < 3 or op.attrs.get("output_shape") or int(op.attrs.get("group", 1)) != 1:
        return [given(op, 0, (0, Along(0)))] if x else []
    found = [given(op, 0, (0, Along(0)))]
    for spatial in range(len(x) - 2):
        window = window_of(op, spatial)
        mode = op.attrs.get("auto_pad", "NOTSET")
        if window is None or mode not in ("NOTSET", b"NOTSET", "VALID", b"VALID"):
            continue
        size, stride, dilation, before, _ = window
        reach = (size - 1) * dilation
        # Result p gets input i from tap p + before - i * stride in [0, reach].
        along = Along(2 + spatial, 1, stride, before - reach + stride - 1, before)
        found.append(given(op, 2 + spatial, (0, along), form=Form.TRANSPOSED, reorders=True))
    return found


def _layout(op: Op) -> WeightLayout | None:
    rank = len(extents(op, 1))
    if rank < 3 or (op.domain and len(op.operands) > 3):
        return None
    output, summed = (1, 0) if op.op_type == "ConvTranspose" else (0, 1)
    return WeightLayout(
        1,
        output,
        summed,
        data_axis=1,
        result_axis=1,
        bias=2,
        groups=int(op.attrs.get("group", 1)),
        taps=tuple(range(2, rank)),
    )


def _multiplications(op: Op, shape_of: ShapeOf) -> float:
    weight = shape_of(op.operands[3 if op.op_type == "QLinearConv" else 1])
    return prod(shape_of(op.results[0])) * prod(weight[1:])


def _transposed_multiplications(op: Op, shape_of: ShapeOf) -> float:
    return prod(shape_of(op.operands[0])) * prod(shape_of(op.operands[1])[1:])


_FACTS: dict[str, Any] = {"family": Family.CONVOLUTION, "packs_weights": True}

OPERATORS: tuple[Operator, ...] = (
    *define(
        "Conv",
        space=_conv,
        layout=_layout,
        multiplications=_multiplications,
        integer=IntegerKernel.ALL_OPERANDS,
        **_FACTS,
    ),
    *define("FusedConv", MICROSOFT, space=_conv, layout=_layout, multiplications=_multiplications, **_FACTS),
    *define("ConvTranspose", space=_transposed, layout=_layout, multiplications=_transposed_multiplications, **_FACTS),
    *define("ConvInteger", space=_integer_conv, multiplications=_multiplications, family=Family.CONVOLUTION),
    *define("QLinearConv", multiplications=_multiplications, family=Family.CONVOLUTION),
    *define("CausalConvWithState DeformConv"),
    *define("ConvTransposeWithDynamicPads NhwcConv NhwcFusedConv WordConvEmbedding", MICROSOFT),
)
