"""Functions of one number in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Op, Value
from memoptc.ir.ops.double import Lowering, OpBuilder, f64, text_attr
from memoptc.ir.types import DType


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


def erf_of(b: OpBuilder, x: Value) -> Value:
    """The error function, exact to about 1e-14."""
    z = b.Min(b.Abs(x), f64(6.0))
    u = b.Div(b.Sub(b.Div(f64(2.0), b.Add(z, f64(2.0))), f64(0.625)), f64(0.375))
    coefficients = _erf_polynomial()
    total: Value = b.Add(b.Mul(u, f64(coefficients[-1])), f64(coefficients[-2]))
    for coefficient in coefficients[-3::-1]:
        total = b.Add(b.Mul(total, u), f64(coefficient))
    result: Value = b.Mul(b.Sign(x), b.Sub(f64(1.0), b.Mul(total, b.Exp(b.Neg(b.Mul(z, z))))))
    return result


def gelu(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Gelu, exact or by tanh."""
    x = op.operand
    if text_attr(op, "approximate", "none") == "tanh":
        cubic = b.Add(x, b.Mul(b.Mul(b.Mul(x, x), x), f64(0.044715)))
        inner = b.Tanh(b.Mul(cubic, f64(math.sqrt(2 / math.pi))))
    else:
        inner = erf_of(b, b.Mul(x, f64(math.sqrt(0.5))))
    return [b.Mul(b.Mul(x, f64(0.5)), b.Add(inner, f64(1.0)))]


def softplus_of(b: OpBuilder, x: Value) -> Value:
    """log(1 + exp(x)), without overflow."""
    tail = b.Log(b.Add(b.Exp(b.Neg(b.Abs(x))), f64(1.0)))
    result: Value = b.Add(b.Max(x, f64(0.0)), tail)
    return result


def rectifier(negative: Callable[[OpBuilder, Op, Value], Value], gain: str = "") -> Lowering:
    """x for x > 0, else `negative(x)`, all times the attribute `gain`."""

    def lowering(b: OpBuilder, op: Op) -> Sequence[Value]:
        x = op.operand
        y = b.Add(b.Max(x, f64(0.0)), negative(b, op, b.Min(x, f64(0.0))))
        return [b.Mul(y, f64(op.attrs.get(gain, 1.0507009873554805))) if gain else y]

    return lowering


def exponential(default: float) -> Callable[[OpBuilder, Op, Value], Value]:
    """alpha (exp(x) - 1), the negative side of Elu and Selu; `default` is alpha where it is not set."""

    def negative(b: OpBuilder, op: Op, low: Value) -> Value:
        result: Value = b.Mul(b.Sub(b.Exp(low), f64(1.0)), f64(op.attrs.get("alpha", default)))
        return result

    return negative


def hard_sigmoid_of(b: OpBuilder, x: Value, alpha: float, beta: float) -> Value:
    """alpha x + beta, cut to [0, 1]."""
    line = b.Add(b.Mul(x, f64(alpha)), f64(beta))
    result: Value = b.Max(b.Min(line, f64(1.0)), f64(0.0))
    return result


def erf(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Erf."""
    return [erf_of(b, op.operand)]


def softplus(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Softplus."""
    return [softplus_of(b, op.operand)]


def softsign(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Softsign."""
    return [b.Div(op.operand, b.Add(b.Abs(op.operand), f64(1.0)))]


def mish(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Mish."""
    return [b.Mul(op.operand, b.Tanh(softplus_of(b, op.operand)))]


def quick_gelu(b: OpBuilder, op: Op) -> Sequence[Value]:
    """x times the sigmoid of alpha x."""
    return [b.Mul(op.operand, b.Sigmoid(b.Mul(op.operand, f64(op.attrs.get("alpha", 1.702)))))]


def hard_sigmoid(b: OpBuilder, op: Op) -> Sequence[Value]:
    """HardSigmoid."""
    return [hard_sigmoid_of(b, op.operand, op.attrs.get("alpha", 0.2), op.attrs.get("beta", 0.5))]


def hard_swish(b: OpBuilder, op: Op) -> Sequence[Value]:
    """HardSwish."""
    return [b.Mul(op.operand, hard_sigmoid_of(b, op.operand, 1 / 6, 0.5))]


leaky_relu = rectifier(lambda b, op, low: b.Mul(low, f64(op.attrs.get("alpha", 0.01))))
prelu = rectifier(lambda b, op, low: b.Mul(low, op.operands[1]))
elu = rectifier(exponential(1.0))
selu = rectifier(exponential(1.6732632423543772), "gamma")


# -- trigonometry -------------------------------------------------------------------------------------


def atan_of(b: OpBuilder, x: Value) -> Value:
    """The float32 kernel's arc tangent, and two steps of Newton's method for tan(y) = x, each doubling the digits."""
    y: Value = b.Cast(b.Atan(b.Cast(x, to=int(DType.FLOAT))), to=int(DType.DOUBLE))
    for _ in range(2):
        cos = b.Cos(y)
        y = b.Sub(y, b.Mul(b.Sub(b.Sin(y), b.Mul(x, cos)), cos))
    return y


def asin_of(b: OpBuilder, x: Value) -> Value:
    """2 atan(x / (1 + sqrt(1 - x^2)))."""
    root = b.Sqrt(b.Sub(f64(1.0), b.Mul(x, x)))
    result: Value = b.Mul(atan_of(b, b.Div(x, b.Add(root, f64(1.0)))), f64(2.0))
    return result


def function(of: Callable[[OpBuilder, Value], Value]) -> Lowering:
    """Lower an operator that is a function of each number."""
    return lambda b, op: [of(b, op.operand)]


def _exponentials(b: OpBuilder, x: Value) -> tuple[Value, Value]:
    return b.Exp(x), b.Exp(b.Neg(x))


atan, asin = function(atan_of), function(asin_of)
acos = function(lambda b, x: b.Sub(f64(math.pi / 2), asin_of(b, x)))
tan = function(lambda b, x: b.Div(b.Sin(x), b.Cos(x)))
sinh = function(lambda b, x: b.Mul(b.Sub(*_exponentials(b, x)), f64(0.5)))
cosh = function(lambda b, x: b.Mul(b.Add(*_exponentials(b, x)), f64(0.5)))
asinh = function(lambda b, x: b.Mul(b.Sign(x), b.Log(b.Add(b.Abs(x), b.Sqrt(b.Add(b.Mul(x, x), f64(1.0)))))))
acosh = function(lambda b, x: b.Log(b.Add(x, b.Sqrt(b.Sub(b.Mul(x, x), f64(1.0))))))
atanh = function(lambda b, x: b.Mul(b.Log(b.Div(b.Add(x, f64(1.0)), b.Sub(f64(1.0), x))), f64(0.5)))


def celu(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Celu."""
    x, alpha = op.operand, f64(op.attrs.get("alpha", 1.0))
    low = b.Mul(b.Sub(b.Exp(b.Div(b.Min(x, f64(0.0)), alpha)), f64(1.0)), alpha)
    return [b.Add(b.Max(x, f64(0.0)), low)]


def thresholded_relu(b: OpBuilder, op: Op) -> Sequence[Value]:
    """ThresholdedRelu."""
    return [b.Where(b.Greater(op.operand, f64(op.attrs.get("alpha", 1.0))), op.operand, f64(0.0))]


def mean(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Mean."""
    return [b.Div(b.Sum(*op.operands), f64(float(len(op.operands))))]
