"""Products, normalizations, reductions and recurrent operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from tileable import Maker, dims

from memoptc.ir.core import Value
from tileable_moves.registry import IMAGE, move, number, short, whole


@move("MatMul", "com.microsoft::FusedMatMul", ranks=(2, 3, 4))
def matmul(m: Maker, x: Value, name: str) -> Value | None:
    shape, r, attrs = dims(x), m.r, {}
    flip_a, flip_b = (r.random() < 0.4, r.random() < 0.4) if name != "MatMul" else (False, False)
    batch = [d for d in shape[:-2] if isinstance(d, int)]
    batch = batch if len(batch) == len(shape) - 2 and r.random() < 0.4 else []
    if name != "MatMul":
        attrs = {"transA": int(flip_a), "transB": int(flip_b), "alpha": 0.5}
        batch = batch if len(batch) == len(shape) - 2 else []
    others = [
        v for v in m.pool if len(dims(v)) == len(shape) and dims(v)[-1] == shape[-1] and dims(v)[:-2] == shape[:-2]
    ]
    if others and r.random() < 0.4 and name == "MatMul":
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        return m.op("MatMul", x, m.op("Transpose", r.choice(others), perm=order))
    if r.random() < 0.6:
        inner = shape[-2 if flip_a else -1]
        if not isinstance(inner, int):
            return None
        w = (inner, r.randint(1, 9))
        return m.op(short(name), x, m.weight(*batch, *(reversed(w) if flip_b else w)), **attrs)
    inner = shape[-1 if flip_b else -2]
    if not isinstance(inner, int):
        return None
    w = (r.randint(1, 9), inner)
    return m.op(short(name), m.weight(*batch, *(reversed(w) if flip_a else w)), x, **attrs)


@move("Gemm", "com.microsoft::FusedGemm", ranks=(2,))
def gemm(m: Maker, x: Value, name: str) -> Value | None:
    r, flip_a, flip_b = m.r, m.r.random() < 0.3, m.r.random() < 0.5
    rows, inner = reversed(dims(x)) if flip_a else dims(x)
    if not isinstance(inner, int):
        return None
    wide = r.randint(1, 9)
    biases = [(wide,), (1, wide), (1,), (1, 1)] + ([(rows, 1), (rows, wide)] if isinstance(rows, int) else [])
    bias = m.weight(*r.choice(biases)) if r.random() < 0.8 else None
    attrs: dict[str, Any] = {"transA": int(flip_a), "transB": int(flip_b), "alpha": 0.7, "beta": 0.3}
    if name != "Gemm":
        attrs["activation"] = "Relu"
    w = (inner, wide)
    return m.op(short(name), x, m.weight(*(reversed(w) if flip_b else w)), bias, **attrs)


@move("com.microsoft::MatMulNBits", ranks=(2, 3))
def matmul_n_bits(m: Maker, x: Value) -> Value | None:
    inner = dims(x)[-1]
    if not isinstance(inner, int):
        return None
    wide, blocks = m.r.randint(1, 9), -(-inner // 16)
    codes = m.b.const(np.asarray(m.rng.integers(0, 256, (wide, blocks, 8)), np.uint8))
    scales = m.b.const(np.asarray(m.rng.uniform(0.02, 0.1, wide * blocks), np.float32))
    return m.op("MatMulNBits", x, codes, scales, K=inner, N=wide, bits=4, block_size=16)


@move("MatMulInteger", "QLinearMatMul", ranks=(2, 3), jumps=True)
def matmul_integer(m: Maker, x: Value, name: str) -> Value | None:
    inner, wide = dims(x)[-1], m.r.randint(1, 9)
    if not isinstance(inner, int):
        return None
    scale, zero = m.scalar(0.05, np.float32), m.scalar(120, np.uint8)
    coded = m.op("QuantizeLinear", x, scale, zero)
    w = m.b.const(np.asarray(m.rng.integers(-100, 100, (inner, wide)), np.int8))
    if name == "MatMulInteger":
        per_column = m.r.random() < 0.3
        zeros = m.b.const(np.asarray(m.rng.integers(-5, 5, wide), np.int8)) if per_column else m.scalar(3, np.int8)
        total = m.op("MatMulInteger", coded, w, *((zero, zeros) if m.r.random() < 0.7 else ()))
        return m.op("Mul", m.op("Cast", total, to=1), m.scalar(0.001, np.float32))
    weight_zero = m.scalar(0, np.int8)
    result = m.op("QLinearMatMul", coded, scale, zero, w, m.scalar(0.02, np.float32), weight_zero, scale, zero)
    return m.op("DequantizeLinear", result, scale, zero)


@move("Einsum", ranks=(2, 3, 4))
def einsum(m: Maker, x: Value) -> Value | None:
    letters = "abcd"[: len(dims(x))]
    shared = [c for c, d in zip(letters, dims(x), strict=True) if isinstance(d, int) and m.r.random() < 0.6]
    if not shared:
        return None
    other = [*shared, "z"]
    m.r.shuffle(other)
    sizes = dict(zip(letters, dims(x), strict=True)) | {"z": m.r.randint(1, 5)}
    w = m.array(*(number(sizes[c]) for c in other))
    result = [c for c in (*letters, "z") if c not in shared or m.r.random() < 0.4]
    m.r.shuffle(result)
    return m.op("Einsum", x, w, equation=f"{letters},{''.join(other)}->{''.join(result)}")


@move("Softmax", "LogSoftmax", "LpNormalization")
def normalize(m: Maker, x: Value, name: str) -> Value | None:
    rank = len(dims(x))
    return m.op(name, x, axis=m.r.choice((None, *range(-rank, rank))))


@move("Hardmax", jumps=True)
def hardmax(m: Maker, x: Value) -> Value | None:
    return m.op("Hardmax", x, axis=m.r.choice((None, *range(-len(dims(x)), len(dims(x))))))


@move("LayerNormalization")
def layer_norm(m: Maker, x: Value) -> Value | None:
    rank = len(dims(x))
    axis = m.r.randrange(rank)
    if not whole(*dims(x)[axis:]):
        return None
    shape = [number(d) for d in dims(x)[axis:]]
    bias = m.array(*shape) if m.r.random() < 0.7 else None
    return m.op("LayerNormalization", x, m.array(*shape), bias, axis=axis - (rank if m.r.random() < 0.5 else 0))


@move("SimplifiedLayerNormalization")
def simplified_layer_norm(m: Maker, x: Value) -> Value | None:
    """onnxruntime's own, which it keeps in the standard domain."""
    width = dims(x)[-1]
    if not isinstance(width, int):
        return None
    operands = (x, m.array(width))
    return m.b.op("SimplifiedLayerNormalization", operands, {"axis": -1}, domain="", type=x.type).result


