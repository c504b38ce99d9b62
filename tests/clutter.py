"""Puts into a graph what exporters leave behind: detours that do nothing, or nearly nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType, TensorType

FAR = np.iinfo(np.int64).max


def clutter(graph: Graph, seed: int, count: int) -> Graph:
    """Send the users of `count` values over a detour.

    Args:
        graph: A typed graph of opset 18; changed and given back.
        seed: The same seed gives the same detours.
        count: How many detours to take.
    """
    rng = random.Random(seed)
    for _ in range(count):
        values = [v for op in graph.ops if not op.is_const for v in op.results if _fits(v)]
        values += [v for v in graph.inputs if _fits(v)]
        if not values:
            break
        value = rng.choice(values)
        users = [(op, index) for op, index in value.uses if op.graph is graph]
        if not users:
            continue
        anchor = value.op.next if value.op is not None else graph.first
        builder = Builder(graph, before=anchor)
        way = rng.choice(WAYS)(builder, value, rng)
        if way is not None:
            for op, index in users:
                op.set_operand(index, way)
    return graph


def _fits(value: Value) -> bool:
    type_ = value.type
    return isinstance(type_, TensorType) and type_.shape is not None and value.has_uses and not value.is_absent


def _type(value: Value) -> TensorType:
    assert isinstance(value.type, TensorType)
    return value.type


def _rank(value: Value) -> int:
    return len(_type(value).shape or ())


def _ints(*values: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(values, np.int64)


def _one(op_type: str, **attrs: object) -> Callable[[Builder, Value, random.Random], Value | None]:
    def way(b: Builder, v: Value, rng: random.Random) -> Value | None:
        return b.op(op_type, [v], dict(attrs)).result

    return way


def transposes(b: Builder, v: Value, rng: random.Random) -> Value | None:
    perm = rng.sample(range(_rank(v)), _rank(v))
    back = [perm.index(i) for i in range(len(perm))]
    if rng.random() < 0.3:
        rng.shuffle(back)
        if [perm[i] for i in back] != list(range(len(perm))):
            back = [perm.index(i) for i in range(len(perm))]
    return b.Transpose(b.Transpose(v, perm=perm), perm=back) if perm else None  # type: ignore[no-any-return]


def axes_and_back(b: Builder, v: Value, rng: random.Random) -> Value | None:
    axis = _ints(rng.randint(0, _rank(v)))
    return b.Squeeze(b.Unsqueeze(v, axis), axis)  # type: ignore[no-any-return]


def through_shape(b: Builder, v: Value, rng: random.Random) -> Value | None:
    """Flatten, then reshape to what Shape says, taken apart and put together again."""
    rank = _rank(v)
    if rank == 0:
        return None
    shape = b.Shape(v)
    parts = [b.Unsqueeze(b.Gather(shape, np.asarray(i, np.int64), axis=0), _ints(0)) for i in range(rank)]
    if rng.random() < 0.3:
        parts[rng.randrange(rank)] = b.const(_ints(-1))
    target = b.Concat(*parts, axis=0)
    flat = b.Reshape(v, _ints(-1)) if rng.random() < 0.5 else b.Flatten(v, axis=rng.randint(0, rank))
    return b.Reshape(flat, target)  # type: ignore[no-any-return]


def same_reshape(b: Builder, v: Value, rng: random.Random) -> Value | None:
    return b.Reshape(v, b.Shape(v))  # type: ignore[no-any-return]


def expand(b: Builder, v: Value, rng: random.Random) -> Value | None:
    return b.Expand(v, b.Shape(v))  # type: ignore[no-any-return]


def casts(b: Builder, v: Value, rng: random.Random) -> Value | None:
    dtype = _type(v).dtype
    between = rng.choice([DType.FLOAT, DType.DOUBLE, DType.INT64, DType.INT32, dtype])
    return b.Cast(b.Cast(v, to=int(between)), to=int(dtype))  # type: ignore[no-any-return]


def neutral(b: Builder, v: Value, rng: random.Random) -> Value | None:
    """Arithmetic with 0 or 1 that may or may not keep every bit, and may or may not broadcast."""
    dtype = _type(v).dtype
    if dtype == DType.BOOL:
        return b.Not(b.Not(v))  # type: ignore[no-any-return]
    name = rng.choice(["Add", "Sub", "Mul", "Div"])
    number = (0 if name in ("Add", "Sub") else 1) * rng.choice([1, 1, -1] if name in ("Add", "Sub") else [1])
    content = np.full((1,) * rng.randint(0, _rank(v)), number, dtype.numpy())
    if rng.random() < 0.3:
        content = -content if name in ("Add", "Sub") else content
    other = b.const(content)
    first, second = (other, v) if name in ("Add", "Mul") and rng.random() < 0.5 else (v, other)
    return b.op(name, [first, second]).result


def cuts(b: Builder, v: Value, rng: random.Random) -> Value | None:
    rank = _rank(v)
    if rank == 0:
        return None
    axis = rng.randrange(rank)
    extent = (_type(v).shape or ())[axis]
    end = rng.choice([FAR, 2**31 - 1, *([extent] if isinstance(extent, int) else [])])
    return b.Slice(v, _ints(0), _ints(end), _ints(rng.choice([axis, axis - rank])))  # type: ignore[no-any-return]


def apart_and_together(b: Builder, v: Value, rng: random.Random) -> Value | None:
    shape = _type(v).shape or ()
    even = [i for i, d in enumerate(shape) if isinstance(d, int) and d > 0 and d % 2 == 0]
    if not even:
        return b.Concat(v, axis=0) if shape else None
    axis = rng.choice(even)
    op = b.op("Split", [v], {"axis": axis, "num_outputs": 2}, outputs=2)
    parts = op.results if rng.random() < 0.8 else op.results[::-1]
    inner = b.Concat(*parts, axis=axis)
    return inner  # type: ignore[no-any-return]


def pads(b: Builder, v: Value, rng: random.Random) -> Value | None:
    if _type(v).dtype not in (DType.FLOAT, DType.DOUBLE, DType.INT64, DType.INT32) or _rank(v) == 0:
        return None
    return b.Pad(v, _ints(*[0] * (2 * _rank(v))))  # type: ignore[no-any-return]


def tile(b: Builder, v: Value, rng: random.Random) -> Value | None:
    return b.Tile(v, _ints(*[1] * _rank(v))) if _rank(v) else None  # type: ignore[no-any-return]


def gather_all(b: Builder, v: Value, rng: random.Random) -> Value | None:
    static = [(i, d) for i, d in enumerate(_type(v).shape or ()) if isinstance(d, int) and 0 < d < 9]
    if not static:
        return None
    axis, extent = rng.choice(static)
    return b.Gather(v, _ints(*range(extent)), axis=axis)  # type: ignore[no-any-return]


def where(b: Builder, v: Value, rng: random.Random) -> Value | None:
    if _type(v).dtype == DType.BOOL:
        return None
    yes = rng.random() < 0.5
    test = b.const(np.full((1,) * rng.randint(0, _rank(v)), yes))
    other = b.Identity(v)
    return b.Where(test, v, other) if yes else b.Where(test, other, v)  # type: ignore[no-any-return]


def twice(b: Builder, v: Value, rng: random.Random) -> Value | None:
    if _type(v).dtype not in (DType.FLOAT, DType.DOUBLE):
        return None
    name = rng.choice(["Relu", "Abs", "Floor", "Ceil"])
    return b.op(name, [b.op(name, [v]).result]).result


def view_in_between(b: Builder, v: Value, rng: random.Random) -> Value | None:
    if _type(v).dtype not in (DType.FLOAT, DType.DOUBLE) or _rank(v) == 0:
        return None
    return b.Reshape(b.Sigmoid(b.Reshape(v, _ints(-1))), b.Shape(v))  # type: ignore[no-any-return]


def branch(b: Builder, v: Value, rng: random.Random) -> Value | None:
    """An If whose condition is known."""
    regions = {}
    for name in ("then_branch", "else_branch"):
        region = Graph(name)
        inside = region.append(Op("Identity", [v], [v.type])).result
        region.set_outputs([inside])
        regions[name] = region
    test = b.const(np.asarray(rng.random() < 0.5))
    return b.op("If", [test], type=v.type, regions=regions).result


def once(b: Builder, v: Value, rng: random.Random) -> Value | None:
    """A Loop of no or one iteration."""
    body = Graph("body")
    body.add_input("i", TensorType(DType.INT64, ()))
    go = body.add_input("go", TensorType(DType.BOOL, ()))
    state = body.add_input("state", v.type)
    after = body.append(Op("Identity", [state], [v.type])).result
    body.set_outputs([go, after])
    trips = b.const(np.asarray(rng.choice([0, 1, 2]), np.int64))
    return b.op("Loop", [trips, b.const(np.asarray(True)), v], type=v.type, regions={"body": body}).result


def zeros_beside(b: Builder, v: Value, rng: random.Random) -> Value | None:
    """Something with constants on one side, cut off again."""
    shape = _type(v).shape or ()
    if not shape or _type(v).dtype != DType.FLOAT or not all(isinstance(d, int) for d in shape):
        return None
    rest = b.ConstantOfShape(np.asarray(shape, np.int64))
    both = b.Concat(v, rest, axis=0)
    return b.Slice(both, _ints(0), _ints(shape[0]), _ints(0))  # type: ignore[no-any-return, arg-type]


WAYS: tuple[Callable[[Builder, Value, random.Random], Value | None], ...] = (
    _one("Identity"), transposes, axes_and_back, through_shape, same_reshape, expand, casts, neutral, cuts,
    apart_and_together, pads, tile, gather_all, where, twice, view_in_between, branch, once, zeros_beside,
    through_shape, transposes, neutral,
)  # fmt: skip
