"""Operators that move, repeat or look up elements."""

from __future__ import annotations

import numpy as np
from tileable import Maker, dims

from memoptc.ir.core import Value
from memoptc.ir.types import DType
from tileable_moves.registry import move, number, whole


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
