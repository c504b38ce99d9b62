"""Samplers of onnxruntime's own operators (domain com.microsoft)."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from samplers.sample import (
    Operand,
    Rng,
    Sample,
    Sampler,
    axis_of,
    extent,
    extents,
    fixed,
    floats,
    maybe,
    one,
    pick,
    weight,
    whole,
)

DOMAIN = "com.microsoft"


def _ms(op_type: str, operands: list[Any], **attrs: Any) -> Sample:
    return one(op_type, operands, domain=DOMAIN, **attrs)


def _coded(r: Rng) -> list[Operand]:
    return [weight(np.asarray(0.1, np.float32)), weight(np.asarray(3, np.uint8))]


def activations(r: Rng) -> Sample:
    name = pick(r, "FastGelu", "Gelu", "QuickGelu", "BiasGelu", "BiasSplitGelu")
    x = floats(r, *extents(r, 3))
    if name in ("BiasGelu", "BiasSplitGelu"):
        name = "BiasGelu"
        return _ms(name, [x, floats(r, x.shape[-1])])
    return _ms(name, [x])


def fused(r: Rng) -> Sample:
    if r.random() < 0.5:
        x, w = floats(r, 1, 2, 3 + extent(r), 3 + extent(r)), floats(r, 3, 2, 3, 2)
        pads = pick(r, {}, {"auto_pad": "SAME_UPPER"}, {"pads": [1, 0, 0, 1]})
        return _ms(
            "FusedConv",
            [x, weight(w)],
            activation="Relu",
            strides=maybe(r, [2, 1]),
            dilations=maybe(r, [1, 2]),
            empty=False,
            **pads,
        )
    m, k, n = extent(r), 1 + extent(r), extent(r)
    flags = [int(r.random() < 0.5) for _ in range(2)]
    a, b = (k, m) if flags[0] else (m, k), (n, k) if flags[1] else (k, n)
    if r.random() < 0.5:
        return _ms(
            "FusedGemm",
            [floats(r, *a), floats(r, *b), floats(r, n)],
            activation="Relu",
            transA=flags[0],
            transB=flags[1],
        )
    batch = extents(r, int(r.integers(0, 2)))
    return _ms("FusedMatMul", [floats(r, *batch, *a), floats(r, *batch, *b)], transA=flags[0], transB=flags[1])


def skip_norm(r: Rng) -> Sample:
    shape = tuple(1 + extent(r) for _ in range(3))
    x, skip, gamma = floats(r, *shape), floats(r, *shape), weight(floats(r, shape[-1]))
    name = pick(r, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    if name == "SkipLayerNormalization":
        return _ms(name, [x, skip, gamma, maybe(r, weight(floats(r, shape[-1])))], outputs=pick(r, 1, 4), empty=False)
    return _ms(name, [x, skip, gamma], outputs=pick(r, 1, 4), empty=False)


def simplified_norm(r: Rng) -> Sample:
    shape = tuple(1 + extent(r) for _ in range(3))
    axis = axis_of(r, 3)
    x, scale = floats(r, *shape), weight(floats(r, *shape[axis:]))
    return one("SimplifiedLayerNormalization", [x, scale], axis=axis, outputs=pick(r, 1, 2), empty=False)


def heads(r: Rng) -> Sample:
    count, size, batch, queries, keys = (1 + extent(r) % 4, 8, 1 + extent(r), 1 + extent(r), 1 + extent(r))
    q, k, v = (floats(r, batch, n, count * size) for n in (queries, keys, keys))
    return _ms("MultiHeadAttention", [q, k, v], num_heads=count, empty=False)


def grouped(r: Rng) -> Sample:
    count, groups, size, batch, length, past = 4, pick(r, 1, 2, 4), 8, 1 + extent(r) % 3, 1 + extent(r), extent(r)
    q, k, v = floats(r, batch, length, count * size), *(floats(r, batch, length, groups * size) for _ in range(2))
    cache = [floats(r, batch, groups, past, size) for _ in range(2)]
    lengths = np.full(batch, past + length - 1, np.int32)
    total = weight(np.asarray(past + length, np.int32))
    return _ms(
        "GroupQueryAttention",
        [q, k, v, *cache, lengths, total],
        num_heads=count,
        kv_num_heads=groups,
        outputs=3,
        empty=False,
    )


def attention(r: Rng) -> Sample:
    batch, length, width = 1 + extent(r), 1 + extent(r), 8
    x, w, b = floats(r, batch, length, width), weight(floats(r, width, 24)), weight(floats(r, 24))
    return _ms("Attention", [x, w, b], num_heads=2, empty=False)


def rotary(r: Rng) -> Sample:
    batch, count, length, half = 1 + extent(r) % 3, 2, 1 + extent(r), 4
    x, places = floats(r, batch, length, count * 2 * half), whole(r, 0, 20, batch, length)
    return _ms("RotaryEmbedding", [x, places, weight(floats(r, 20, half)), weight(floats(r, 20, half))], empty=False)


def blocks(r: Rng) -> Sample:
    rows, width, n = 1 + extent(r), 32, 1 + extent(r)
    scales = floats(r, n)
    b = whole(r, 0, 255, n, 1, 16, dtype=np.uint8)
    x = floats(r, *extents(r, int(r.integers(0, 2))), rows, width)
    if r.random() < 0.6:
        return _ms("MatMulNBits", [x, weight(b), weight(scales)], K=width, N=n, bits=4, block_size=32, empty=False)
    table = whole(r, 0, 255, n, 16, dtype=np.uint8)
    places = whole(r, 0, n, *extents(r, int(r.integers(1, 3))))
    return _ms(
        "GatherBlockQuantized",
        [weight(table), places, weight(floats(r, n, 1))],
        gather_axis=0,
        quantize_axis=1,
        block_size=32,
        bits=4,
        empty=False,
    )


def byte_products(r: Rng) -> Sample:
    m, k, n = 1 + extent(r), 1 + extent(r), 1 + extent(r)
    batch = tuple(1 + extent(r) for _ in range(int(r.integers(0, 2))))
    b = weight(whole(r, 0, 9, k, n, dtype=np.uint8))
    scale, zero = _coded(r)
    kind = int(r.integers(3))
    if kind == 0:
        return _ms("DynamicQuantizeMatMul", [floats(r, *batch, m, k), b, scale, zero], empty=False)
    a = whole(r, 0, 9, *batch, m, k, dtype=np.uint8)
    if kind == 1:
        return _ms("MatMulIntegerToFloat", [a, b, scale, scale, zero, zero], empty=False)
    a = whole(r, 0, 9, m, k, dtype=np.uint8)
    tail = _coded(r) if r.random() < 0.5 else []
    return _ms("QGemm", [a, scale, zero, b, scale, zero, None, *tail], empty=False)


def byte_maps(r: Rng) -> Sample:
    scale, zero = _coded(r)
    x = whole(r, 0, 200, *extents(r, 4), dtype=np.uint8)
    kind = int(r.integers(6))
    if kind == 0:
        part = tuple(1 if r.random() < 0.3 else e for e in x.shape)
        y = whole(r, 0, 200, *part, dtype=np.uint8)
        return _ms(pick(r, "QLinearAdd", "QLinearMul"), [x, scale, zero, y, scale, zero, scale, zero])
    if kind == 1:
        return _ms("QLinearSigmoid", [x, scale, zero, scale, zero])
    if kind == 2:
        return _ms("QLinearLeakyRelu", [x, scale, zero, scale, zero], alpha=0.1)
    if kind == 3:
        axis = axis_of(r, 4)
        shape = list(x.shape)
        shape[axis] = extent(r)
        y = whole(r, 0, 200, *shape, dtype=np.uint8)
        return _ms("QLinearConcat", [scale, zero, x, scale, zero, y, scale, zero], axis=axis)
    if kind == 4:
        x = whole(r, 0, 200, *(1 + e for e in x.shape), dtype=np.uint8)
        return _ms("QLinearGlobalAveragePool", [x, scale, zero, scale, zero], channels_last=maybe(r, 1), empty=False)
    x = whole(r, 0, 200, *(4 + e for e in x.shape), dtype=np.uint8)
    return _ms(
        "QLinearAveragePool",
        [fixed(x), scale, zero, scale, zero],
        kernel_shape=[2, 3],
        strides=maybe(r, [2, 2]),
        ceil_mode=maybe(r, 1),
        channels_last=maybe(r, 1, 0.3),
        empty=False,
        **pick(r, {}, {"auto_pad": "SAME_UPPER"}, {"pads": [1, 1, 0, 1]}),
    )


def byte_softmax(r: Rng) -> Sample:
    scale, zero = _coded(r)
    x = whole(r, 0, 200, *(1 + extent(r) for _ in range(3)), dtype=np.uint8)
    made = _ms("QLinearSoftmax", [x, scale, zero, scale, zero], axis=-1, empty=False)
    made.nodes[0].attribute.append(helper.make_attribute("opset", 13))
    return made


SAMPLERS: tuple[Sampler, ...] = (
    activations,
    fused,
    fused,
    skip_norm,
    simplified_norm,
    heads,
    grouped,
    attention,
    rotary,
    blocks,
    byte_products,
    byte_maps,
    byte_maps,
    byte_softmax,
)
