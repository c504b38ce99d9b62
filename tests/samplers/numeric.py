"""Samplers of element-wise operators, sums, normalizations, random numbers and losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from samplers.sample import (
    Array,
    Rng,
    Sample,
    Sampler,
    axis_of,
    extent,
    extents,
    floats,
    maybe,
    one,
    param,
    pick,
    weight,
    whole,
)


def cast(r: Rng) -> Sample:
    x = floats(r, *extents(r, int(r.integers(0, 4))))
    if r.random() < 0.3:
        return one("CastLike", [x, whole(r, 0, 3, *extents(r, 1))], opset=19)
    return one("Cast", [x], to=pick(r, 1, 6, 7, 9, 10, 11, 16, 2), opset=pick(r, 13, 19))


def clip(r: Rng) -> Sample:
    x = floats(r, *extents(r, int(r.integers(0, 4))))
    ends = [maybe(r, weight(np.asarray(v, np.float32))) for v in (-0.5, 0.5)]
    return one("Clip", [x, *ends], opset=pick(r, 11, 13)) if r.random() < 0.8 else one("Clip", [x], opset=6, min=0.0)


def reduction(r: Rng) -> Sample:
    name = "Reduce" + pick(r, "Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    rank = int(r.integers(0, 5))
    x = np.abs(floats(r, *(1 + extent(r) if r.random() < 0.8 else extent(r) for _ in range(rank))))
    axes = [int(a) for a in r.permutation(rank)[: int(r.integers(0, rank + 1))]]
    axes = [a - rank if r.random() < 0.4 else a for a in axes]
    keep = maybe(r, int(r.integers(2)), 0.7)
    by_input = r.random() < 0.6
    opset = pick(r, 18, 20) if by_input else (11 if name == "ReduceSum" else pick(r, 11, 13))
    if not by_input:
        return one(name, [x], opset=opset, axes=axes or None, keepdims=keep)
    given = maybe(r, param(*axes), 0.8)
    return one(name, [x, given], opset=opset, keepdims=keep, noop_with_empty_axes=maybe(r, 1, 0.3))


def arg(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    x = floats(r, *(1 + extent(r) for _ in range(rank)))
    return one(
        pick(r, "ArgMax", "ArgMin"),
        [x],
        axis=maybe(r, axis_of(r, rank), 0.8),
        keepdims=maybe(r, int(r.integers(2))),
        select_last_index=maybe(r, 1, 0.3),
    )


def softmax(r: Rng) -> Sample:
    rank = int(r.integers(1, 5))
    opset, axis = pick(r, 9, 11, 13), axis_of(r, rank)
    if opset == 9:
        axis %= rank
    return one(pick(r, "Softmax", "LogSoftmax", "Hardmax"), [floats(r, *extents(r, rank))], opset=opset, axis=axis)


def batch_norm(r: Rng) -> Sample:
    channels = 1 + extent(r)
    rest = extents(r, int(r.integers(0, 3)))
    x = floats(r, 1 + extent(r), channels, *rest)
    vectors = [weight(np.abs(floats(r, channels))) for _ in range(4)]
    training = r.random() < 0.2
    return one(
        "BatchNormalization",
        [x, *vectors],
        opset=pick(r, 14, 15) if training else pick(r, 9, 14, 15),
        outputs=3 if training else 1,
        training_mode=1 if training else None,
        empty=False,
    )


def norm(r: Rng) -> Sample:
    rank = int(r.integers(3, 5))
    shape = tuple(1 + extent(r) for _ in range(rank))
    x, kind = floats(r, *shape), int(r.integers(6))
    if kind == 0:
        return one("InstanceNormalization", [x, weight(floats(r, shape[1])), weight(floats(r, shape[1]))], empty=False)
    if kind == 1:
        axis = axis_of(r, rank)
        scale = floats(r, *shape[axis:])
        rest = [maybe(r, weight(floats(r, *scale.shape)))]
        return one("LayerNormalization", [x, weight(scale), *rest], outputs=pick(r, 1, 3), axis=axis, empty=False)
    if kind == 2:
        x = floats(r, shape[0], 4, *shape[2:])
        opset = pick(r, 18, 21)
        groups = 2
        length = groups if opset == 18 else 4
        vectors = [weight(floats(r, length)) for _ in range(2)]
        return one("GroupNormalization", [x, *vectors], opset=opset, num_groups=groups, empty=False)
    if kind == 3:
        return one("LRN", [floats(r, *shape[:3], 4)], size=3, empty=False)
    if kind == 4:
        return one("LpNormalization", [x], axis=maybe(r, axis_of(r, rank)), p=maybe(r, 1))
    return one("MeanVarianceNormalization", [floats(r, *shape[:3], 4)], axes=maybe(r, [0, 2, 3]), empty=False)


def dropout(r: Rng) -> Sample:
    x = floats(r, *extents(r, int(r.integers(1, 4))))
    return one("Dropout", [x], opset=pick(r, 7, 10, 12, 13), outputs=pick(r, 1, 2))


def random_numbers(r: Rng) -> Sample:
    shape = extents(r, int(r.integers(1, 4)))
    name = pick(r, "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
    dtype = maybe(r, pick(r, 1, 11))
    if name in ("RandomNormal", "RandomUniform"):
        return one(name, [], shape=list(shape), dtype=dtype, random=True)
    if name == "Multinomial":
        x = floats(r, 1 + extent(r), 4)
        return one(name, [x], sample_size=int(r.integers(1, 5)), dtype=maybe(r, pick(r, 6, 7)), random=True)
    return one(name, [np.asarray(np.abs(floats(r, *shape)) % 1, np.float32)], dtype=dtype, random=True)


def loss(r: Rng) -> Sample:
    n, c, rest = 1 + extent(r), 1 + extent(r), extents(r, int(r.integers(0, 3)))
    x, target = floats(r, n, c, *rest), whole(r, 0, c, n, *rest)
    given = maybe(r, weight(floats(r, c)))
    way = maybe(r, pick(r, "none", "mean", "sum"))
    if r.random() < 0.5:
        return one("NegativeLogLikelihoodLoss", [x, target, given], opset=13, reduction=way)
    return one("SoftmaxCrossEntropyLoss", [x, target, given], opset=13, outputs=pick(r, 1, 2), reduction=way)


def quantize(r: Rng) -> Sample:
    rank = int(r.integers(0, 4))
    shape = extents(r, rank)
    x, opset = floats(r, *shape), pick(r, 10, 13, 19, 21)
    axis: int | None = None
    scale: Array = np.asarray(0.1, np.float32)
    if rank and opset >= 13 and r.random() < 0.5:
        axis = axis_of(r, rank)
        scale = np.full(shape[axis], 0.1, np.float32)
    kind = pick(r, np.uint8, np.int8)
    zero: Any = maybe(r, weight(np.zeros(scale.shape, kind)))
    if r.random() < 0.5:
        return one("QuantizeLinear", [x, weight(scale), zero], opset=opset, axis=axis)
    codes = whole(r, 0, 9, *shape, dtype=np.uint8 if zero is None else kind)
    return one("DequantizeLinear", [codes, weight(scale), zero], opset=opset, axis=axis)


def dynamic_quantize(r: Rng) -> Sample:
    return one("DynamicQuantizeLinear", [floats(r, *extents(r, int(r.integers(0, 4))))], opset=11, outputs=3)


SAMPLERS: tuple[Sampler, ...] = (
    cast,
    clip,
    reduction,
    reduction,
    arg,
    softmax,
    batch_norm,
    norm,
    dropout,
    random_numbers,
    loss,
    quantize,
    dynamic_quantize,
)
