"""Operators with windows, and those that change the size of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from tileable import Maker, dims

from memoptc.ir.core import Value
from tileable_moves.registry import IMAGE, move, number, short, whole


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
