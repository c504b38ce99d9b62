"""Element-wise operators, and those that quantize."""

from __future__ import annotations

import numpy as np
from tileable import Maker, dims

from memoptc.ir.core import Value
from memoptc.ir.types import DType
from tileable_moves.registry import move, short, whole


@move("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Erf", "Exp", "LeakyRelu", "HardSigmoid", "Softplus", "Elu", "Gelu")
def unary(m: Maker, x: Value, name: str) -> Value | None:
    if name == "Exp":
        x = m.op("Tanh", x)
    return m.op(name, x)


@move("Floor", "Round", "Sign", jumps=True)
def steps(m: Maker, x: Value, name: str) -> Value | None:
    return m.op(name, x)


@move("Cast", jumps=True)
def cast(m: Maker, x: Value) -> Value | None:
    to = m.r.choice((DType.DOUBLE, DType.FLOAT16, DType.INT32))
    narrow = m.op("Cast", x, to=int(to))
    if to == DType.DOUBLE:
        # Of two casts in a row that lose nothing onnxruntime drops the second, also where a branch needs it.
        narrow = m.op("Neg", narrow)
    return m.op("Cast", narrow, to=int(DType.FLOAT))


@move("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")
def binary(m: Maker, x: Value, name: str) -> Value | None:
    other = m.like(x)
    if name == "Mul":
        other = m.op("Tanh", other)
    return m.op(name, *((other, x) if m.r.random() < 0.5 else (x, other)))


@move("PRelu")
def prelu(m: Maker, x: Value) -> Value | None:
    slope = m.like(x)
    return m.op("PRelu", x, slope)


@move("Where")
def where(m: Maker, x: Value) -> Value | None:
    own = [d if isinstance(d, int) and m.r.random() < 0.6 else 1 for d in dims(x)]
    test = m.b.const(np.asarray(m.rng.integers(0, 2, own[m.r.randint(0, len(own)) :]), np.bool_))
    return m.op("Where", test, *((x, m.like(x)) if m.r.random() < 0.5 else (m.like(x), x)))


@move("Less", jumps=True)
def less(m: Maker, x: Value) -> Value | None:
    return m.op("Cast", m.op("Less", x, m.array(*dims(x)[-1:]) if whole(*dims(x)[-1:]) else m.array()), to=1)


@move("Clip")
def clip(m: Maker, x: Value) -> Value | None:
    low = m.scalar(-0.7, np.float32) if m.r.random() < 0.7 else None
    return m.op("Clip", x, low, m.scalar(0.9, np.float32) if low is None or m.r.random() < 0.7 else None)


@move("Dropout")
def dropout(m: Maker, x: Value) -> Value | None:
    return m.op("Dropout", x, m.scalar(0.3, np.float32) if m.r.random() < 0.5 else None)


@move("com.microsoft::BiasGelu", "com.microsoft::FastGelu")
def gelus(m: Maker, x: Value, name: str) -> Value | None:
    width = dims(x)[-1]
    if not isinstance(width, int):
        return None
    bias = m.array(width) if name.endswith("BiasGelu") or m.r.random() < 0.5 else None
    return m.op(short(name), x, bias)


@move("QuantizeLinear", "DequantizeLinear", jumps=True)
def quantize(m: Maker, x: Value, _: str) -> Value | None:
    axis = m.r.randrange(len(dims(x)))
    extent = dims(x)[axis]
    if m.r.random() < 0.5 and isinstance(extent, int):
        scale = m.b.const(np.asarray(m.rng.uniform(0.02, 0.1, extent), np.float32))
        zero = m.b.const(np.asarray(m.rng.integers(100, 150, extent), np.uint8))
    else:
        scale, zero = m.scalar(0.05, np.float32), m.scalar(128, np.uint8)
    if m.r.random() < 0.5:
        axis -= len(dims(x))
    coded = m.op("QuantizeLinear", x, scale, zero, axis=axis)
    return m.op("DequantizeLinear", coded, scale, zero, axis=axis)
