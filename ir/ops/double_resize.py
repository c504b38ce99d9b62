"""Resizing in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.ops.double import NoDouble, OpBuilder, add_all, f64, i64, rank_of, text_attr
from memoptc.ir.types import DType


def resize(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Resize, nearest or linear."""
    mode = text_attr(op, "mode", "nearest")
    if mode == "nearest":
        return [_resize_nearest(b, op)]
    where = text_attr(op, "coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")
    stretched = text_attr(op, "keep_aspect_ratio_policy", "stretch") == "stretch"
    if mode != "linear" or where not in known or op.attrs.get("antialias") or not stretched:
        raise NoDouble(f"Resize {op.name!r} in mode {mode}, {where}")
    return [_resize_linear(b, op, where)]


def _resize_nearest(b: OpBuilder, op: Op) -> Value:
    """Nearest only copies: exact when a float64 is sent through as three float32 that add up to it."""
    rest = op.operand
    parts = []
    for _ in range(3):
        narrow = b.Cast(rest, to=int(DType.FLOAT))
        again = b.op(op.op_type, [narrow, *op.operands[1:]], dict(op.attrs)).result
        parts.append(b.Cast(again, to=int(DType.DOUBLE)))
        rest = b.Sub(rest, b.Cast(narrow, to=int(DType.DOUBLE)))
    return add_all(b, parts[::-1])


def _resize_linear(b: OpBuilder, op: Op, where: str) -> Value:
    """Interpolate axis by axis between the two neighbours of each output's place in the input."""
    x = op.operand
    rank = rank_of(x, op)
    axes = [axis % rank for axis in op.attrs.get("axes", range(rank))]
    scales, sizes = op.input(2), op.input(3)
    whole = b.Cast(b.Shape(x), to=int(DType.DOUBLE))
    for index, axis in enumerate(axes):
        extent = b.Gather(whole, np.asarray(axis, np.int64), axis=0)
        at = np.asarray(index, np.int64)
        if sizes is not None:
            out = b.Cast(b.Gather(sizes, at, axis=0), to=int(DType.DOUBLE))
            scale = b.Div(out, extent)
        else:
            scale = b.Cast(b.Gather(scales, at, axis=0), to=int(DType.DOUBLE))
            out = b.Floor(b.Mul(extent, scale))
        step = b.Range(f64(0.0), out, f64(1.0))
        if where == "align_corners":
            place = b.Mul(step, b.Div(b.Sub(extent, f64(1.0)), b.Max(b.Sub(out, f64(1.0)), f64(1.0))))
        elif where == "tf_crop_and_resize":
            place = _cropped(b, op, (index, index + len(axes)), extent, out)
        elif where == "asymmetric":
            place = b.Div(step, scale)
        else:
            place = b.Sub(b.Div(b.Add(step, f64(0.5)), scale), f64(0.5))
            if where == "pytorch_half_pixel":
                place = b.Where(b.Greater(out, f64(1.0)), place, f64(0.0))
        last = b.Sub(extent, f64(1.0))
        outside = b.Or(b.Less(place, f64(0.0)), b.Greater(place, last)) if where == "tf_crop_and_resize" else None
        place = b.Max(b.Min(place, last), f64(0.0))
        low = b.Floor(place)
        high = b.Min(b.Add(low, f64(1.0)), last)
        column = i64(-1, *[1] * (rank - 1 - axis))
        weight = b.Reshape(b.Sub(place, low), column)
        first, second = (b.Gather(x, b.Cast(index_, to=int(DType.INT64)), axis=axis) for index_ in (low, high))
        x = b.Add(b.Mul(first, b.Sub(f64(1.0), weight)), b.Mul(second, weight))
        if outside is not None:
            x = b.Where(b.Reshape(outside, column), f64(float(op.attrs.get("extrapolation_value", 0.0))), x)
    return x


def _cropped(b: OpBuilder, op: Op, ends: tuple[int, int], extent: Value, out: Value) -> Value:
    """Places of tf_crop_and_resize along one axis: from one share of the operand's length to another."""
    begin, end = (b.Cast(b.Gather(op.operands[1], np.asarray(i, np.int64), axis=0), to=int(DType.DOUBLE)) for i in ends)
    last = b.Sub(extent, f64(1.0))
    step = b.Range(f64(0.0), out, f64(1.0))
    many = b.Mul(b.Sub(end, begin), b.Div(b.Mul(step, last), b.Max(b.Sub(out, f64(1.0)), f64(1.0))))
    alone = b.Mul(b.Mul(b.Add(begin, end), f64(0.5)), last)
    place: Value = b.Where(b.Greater(out, f64(1.0)), b.Add(b.Mul(begin, last), many), alone)
    return place
