"""Samplers of operators that move elements: shapes, parts, places."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from samplers.sample import (
    FAR,
    Operand,
    Rng,
    Sample,
    Sampler,
    axis_of,
    extent,
    extents,
    flags,
    floats,
    maybe,
    one,
    param,
    pick,
    weight,
    whole,
)


def reshape(r: Rng) -> Sample:
    shape = extents(r, int(r.integers(1, 5)))
    size = int(np.prod(shape))
    allow = maybe(r, 1, 0.2)
    target = list(shape)
    way = int(r.integers(5))
    if way == 0:
        target = [-1]
    elif way == 1 and not allow:
        target = [0] * len(shape)
        target[int(r.integers(len(shape)))] = -1
    elif way == 2:
        target = [int(e) for e in r.permutation(target)]
        if size and r.random() < 0.6:
            target[int(r.integers(len(target)))] = -1
    elif way == 3 and size:
        target = [1, *shape[1:], shape[0]]
    elif way == 4 and not allow:
        target = [0, *([-1] if len(shape) > 1 else []), *([0] if len(shape) == 1 else [])]
        target = [0, -1] if len(shape) > 1 else [0]
    opset = 18 if allow else pick(r, 5, 13, 18)
    return one("Reshape", [floats(r, *shape), param(*target)], opset=opset, allowzero=allow)


def squeeze(r: Rng) -> Sample:
    shape = tuple(1 if r.random() < 0.5 else extent(r) for _ in range(int(r.integers(1, 5))))
    ones = [i - (len(shape) if r.random() < 0.4 else 0) for i, e in enumerate(shape) if e == 1 and r.random() < 0.7]
    x = floats(r, *shape)
    if r.random() < 0.3:
        return one("Squeeze", [x], opset=pick(r, 11, 13))
    if r.random() < 0.4:
        return one("Squeeze", [x], opset=11, axes=ones or None)
    return one("Squeeze", [x, param(*ones) if ones else None], opset=13)


def unsqueeze(r: Rng) -> Sample:
    rank, count = int(r.integers(0, 4)), int(r.integers(1, 3))
    axes = [int(a) - (rank + count if r.random() < 0.4 else 0) for a in r.permutation(rank + count)[:count]]
    x = floats(r, *extents(r, rank))
    if r.random() < 0.3:
        return one("Unsqueeze", [x], opset=11, axes=[a % (rank + count) for a in axes])
    return one("Unsqueeze", [x, param(*axes)])


def expand(r: Rng) -> Sample:
    shape = tuple(1 if r.random() < 0.4 else extent(r) for _ in range(int(r.integers(0, 4))))
    target = [1 if r.random() < 0.3 else (extent(r) if e == 1 else e) for e in shape]
    target = [extent(r) for _ in range(int(r.integers(0, 2)))] + target[int(r.integers(0, len(target) + 1)) :]
    target = target[-len(shape) - 1 :] if len(target) > len(shape) else target
    for i in range(1, min(len(target), len(shape)) + 1):
        if shape[-i] != 1 and target[-i] != 1:
            target[-i] = shape[-i]
    return one("Expand", [floats(r, *shape), param(*target)])


def concat(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape, axis = list(extents(r, rank)), axis_of(r, rank)
    parts = []
    for _ in range(int(r.integers(1, 4))):
        shape[axis] = extent(r)
        parts.append(floats(r, *shape))
    return one("Concat", parts, opset=pick(r, 4 if axis >= 0 else 11, 13), axis=axis)


def split(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    axis, shape = axis_of(r, rank), list(extents(r, rank))
    parts = int(r.integers(1, 5))
    sizes = [int(r.integers(0, 5)) for _ in range(parts)]
    way = int(r.integers(4))
    if way in (0, 1):
        shape[axis] = sum(sizes)
        if way:
            return one("Split", [floats(r, *shape), param(*sizes)], opset=pick(r, 13, 18), outputs=parts, axis=axis)
        return one("Split", [floats(r, *shape)], opset=11, outputs=parts, axis=axis, split=sizes)
    if way == 2:
        shape[axis] = parts * int(r.integers(0, 4))
        return one("Split", [floats(r, *shape)], opset=pick(r, 2 if axis >= 0 else 11, 13), outputs=parts, axis=axis)
    return one("Split", [floats(r, *shape)], opset=18, outputs=parts, axis=axis, num_outputs=parts)


def pad(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape, mode = [1 + extent(r) for _ in range(rank)], pick(r, "constant", "constant", "reflect", "edge", "wrap")
    opset = pick(r, 11, 13, 18, 19, 21)
    if mode == "wrap" and opset < 19:
        mode = "edge"
    low = -1 if mode == "constant" and r.random() < 0.5 else 0
    axes = (
        [int(a) for a in r.permutation(rank)[: int(r.integers(1, rank + 1))]]
        if opset >= 18 and r.random() < 0.5
        else None
    )
    if axes is not None and r.random() < 0.5:
        axes = [a - rank for a in axes]
    most = 2 if mode == "reflect" else 3
    pads = [int(r.integers(low, min(most, min(shape)))) for _ in range(2 * len(axes or shape))]
    x = floats(r, *shape)
    if axes is None and r.random() < 0.15:
        return one("Pad", [x], opset=2, mode=mode if mode != "wrap" else "edge", pads=pads)
    value = maybe(r, weight(np.asarray(0.5, np.float32)))
    rest = [value, param(*axes)] if axes is not None else [value]
    return one("Pad", [x, param(*pads), *rest], opset=opset, mode=mode)


def slice_(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape = extents(r, rank)
    count = int(r.integers(1, rank + 1))
    axes = [int(a) for a in r.permutation(rank)[:count]]
    starts, ends, steps = [], [], []
    for a in axes:
        e = shape[a]
        step = int(pick(r, 1, 1, 2, 3, -1, -2))
        first = [int(r.integers(-e - 2, e + 3)) for _ in range(2)]
        starts.append(pick(r, 0, first[0], first[0]) if step > 0 else pick(r, -1, first[0], FAR))
        ends.append(pick(r, first[1], first[1], FAR, e, -1) if step > 0 else pick(r, first[1], -FAR))
        steps.append(step)
    negative = [a - rank if r.random() < 0.4 else a for a in axes]
    if r.random() < 0.15:
        return one("Slice", [floats(r, *shape)], opset=9, starts=starts, ends=ends, axes=negative)
    if r.random() < 0.2:
        starts, ends, steps = starts[:1], ends[:1], steps[:1]
        return one("Slice", [floats(r, *shape), param(*starts), param(*ends), None, param(*steps)])
    rest = [param(*negative), *([param(*steps)] if r.random() < 0.7 else [])]
    return one("Slice", [floats(r, *shape), param(*starts), param(*ends), *rest], opset=pick(r, 10, 13))


def shape_(r: Rng) -> Sample:
    rank = int(r.integers(0, 4))
    x = floats(r, *extents(r, rank))
    if r.random() < 0.3:
        return one(pick(r, "Shape", "Size"), [x])
    ends = [maybe(r, int(r.integers(-rank - 1, rank + 2)), 0.7) for _ in range(2)]
    return one("Shape", [x], start=ends[0], end=ends[1])


def gather(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape, axis = extents(r, rank), axis_of(r, rank)
    low = -shape[axis] if r.random() < 0.5 else 0
    if r.random() < 0.4:
        places = list(extents(r, rank))
        places = [min(p, s) for p, s in zip(places, shape, strict=True)]
        return one("GatherElements", [floats(r, *shape), whole(r, low, shape[axis], *places)], axis=axis)
    where = whole(r, low, shape[axis], *extents(r, int(r.integers(0, 3))))
    operand = Operand(where, weight=r.random() < 0.5)
    return one("Gather", [floats(r, *shape), operand], axis=axis, opset=pick(r, 11, 13))


def gather_nd(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape = tuple(1 + extent(r) for _ in range(rank))
    batch = int(r.integers(0, rank)) if r.random() < 0.5 else 0
    length = int(r.integers(1, rank - batch + 1))
    places = whole(r, 0, min(shape), *shape[:batch], *(extent(r) for _ in range(int(r.integers(0, 2)))), length)
    return one("GatherND", [floats(r, *shape), places], batch_dims=batch or None, opset=pick(r, 12, 13))


def scatter(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape = tuple(1 + extent(r) for _ in range(rank))
    if r.random() < 0.5:
        length, count = int(r.integers(1, rank + 1)), extent(r)
        places = whole(r, 0, min(shape), count, length)
        return one("ScatterND", [floats(r, *shape), places, floats(r, count, *shape[length:])])
    part = tuple(int(r.integers(0, e + 1)) for e in shape)
    axis = axis_of(r, rank)
    return (
        one(
            pick(r, "ScatterElements", "Scatter"),
            [floats(r, *shape), whole(r, 0, shape[axis], *part), floats(r, *part)],
            axis=axis,
            opset=10,
        )
        if r.random() < 0.3 and axis >= 0
        else one("ScatterElements", [floats(r, *shape), whole(r, 0, shape[axis], *part), floats(r, *part)], axis=axis)
    )


def compress(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape, axis = extents(r, rank), maybe(r, axis_of(r, rank), 0.7)
    whole_length = int(np.prod(shape)) if axis is None else shape[axis]
    length = max(1, whole_length + int(r.integers(-2, 4)))
    condition = flags(r, length)
    return one("Compress", [floats(r, *shape), Operand(condition, weight=r.random() < 0.6)], axis=axis, opset=11)


def nonzero(r: Rng) -> Sample:
    x = np.asarray(floats(r, *extents(r, int(r.integers(0, 4)))) > 0)
    return one("NonZero", [Operand(x, weight=r.random() < 0.3)])


def unique(r: Rng) -> Sample:
    rank = int(r.integers(1, 3))
    x = whole(r, 0, 3, *(1 + extent(r) for _ in range(rank)))
    return one(
        "Unique",
        [Operand(x, weight=r.random() < 0.3)],
        outputs=int(r.integers(1, 5)),
        axis=maybe(r, axis_of(r, rank)),
        sorted=maybe(r, 0),
        empty=False,
    )


def top_k(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    shape, axis = extents(r, rank), axis_of(r, rank)
    k = int(r.integers(0, shape[axis] + 1))
    if r.random() < 0.2 and axis >= 0 and k:
        return one("TopK", [floats(r, *shape)], opset=9, outputs=2, axis=axis, k=k)
    return one("TopK", [floats(r, *shape), param(k)], opset=pick(r, 11, 18), outputs=2, axis=axis, largest=maybe(r, 0))


def one_hot(r: Rng) -> Sample:
    rank = int(r.integers(0, 3))
    depth = Operand(np.asarray(pick(r, [5], 5), np.int64), param=True)
    values = np.asarray([0, 1], pick(r, np.float32, np.int64))
    return one(
        "OneHot", [whole(r, -5, 5, *extents(r, rank)), depth, weight(values)], axis=maybe(r, axis_of(r, rank + 1))
    )


def range_(r: Rng) -> Sample:
    dtype = pick(r, np.int64, np.float32, np.int32)
    step = pick(r, 1, 2, 3, -1, -3, 0.3 if dtype == np.float32 else 2)
    ends = [r.integers(-3, 9), r.integers(-3, 20)]
    return one("Range", [Operand(np.asarray(v, dtype), param=True) for v in (*ends, step)])


def constant_of_shape(r: Rng) -> Sample:
    value = maybe(r, numpy_helper.from_array(np.asarray([3], pick(r, np.int64, np.float32, np.int32))))
    return one("ConstantOfShape", [param(*extents(r, int(r.integers(0, 4))))], value=value)


def eye_like(r: Rng) -> Sample:
    return one("EyeLike", [floats(r, *extents(r, 2))], k=maybe(r, 1), dtype=maybe(r, pick(r, 1, 7)))


def reverse_sequence(r: Rng) -> Sample:
    shape = tuple(1 + extent(r) for _ in range(3))
    return one("ReverseSequence", [floats(r, *shape), whole(r, 1, shape[0], shape[1])])


def nms(r: Rng) -> Sample:
    batch, boxes, classes = 1 + extent(r) % 2, 1 + extent(r), 1 + extent(r) % 3
    operands = [floats(r, batch, boxes, 4), floats(r, batch, classes, boxes)]
    most = maybe(r, Operand(np.asarray([int(r.integers(0, 4))], np.int64), param=True))
    return one("NonMaxSuppression", [*operands, most])


def tensor_scatter(r: Rng) -> Sample:
    past = floats(r, 2, 1 + extent(r), 6, 3)
    update = floats(r, 2, past.shape[1], int(r.integers(1, 4)), 3)
    return one("TensorScatter", [past, update, maybe(r, whole(r, 0, 3, 2))], opset=24, mode=maybe(r, "linear"))


SAMPLERS: tuple[Sampler, ...] = (
    reshape,
    reshape,
    squeeze,
    unsqueeze,
    expand,
    concat,
    split,
    split,
    pad,
    slice_,
    slice_,
    shape_,
    gather,
    gather_nd,
    scatter,
    compress,
    nonzero,
    unique,
    top_k,
    one_hot,
    range_,
    constant_of_shape,
    eye_like,
    reverse_sequence,
    nms,
    tensor_scatter,
)