@move("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization", ranks=(3,))
def skip_layer_norm(m: Maker, x: Value, name: str) -> Value | None:
    rows, width = dims(x)[1:]
    others = [v for v in m.pool if dims(v) == dims(x)]
    if not isinstance(width, int) or (not isinstance(rows, int) and not others):
        return None
    skip = m.r.choice(others) if others and (m.r.random() < 0.8 or not whole(rows)) else m.array(number(rows), width)
    more = [m.array(width)] if name.endswith("SkipSimplifiedLayerNormalization") else [m.array(width), m.array(width)]
    return m.op(short(name), x, skip, *more)


@move("InstanceNormalization", ranks=IMAGE)
def instance_norm(m: Maker, x: Value) -> Value | None:
    c = dims(x)[1]
    return m.op("InstanceNormalization", x, m.array(c), m.array(c)) if isinstance(c, int) else None


@move("BatchNormalization", ranks=(2, 3, 4))
def batch_norm(m: Maker, x: Value) -> Value | None:
    c = dims(x)[1]
    if not isinstance(c, int):
        return None
    variance = m.b.const(np.asarray(m.rng.uniform(0.5, 2, c), np.float32))
    return m.op("BatchNormalization", x, m.array(c), m.array(c), m.array(c), variance)


@move("GroupNormalization", ranks=IMAGE)
def group_norm(m: Maker, x: Value) -> Value | None:
    c = dims(x)[1]
    if not isinstance(c, int):
        return None
    groups = m.r.choice([g for g in (1, 2, 3, 4) if c % g == 0])
    return m.op("GroupNormalization", x, m.array(c), m.array(c), num_groups=groups)


