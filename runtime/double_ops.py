"""Operators that onnxruntime has no float64 kernel for, written with operators that have one.

Used only to obtain reference numbers: exactness counts, speed and node count do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.types import DType
from memoptc.runtime.double_base import Lowering, NoDouble, add_all, f64, i64, rank_of, text_attr
from memoptc.runtime.double_recurrent import recurrent
from memoptc.runtime.double_windows import average_pool, conv, conv_transpose


def lower(op: Op) -> bool:
    """Replace `op` where it needs it.

    Returns:
        Whether it was replaced.

    Raises:
        NoDouble: this form of the operator is not covered.
    """
    lowering = LOWERINGS.get(op.key)
    if lowering is None or not any(_is_double(r) for r in op.results):
        return False
    assert op.graph is not None
    for old, new in zip(op.results, lowering(Builder(op.graph, before=op), op), strict=False):
        if new is not None:
            new.type = new.type or old.type
            old.replace_by(new)
    op.erase()
    return True


def _is_double(value: Value) -> bool:
    return value.dtype == DType.DOUBLE


def _reduce(b: Builder, kind: str, x: Value, axes: Sequence[int]) -> Value:
    if (ops.opset_of(b.graph, "") or 0) >= 18:
        return b.op(kind, [x, i64(*axes)], {"keepdims": 1}).result
    return b.op(kind, [x], {"axes": tuple(axes), "keepdims": 1}).result


def _global_pool(kind: str) -> Lowering:
    return lambda b, op: [_reduce(b, kind, op.operand, range(2, rank_of(op.operand, op)))]


def _instance_norm(b: Builder, op: Op) -> Sequence[Value]:
    x, scale, shift = op.operands
    rank = rank_of(x, op)
    column = i64(1, -1, *[1] * (rank - 2))
    centred = b.Sub(x, _reduce(b, "ReduceMean", x, range(2, rank)))
    variance = _reduce(b, "ReduceMean", b.Mul(centred, centred), range(2, rank))
    unit = b.Div(centred, b.Sqrt(b.Add(variance, f64(op.attrs.get("epsilon", 1e-5)))))
    return [b.Add(b.Mul(unit, b.Reshape(scale, column)), b.Reshape(shift, column))]


# -- functions of one number --------------------------------------------------------------------------


def _erf_polynomial() -> npt.NDArray[np.float64]:
    """Coefficients, lowest first, of exp(z^2) erfc(z) for z in [0, 6] in u = (2 / (2 + z) - 5/8) / (3/8).

    The scaled complement is smooth in 2 / (2 + z) (Press et al., Numerical Recipes, 6.2.2); interpolated at
    Chebyshev points it is exact to about 1e-14. Beyond z = 6, erf(z) is 1 in float64.
    """

    u = np.cos(np.pi * (np.arange(27) + 0.5) / 27)
    z = 2 / (0.625 + 0.375 * u) - 2
    scaled = [math.erfc(v) * math.exp(v * v) for v in z.tolist()]
    series = np.polynomial.chebyshev.chebfit(u, scaled, 26)
    return np.asarray(np.polynomial.chebyshev.cheb2poly(series), np.float64)


def _erf_of(b: Builder, x: Value) -> Value:
    z = b.Min(b.Abs(x), f64(6.0))
    u = b.Div(b.Sub(b.Div(f64(2.0), b.Add(z, f64(2.0))), f64(0.625)), f64(0.375))
    coefficients = _erf_polynomial()
    total: Value = b.Add(b.Mul(u, f64(coefficients[-1])), f64(coefficients[-2]))
    for coefficient in coefficients[-3::-1]:
        total = b.Add(b.Mul(total, u), f64(coefficient))
    result: Value = b.Mul(b.Sign(x), b.Sub(f64(1.0), b.Mul(total, b.Exp(b.Neg(b.Mul(z, z))))))
    return result


def _gelu(b: Builder, op: Op) -> Sequence[Value]:
    x = op.operand
    if text_attr(op, "approximate", "none") == "tanh":
        cubic = b.Add(x, b.Mul(b.Mul(b.Mul(x, x), x), f64(0.044715)))
        inner = b.Tanh(b.Mul(cubic, f64(math.sqrt(2 / math.pi))))
    else:
        inner = _erf_of(b, b.Mul(x, f64(math.sqrt(0.5))))
    return [b.Mul(b.Mul(x, f64(0.5)), b.Add(inner, f64(1.0)))]


def _softplus_of(b: Builder, x: Value) -> Value:
    tail = b.Log(b.Add(b.Exp(b.Neg(b.Abs(x))), f64(1.0)))
    result: Value = b.Add(b.Max(x, f64(0.0)), tail)
    return result


def _rectifier(negative: Callable[[Builder, Op, Value], Value], gain: str = "") -> Lowering:
    """x for x > 0, else `negative(x)`, all times the attribute `gain`."""

    def lowering(b: Builder, op: Op) -> Sequence[Value]:
        x = op.operand
        y = b.Add(b.Max(x, f64(0.0)), negative(b, op, b.Min(x, f64(0.0))))
        return [b.Mul(y, f64(op.attrs.get(gain, 1.0507009873554805))) if gain else y]

    return lowering


def _bent(default: float) -> Callable[[Builder, Op, Value], Value]:
    def negative(b: Builder, op: Op, low: Value) -> Value:
        result: Value = b.Mul(b.Sub(b.Exp(low), f64(1.0)), f64(op.attrs.get("alpha", default)))
        return result

    return negative


def _hard_sigmoid_of(b: Builder, x: Value, alpha: float, beta: float) -> Value:
    line = b.Add(b.Mul(x, f64(alpha)), f64(beta))
    result: Value = b.Max(b.Min(line, f64(1.0)), f64(0.0))
    return result


def _resize(b: Builder, op: Op) -> Sequence[Value]:
    mode = text_attr(op, "mode", "nearest")
    if mode == "nearest":
        return [_resize_nearest(b, op)]
    where = text_attr(op, "coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    stretched = text_attr(op, "keep_aspect_ratio_policy", "stretch") == "stretch"
    if mode != "linear" or where not in known or op.attrs.get("antialias") or not stretched:
        raise NoDouble(f"Resize {op.name!r} in mode {mode}, {where}")
    return [_resize_linear(b, op, where)]


def _resize_nearest(b: Builder, op: Op) -> Value:
    """Nearest only copies: exact when a float64 is sent through as three float32 that add up to it."""
    rest = op.operand
    parts = []
    for _ in range(3):
        narrow = b.Cast(rest, to=int(DType.FLOAT))
        again = b.op(op.op_type, [narrow, *op.operands[1:]], dict(op.attrs)).result
        parts.append(b.Cast(again, to=int(DType.DOUBLE)))
        rest = b.Sub(rest, b.Cast(narrow, to=int(DType.DOUBLE)))
    return add_all(b, parts[::-1])


def _resize_linear(b: Builder, op: Op, where: str) -> Value:
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
        elif where == "asymmetric":
            place = b.Div(step, scale)
        else:
            place = b.Sub(b.Div(b.Add(step, f64(0.5)), scale), f64(0.5))
            if where == "pytorch_half_pixel":
                place = b.Where(b.Greater(out, f64(1.0)), place, f64(0.0))
        last = b.Sub(extent, f64(1.0))
        place = b.Max(b.Min(place, last), f64(0.0))
        low = b.Floor(place)
        high = b.Min(b.Add(low, f64(1.0)), last)
        column = i64(-1, *[1] * (rank - 1 - axis))
        weight = b.Reshape(b.Sub(place, low), column)
        first, second = (b.Gather(x, b.Cast(index_, to=int(DType.INT64)), axis=axis) for index_ in (low, high))
        x = b.Add(b.Mul(first, b.Sub(f64(1.0), weight)), b.Mul(second, weight))
    return x


LOWERINGS: dict[str, Lowering] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "AveragePool": average_pool,
    "GlobalAveragePool": _global_pool("ReduceMean"),
    "GlobalMaxPool": _global_pool("ReduceMax"),
    "InstanceNormalization": _instance_norm,
    "Erf": lambda b, op: [_erf_of(b, op.operand)],
    "Gelu": _gelu,
    "LeakyRelu": _rectifier(lambda b, op, low: b.Mul(low, f64(op.attrs.get("alpha", 0.01)))),
    "PRelu": _rectifier(lambda b, op, low: b.Mul(low, op.operands[1])),
    "Elu": _rectifier(_bent(1.0)),
    "Selu": _rectifier(_bent(1.6732632423543772), "gamma"),
    "Softplus": lambda b, op: [_softplus_of(b, op.operand)],
    "Softsign": lambda b, op: [b.Div(op.operand, b.Add(b.Abs(op.operand), f64(1.0)))],
    "Mish": lambda b, op: [b.Mul(op.operand, b.Tanh(_softplus_of(b, op.operand)))],
    "HardSigmoid": lambda b, op: [
        _hard_sigmoid_of(b, op.operand, op.attrs.get("alpha", 0.2), op.attrs.get("beta", 0.5))
    ],
    "HardSwish": lambda b, op: [b.Mul(op.operand, _hard_sigmoid_of(b, op.operand, 1 / 6, 0.5))],
    "Resize": _resize,
    "LSTM": recurrent,
    "GRU": recurrent,
}
