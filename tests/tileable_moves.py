"""How each operator with an iteration space is applied to a value: `MOVES`, for tests/tileable.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tileable import Maker, Move, dims

from memoptc.ir.core import Value
from memoptc.ir.dims import Dim
from memoptc.ir.types import DType

Make = Callable[[Maker, Value], "Value | None"]
MOVES: dict[str, Move] = {}
ANY = (1, 2, 3, 4, 5)
IMAGE = (3, 4)


def move(*names: str, ranks: tuple[int, ...] = ANY, jumps: bool = False, opset: int = 21) -> Callable[[Any], Any]:
    """Enter a function under operator names; one with several is given the name."""

    def enter(make: Any) -> Any:
        for name in names:
            bound: Make = make if len(names) == 1 else (lambda m, x, name=name: make(m, x, name))
            MOVES[name] = Move(name, ranks, bound, jumps, opset)
        return make

    return enter


def short(name: str) -> str:
    return name.rpartition("::")[2]


def whole(*extents: Dim) -> bool:
    return all(isinstance(d, int) for d in extents)


def number(dim: Dim) -> int:
    """A static extent, or one that nothing is larger than."""
    return dim if isinstance(dim, int) else 10**9


# -- element by element -------------------------------------------------------------------------------


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


# -- windows ------------------------------------------------------------------------------------------


def window(m: Maker, x: Value, *, most: int = 4, modes: bool = True, full: bool = True) -> dict[str, Any] | None:
    """Kernel, strides, dilations and padding that leave something of every extent."""
    r, found = m.r, dims(x)[2:]
    attrs: dict[str, Any] = {"kernel_shape": [], "strides": [], "dilations": []}
    before, after = [], []
    for extent in found:
        size, stride, dilation = r.randint(1, most), r.choice((1, 1, 1, 2, 2, 3)), r.choice((1, 1, 1, 2, 3))
        limit = size if full else size - 1
        one, two = r.randint(0, limit), r.randint(0, limit)
        if r.random() < 0.5:
            one = two = min((size - 1) * dilation // 2, limit)
        while (size - 1) * dilation + 1 > number(extent) + one + two:
            if dilation > 1:
                dilation -= 1
            else:
                size, one, two = (
                    size - 1,
                    min(one, size - 2 if not full else size),
                    min(two, size - 2 if not full else size),
                )
        attrs["kernel_shape"].append(max(size, 1))
        attrs["strides"].append(stride)
        attrs["dilations"].append(dilation)
        before.append(max(one, 0))
        after.append(max(two, 0))
    mode = r.choice(("SAME_UPPER", "SAME_LOWER", "VALID")) if modes and r.random() < 0.25 else ""
    if mode:
        attrs["auto_pad"] = mode
        attrs["dilations"] = [1] * len(found)
        if mode == "VALID":
            attrs["kernel_shape"] = [min(k, number(d)) for k, d in zip(attrs["kernel_shape"], found, strict=True)]
    elif any(before + after) or r.random() < 0.5:
        attrs["pads"] = before + after
    for name in ("strides", "dilations"):
        if set(attrs[name]) == {1} and r.random() < 0.5:
            del attrs[name]
    return attrs


@move("Conv", "com.microsoft::FusedConv", ranks=(3, 4, 5))
def conv(m: Maker, x: Value, name: str) -> Value | None:
    channels = dims(x)[1]
    if not isinstance(channels, int) or (name != "Conv" and len(dims(x)) != 4):
        return None
    attrs = window(m, x, most=3 if len(dims(x)) == 5 else 4)
    if attrs is None:
        return None
    group = m.r.choice([1, 1, 1, channels, *(g for g in (2, 3) if channels % g == 0)])
    filters = group * m.r.randint(1, 8 if group == 1 else 2)
    kernel = attrs["kernel_shape"]
    if m.r.random() < 0.3:
        del attrs["kernel_shape"]
    w = m.weight(filters, channels // group, *kernel)
    bias = m.array(filters) if m.r.random() < 0.5 else None
    if name != "Conv":
        attrs["activation"] = m.r.choice(("Relu", "Sigmoid"))
    return m.op(short(name), x, w, bias, **attrs, group=group if group > 1 else None)


@move("ConvTranspose", ranks=IMAGE)
def conv_transpose(m: Maker, x: Value) -> Value | None:
    channels, rank, r = dims(x)[1], len(dims(x)) - 2, m.r
    if not isinstance(channels, int):
        return None
    group = r.choice([1, 1, 1, 1, channels])
    kernel, stride = [r.randint(1, 4) for _ in range(rank)], [r.choice((1, 2, 2, 3)) for _ in range(rank)]
    attrs: dict[str, Any] = {"strides": stride, "dilations": [r.choice((1, 1, 2)) for _ in range(rank)]}
    style = r.random()
    if style < 0.15:
        attrs["auto_pad"] = r.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
        # Where a kernel is shorter than its stride, or dilated, onnxruntime does not give the extents it should.
        kernel = [max(k, s) for k, s in zip(kernel, stride, strict=True)]
        del attrs["dilations"]
    elif style < 0.8:
        attrs["pads"] = [
            r.randint(0, (k - 1) * d) for _ in "ab" for k, d in zip(kernel, attrs["dilations"], strict=True)
        ]
        attrs["output_padding"] = [r.randrange(max(s, d)) if r.random() < 0.4 else 0
                                   for s, d in zip(stride, attrs["dilations"], strict=True)]  # fmt: skip
        attrs["output_padding"] = [min(p, s - 1) for p, s in zip(attrs["output_padding"], stride, strict=True)]
    w = m.weight(channels, r.randint(1, 4), *kernel)
    bias = m.array(int(w.type.shape[1]) * group) if r.random() < 0.5 else None  # type: ignore[union-attr,index]
    return m.op("ConvTranspose", x, w, bias, **attrs, group=group if group > 1 else None)


@move("MaxPool", "AveragePool", "LpPool", ranks=IMAGE)
def pool(m: Maker, x: Value, name: str) -> Value | None:
    attrs = window(m, x, full=False)
    if attrs is None:
        return None
    if m.r.random() < 0.4 and "auto_pad" not in attrs:
        attrs["ceil_mode"] = 1
    if name == "AveragePool" and m.r.random() < 0.5:
        attrs["count_include_pad"] = 1
    return m.op(name, x, **attrs)


@move("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", ranks=IMAGE)
def global_pool(m: Maker, x: Value, name: str) -> Value | None:
    return m.op(name, x)


@move("Resize", ranks=(2, 3, 4))
def resize(m: Maker, x: Value) -> Value | None:
    r, rank = m.r, len(dims(x))
    mode = r.choice(("nearest", "nearest", "linear", "linear", "cubic")) if rank in (2, 4) else "nearest"
    attrs: dict[str, Any] = {"mode": mode}
    where_ = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    attrs["coordinate_transformation_mode"] = r.choice((*where_, "half_pixel", "asymmetric"))
    if mode == "nearest":
        rounding = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        attrs["nearest_mode"] = "floor" if r.random() < 0.4 else r.choice(rounding)
    factors = [1.0] * min(rank, 2) + [r.choice((1.0, 2.0, 2.0, 3.0, 4.0, 1.5)) for _ in range(rank - 2)]
    if rank == 2:
        factors = [r.choice((1.0, 2.0, 3.0)) for _ in range(2)]
    if r.random() < 0.3 and whole(*dims(x)):
        sizes = m.ints(*(int(number(d) * f) for d, f in zip(dims(x), factors, strict=True)))
        return m.op("Resize", x, None, None, sizes, **attrs)
    scales = m.b.const(np.asarray(factors, np.float32))
    return m.op("Resize", x, None, scales, **attrs)


@move("Upsample", ranks=(4,), opset=9)
def upsample(m: Maker, x: Value) -> Value | None:
    scales = m.b.const(np.asarray([1, 1, m.r.choice((1, 2, 3)), m.r.choice((1, 2, 3))], np.float32))
    return m.op("Upsample", x, scales, mode=m.r.choice(("nearest", "linear")))


@move("DepthToSpace", ranks=(4,))
def depth_to_space(m: Maker, x: Value) -> Value | None:
    fitting = [b for b in (2, 3) if number(dims(x)[1]) % (b * b) == 0]
    if not fitting or not whole(dims(x)[1]):
        return None
    return m.op("DepthToSpace", x, blocksize=m.r.choice(fitting), mode=m.r.choice(("DCR", "CRD")))


@move("SpaceToDepth", ranks=(4,))
def space_to_depth(m: Maker, x: Value) -> Value | None:
    block = m.r.choice((2, 3))
    sizes = [-d % block if isinstance(d, int) else None for d in dims(x)[2:]]
    if None in sizes:
        return None
    if any(sizes):
        x = m.op("Pad", x, m.ints(0, 0, 0, 0, 0, 0, *(int(s or 0) for s in sizes)))
    return m.op("SpaceToDepth", x, blocksize=block)


@move("Pad")
def pad(m: Maker, x: Value) -> Value | None:
    rank, r = len(dims(x)), m.r
    mode = r.choice(("constant", "constant", "constant", "reflect", "edge", "wrap"))
    low = -1 if mode == "constant" and r.random() < 0.2 else 0
    amounts = [r.randint(low, 3) if r.random() < 0.4 else 0 for _ in range(2 * rank)]
    if mode != "constant":
        amounts = [min(a, max(number(d) - 1, 0)) for a, d in zip(amounts, dims(x) * 2, strict=True)]
    value = m.scalar(r.choice((0.0, 1.5)), np.float32) if mode == "constant" and r.random() < 0.5 else None
    axes = m.ints(*range(rank)) if r.random() < 0.1 else None
    return m.op("Pad", x, m.ints(*amounts), value, axes, mode=mode)


# -- sums ---------------------------------------------------------------------------------------------


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


@move("ConvInteger", ranks=(4,), jumps=True)
def conv_integer(m: Maker, x: Value) -> Value | None:
    channels, attrs = dims(x)[1], window(m, x)
    if not isinstance(channels, int) or attrs is None:
        return None
    scale, zero = m.scalar(0.05, np.float32), m.scalar(120, np.uint8)
    coded = m.op("QuantizeLinear", x, scale, zero)
    shape = (m.r.randint(1, 4), channels, *attrs["kernel_shape"])
    w = m.b.const(np.asarray(m.rng.integers(0, 200, shape), np.uint8))
    total = m.op("ConvInteger", coded, w, *((zero, m.scalar(90, np.uint8)) if m.r.random() < 0.8 else ()), **attrs)
    return m.op("Mul", m.op("Cast", total, to=1), m.scalar(0.001, np.float32))


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


@move("RMSNormalization", opset=23)
def rms_norm(m: Maker, x: Value) -> Value | None:
    axis = m.r.randrange(len(dims(x)))
    if not whole(*dims(x)[axis:]):
        return None
    return m.op("RMSNormalization", x, m.array(*(number(d) for d in dims(x)[axis:])), axis=axis)


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


# -- moving elements ----------------------------------------------------------------------------------


@move("Transpose")
def transpose(m: Maker, x: Value) -> Value | None:
    order = list(range(len(dims(x))))
    m.r.shuffle(order)
    return m.op("Transpose", x, perm=order if m.r.random() < 0.9 else None)


@move("Reshape")
def reshape(m: Maker, x: Value) -> Value | None:
    shape, r = list(dims(x)), m.r
    axis = r.randrange(len(shape))
    extent = shape[axis]
    target: list[int] = [d if isinstance(d, int) else 0 for d in shape]
    style = r.random()
    if style < 0.35 and isinstance(extent, int):
        divisors = [d for d in range(1, extent + 1) if extent % d == 0]
        one = r.choice(divisors)
        if any(not isinstance(d, int) for d in shape[axis + 1 :]):
            return None
        target[axis : axis + 1] = [one, extent // one]
    elif style < 0.75 and len(shape) > 1:
        axis = min(axis, len(shape) - 2)
        if whole(*shape[axis + 2 :]):
            target[axis : axis + 2] = [-1]
        else:
            return None
    elif whole(*shape):
        target = [-1, *target[axis + 1 :]]
    if -1 not in target and 0 not in target and r.random() < 0.4:
        target[r.randrange(len(target))] = -1
    if len(target) > 5:
        return None
    return m.op("Reshape", x, m.ints(*target))


@move("Flatten")
def flatten(m: Maker, x: Value) -> Value | None:
    return m.op("Flatten", x, axis=m.r.choice((None, *range(-len(dims(x)), len(dims(x)) + 1))))


@move("Squeeze")
def squeeze(m: Maker, x: Value) -> Value | None:
    ones = [i for i, d in enumerate(dims(x)) if d == 1]
    if not ones or len(dims(x)) < 2:
        return None
    return m.op("Squeeze", x, m.ints(*m.r.sample(ones, m.r.randint(1, len(ones)))))


@move("Unsqueeze", ranks=(1, 2, 3, 4))
def unsqueeze(m: Maker, x: Value) -> Value | None:
    return m.op("Unsqueeze", x, m.ints(m.r.randint(-len(dims(x)) - 1, len(dims(x)))))


@move("Concat")
def concat(m: Maker, x: Value) -> Value | None:
    axis = m.r.randrange(len(dims(x)))
    shape = dims(x)
    others = [v for v in m.pool if len(dims(v)) == len(shape) and v.type.dtype == x.type.dtype  # type: ignore[union-attr]
              and all(a == b for i, (a, b) in enumerate(zip(dims(v), shape, strict=True)) if i != axis)]  # fmt: skip
    if whole(*(d for i, d in enumerate(shape) if i != axis)):
        others.append(m.weight(*(m.r.randint(1, 4) if i == axis else number(d) for i, d in enumerate(shape))))
    if not others:
        return None
    parts = [x, *m.r.choices(others, k=m.r.randint(1, 2))]
    m.r.shuffle(parts)
    return m.op("Concat", *parts, axis=axis - (len(shape) if m.r.random() < 0.3 else 0))


@move("Split")
def split(m: Maker, x: Value) -> Value | None:
    axis = m.r.randrange(len(dims(x)))
    extent = dims(x)[axis]
    if not isinstance(extent, int) or extent < 2:
        return None
    parts = m.r.randint(2, min(3, extent))
    axis -= len(dims(x)) if m.r.random() < 0.3 else 0
    if m.r.random() < 0.5 and -(-extent // parts) * (parts - 1) < extent:
        first = m.op("Split", x, _outputs=parts, axis=axis, num_outputs=parts)
    else:
        sizes = [1] * (parts - 1) + [extent - parts + 1]
        first = m.op("Split", x, m.ints(*sizes), _outputs=parts, axis=axis)
    others = first.op.results[1:] if first.op is not None else ()
    m.pool.extend(v for v in others if m.r.random() < 0.7)
    return first


@move("Slice")
def slice_(m: Maker, x: Value) -> Value | None:
    axis, r = m.r.randrange(len(dims(x))), m.r
    extent = min(number(dims(x)[axis]), 6)
    start, step = r.randint(-extent, extent - 1), r.choice((1, 1, 2, -1))
    end = r.choice((extent, 2**62, -1)) if step > 0 else -(2**62)
    plain = axis == 0 and step == 1 and r.random() < 0.5
    more = () if plain else (m.ints(axis - (len(dims(x)) if r.random() < 0.5 else 0)), m.ints(step))
    return m.op("Slice", x, m.ints(start), m.ints(end), *more)


@move("Expand")
def expand(m: Maker, x: Value) -> Value | None:
    target = [m.r.randint(1, 5) if d == 1 else d if isinstance(d, int) and m.r.random() < 0.5 else 1 for d in dims(x)]
    target = target if len(target) < 5 and m.r.random() < 0.3 else target[m.r.randrange(len(target)) :]
    if len(dims(x)) < 5 and len(target) == len(dims(x)) and m.r.random() < 0.5:
        target = [m.r.randint(1, 4), *target]
    return m.op("Expand", x, m.ints(*target))


@move("ConstantOfShape")
def filled(m: Maker, x: Value) -> Value | None:
    if not whole(*dims(x)):
        return None
    return m.op("Add", x, m.op("ConstantOfShape", m.ints(*(number(d) for d in dims(x)))))


@move("Gather")
def gather(m: Maker, x: Value) -> Value | None:
    axis = m.r.randrange(len(dims(x)))
    extent = dims(x)[axis]
    if not isinstance(extent, int) or len(dims(x)) > 4:
        return None
    if m.r.random() < 0.3 and extent >= 3:
        where_ = m.input(*(m.r.randint(1, 7) for _ in range(m.r.randint(1, 2))), dtype=DType.INT64)
    else:
        shape = tuple(m.r.randint(1, 7) for _ in range(m.r.randint(0, 2)))
        where_ = m.b.const(np.asarray(m.rng.integers(-extent, extent, shape), np.int64))
    return m.op("Gather", x, where_, axis=axis - (len(dims(x)) if m.r.random() < 0.3 else 0))


@move("OneHot", ranks=(1, 2, 3), jumps=True)
def one_hot(m: Maker, x: Value) -> Value | None:
    codes = m.op("Cast", m.op("Mul", m.op("Sigmoid", x), m.scalar(5.0, np.float32)), to=int(DType.INT64))
    rank = len(dims(x))
    values = m.b.const(np.asarray([0.25, 1.5], np.float32))
    return m.op("OneHot", codes, m.scalar(5, np.int64), values, axis=m.r.choice((None, *range(-rank - 1, rank + 1))))


@move("Trilu", ranks=(2, 3, 4))
def trilu(m: Maker, x: Value) -> Value | None:
    return m.op("Trilu", x, m.scalar(m.r.randint(-2, 2), np.int64), upper=m.r.choice((0, 1)))


@move("Attend", ranks=(2, 3, 4))
def attend(m: Maker, x: Value) -> Value | None:
    """Scores, masked now and then, some of them all the way, a softmax over them, and what it weighs."""
    width = dims(x)[-1]
    if not isinstance(width, int):
        return None
    keys, mask = m.r.choice((1, 5, 8, 13, 24)), m.rng.random
    scores = m.op("MatMul", x, m.weight(width, keys))
    if m.r.random() < 0.5:
        far = np.where(mask((dims(x)[-2], keys) if whole(dims(x)[-2]) else (1, keys)) < 0.3, -np.inf, 0.0)
        scores = m.op("Add", scores, m.b.const(far.astype(np.float32), "mask"))
    weights = m.op("Softmax", scores, axis=m.r.choice((None, -1, len(dims(x)) - 1)))
    lead = [d for d in dims(x)[:-2] if isinstance(d, int)] if m.r.random() < 0.3 else []
    return m.op("MatMul", weights, m.weight(*(lead if len(lead) == len(dims(x)) - 2 else []), keys, m.r.randint(1, 9)))