@move("LRN", ranks=(4,))
def lrn(m: Maker, x: Value) -> Value | None:
    return m.op("LRN", x, size=m.r.choice((1, 3, 5)), alpha=0.2)


REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
).split()


@move(*REDUCTIONS)
def reduce(m: Maker, x: Value, name: str) -> Value | None:
    if name in ("ReduceLogSum", "ReduceProd"):
        x = m.op("Sigmoid", m.op("Tanh", x))
    axes = m.r.sample(range(len(dims(x))), m.r.randint(1, len(dims(x))))
    axes = [a - len(dims(x)) if m.r.random() < 0.5 else a for a in axes]
    return m.op(name, x, m.ints(*axes) if m.r.random() < 0.9 else None, keepdims=m.r.choice((None, 0, 1)))


@move("ArgMax", "ArgMin", jumps=True)
def place(m: Maker, x: Value, name: str) -> Value | None:
    axis = m.r.choice((None, *range(-len(dims(x)), len(dims(x)))))
    found = m.op(name, x, axis=axis, keepdims=m.r.choice((None, 0, 1)), select_last_index=m.r.choice((None, 1)))
    return m.op("Cast", found, to=1)


@move("TopK", jumps=True)
def top_k(m: Maker, x: Value) -> Value | None:
    axis = m.r.randrange(len(dims(x)))
    if not whole(dims(x)[axis]):
        return None
    k = m.ints(m.r.randint(1, min(4, number(dims(x)[axis]))))
    largest = m.r.choice((None, 0))
    return m.op("TopK", x, k, _outputs=2, largest=largest, axis=axis - (len(dims(x)) if m.r.random() < 0.5 else 0))


@move("CumSum")
def cum_sum(m: Maker, x: Value) -> Value | None:
    axis = m.r.choice(range(-len(dims(x)), len(dims(x))))
    axis_ = m.scalar(axis, np.int64) if m.r.random() < 0.5 else m.ints(axis)
    return m.op("CumSum", x, axis_, exclusive=m.r.choice((None, 1)), reverse=m.r.choice((None, 1)))


@move("LSTM", "GRU", "RNN", ranks=(3,))
def recurrent(m: Maker, x: Value, name: str) -> Value | None:
    width, r, gates = dims(x)[-1], m.r, {"LSTM": 4, "GRU": 3, "RNN": 1}[name]
    if not isinstance(width, int):
        return None
    hidden, two = r.randint(1, 4), r.choice((1, 2))
    w, again = m.array(two, gates * hidden, width), m.array(two, gates * hidden, hidden)
    bias = m.array(two, 2 * gates * hidden) if r.random() < 0.5 else None
    state = None
    if isinstance(dims(x)[1], int) and r.random() < 0.4:
        state = m.array(two, number(dims(x)[1]), hidden)
    cell = state if name == "LSTM" and r.random() < 0.5 else None
    direction = "bidirectional" if two == 2 else r.choice((None, "reverse"))
    operands = (x, w, again, bias, None, state, *((cell,) if name == "LSTM" else ()))
    outputs = r.choice((1, 3 if name == "LSTM" else 2))
    return m.op(name, *operands, _outputs=outputs, hidden_size=hidden, direction=direction)


@move("com.microsoft::MultiHeadAttention", ranks=(3,))
def attention(m: Maker, x: Value) -> Value | None:
    width = dims(x)[-1]
    if not isinstance(width, int):
        return None
    heads = m.r.choice([h for h in (1, 2, 3, 4) if width % h == 0])
    others = [v for v in m.pool if len(dims(v)) == 3 and (dims(v)[0], dims(v)[2]) == (dims(x)[0], width)]
    keys = m.r.choice(others) if others else x
    return m.op("MultiHeadAttention", x, keys, m.op("Tanh", keys), num_heads=heads)
