"""Random well-typed graphs that onnxruntime can run, for property tests of everything.

`random_graph(seed, size)` is deterministic. Numbers stay tame on purpose (no overflow, no NaN), so that results can be
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph, Output, Value
from memoptc.ir.dims import KnownDim, Sym, product
from memoptc.ir.types import DType, Shape, TensorType
from memoptc.testing.placing import FLOATS, NUMBERS, ControlFlow, numbers

BINDINGS = {"N": 3, "M": 5}
"""Extents to run random graphs with; any others >= 1 work as well."""

UNARY = ("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Sin", "Erf", "Floor", "LeakyRelu", "Elu", "Softplus", "Identity")
SHAPES: tuple[Shape, ...] = (
    (), (1,), (4,), (2, 3), (3, 4), (4, 4), (1, 4), (2, 3, 4), (1, 2, 6, 6), (Sym("N"),), (Sym("N"), 4),
    (Sym("N"), Sym("M")), (Sym("N"), 3, 4), (1, 3, Sym("M"), 4), (2, Sym("N"), Sym("M"), 4),
)  # fmt: skip


def random_graph(seed: int, size: int = 12, *, control: bool = True, symbolic: bool = True) -> Graph:
    """Make a graph of about `size` ops (constants and casts not counted).

    Args:
        seed: The same seed and arguments give the same graph.
        size: How many operators to place.
        control: Also If, Loop and Scan.
        symbolic: Also inputs with symbolic dimensions `N` and `M`.
    """
    return _Maker(seed, control, symbolic).graph(size)


def feeds(graph: Graph, seed: int = 0, bindings: Mapping[str, int] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Make inputs for a random graph, with symbolic dimensions bound (`BINDINGS` when not given)."""
    rng = np.random.default_rng(seed)
    made = {}
    for value in graph.inputs:
        type_ = value.tensor_type
        assert type_ is not None
        shape = type_.bind(bindings or BINDINGS).static_shape
        assert shape is not None
        made[value.name] = numbers(rng, type_.dtype, shape)
    return made


class _Maker(ControlFlow):
    """Places operators whose operands exist with fitting types; a try that finds none falls back to a unary."""

    def __init__(self, seed: int, control: bool, symbolic: bool) -> None:
        super().__init__(seed)
        self.symbolic = symbolic
        self.moves: list[Callable[[], Value | None]] = [
            self.unary, self.unary, self.binary, self.binary, self.binary, self.matmul, self.concat,
            self.reshape, self.flatten, self.transpose, self.reduce, self.softmax, self.where, self.cast,
            self.slice, self.split, self.unsqueeze, self.gather, self.clip, self.pad, self.conv, self.pool,
            self.shape_of, self.layer_norm, self.constant,
        ]  # fmt: skip
        if control:
            self.moves += [self.branch, self.loop, self.scan]

    def graph(self, size: int) -> Graph:
        shapes = [s for s in SHAPES if self.symbolic or all(isinstance(d, int) for d in s)]
        for index in range(self.random.randint(1, 4)):
            dtype = self.random.choice((DType.FLOAT, DType.FLOAT, DType.FLOAT, *NUMBERS, DType.BOOL))
            self.pool_.append(self.top.add_input(f"in{index}", TensorType(dtype, self.random.choice(shapes))))
        for _ in range(size):
            made = self.random.choice(self.moves)()
            if made is None:
                made = self.unary()
            if made is not None:
                self.pool_.append(made)
        self.finish()
        return self.top

    def finish(self) -> None:
        """Return what nobody uses, and sometimes a value that is used, an input, or one value twice."""
        results = [v for v in self.pool_ if v.op is not None and not v.has_uses]
        results = results[-4:] or [self.pool_[-1]]
        if self.random.random() < 0.3:
            results.append(self.random.choice(self.pool_))
        self.top.set_outputs(results, [Output(f"out{i}", v.type) for i, v in enumerate(results)])

    # -- moves: each gives a new value, or None when nothing fits ------------------------------------

    def unary(self) -> Value | None:
        value = self.pick(lambda v: self.type(v).dtype in FLOATS)
        if value is None:
            return self.cast()
        names = UNARY if self.is_float(value) else ("Identity", "Sigmoid", "Tanh", "Abs", "Neg", "Floor", "Relu")
        name = self.random.choice(names)
        attrs = {"alpha": 0.25} if name == "LeakyRelu" else {}
        return self.emit(name, [value], self.type(value).shape, **attrs)

    def binary(self) -> Value | None:
        a = self.pick(lambda v: self.type(v).dtype in NUMBERS)
        if a is None:
            return None
        name = self.random.choice(("Add", "Sub", "Mul", "Max", "Min", "Less", "Equal", "Add"))
        if name == "Mul":
            a = self.tame(a)
        b = self.pick(lambda v: self.broadcast(a, v) is not None)
        if b is None or self.random.random() < 0.3:
            last = self.shape(a)[-1:]
            b = self.array(self.type(a).dtype, *(d for d in last if isinstance(d, int)))
        shape = self.broadcast(a, b)
        assert shape is not None
        if name == "Mul":
            b = self.tame(b)
        dtype = DType.BOOL if name in ("Less", "Equal") else None
        return self.emit(name, [a, b], shape, dtype)

    def tame(self, value: Value) -> Value:
        """Bound a factor, so that chains of products do not overflow."""
        dtype, shape = self.type(value).dtype, self.type(value).shape
        if dtype in FLOATS:
            return self.emit("Tanh", [value], shape)
        three = self.b.const(np.asarray(3, dtype.numpy()))
        return self.emit("Mod", [value, three], shape)

    def broadcast(self, a: Value, b: Value) -> Shape | None:
        if self.type(a).dtype != self.type(b).dtype:
            return None
        one, two = self.shape(a), self.shape(b)
        rank = max(len(one), len(two))
        dims: list[KnownDim] = []
        for p, q in zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(two)) + two, strict=True):
            if p != q and p != 1 and q != 1:
                return None
            dims.append(q if p == 1 else p)
        return tuple(dims)

    def matmul(self) -> Value | None:
        a = self.pick(lambda v: self.type(v).dtype in FLOATS and self.static(v, -1) and len(self.shape(v)) >= 2)
        if a is None:
            return None
        width, wide = self.shape(a)[-1], self.random.choice((1, 3, 4))
        assert isinstance(width, int)
        return self.emit("MatMul", [a, self.array(self.type(a).dtype, width, wide)], (*self.shape(a)[:-1], wide))

    def static(self, value: Value, axis: int) -> bool:
        shape = self.shape(value)
        return -len(shape) <= axis < len(shape) and isinstance(shape[axis], int)

    def concat(self) -> Value | None:
        a = self.pick(lambda v: len(self.shape(v)) > 0)
        if a is None:
            return None
        axis = self.random.randrange(len(self.shape(a)))

        def fits(v: Value) -> bool:
            p, q = list(self.shape(a)), list(self.shape(v))
            if self.type(v).dtype != self.type(a).dtype or len(p) != len(q):
                return False
            return p[:axis] + p[axis + 1 :] == q[:axis] + q[axis + 1 :]

        parts = [a, *(p for p in [self.pick(fits) for _ in range(self.random.randint(1, 2))] if p is not None)]
        total: KnownDim = 0
        for part in parts:
            total = total + self.shape(part)[axis]
        shape = (*self.shape(a)[:axis], total, *self.shape(a)[axis + 1 :])
        return self.emit("Concat", parts, shape, axis=axis)

    def reshape(self) -> Value | None:
        a = self.pick()
        assert a is not None
        elements = product(self.shape(a))
        if self.random.random() < 0.5 or not self.static(a, -1):
            return self.emit("Reshape", [a, self.ints(-1)], (elements,))
        last = self.shape(a)[-1]
        assert isinstance(last, int)
        return self.emit("Reshape", [a, self.ints(-1, last)], (product(self.shape(a)[:-1]), last))

    def flatten(self) -> Value | None:
        a = self.pick(lambda v: len(self.shape(v)) > 0)
        if a is None:
            return None
        axis = self.random.randint(0, len(self.shape(a)))
        return self.emit("Flatten", [a], (product(self.shape(a)[:axis]), product(self.shape(a)[axis:])), axis=axis)

    def transpose(self) -> Value | None:
        a = self.pick(lambda v: len(self.shape(v)) > 1)
        if a is None:
            return None
        perm = self.random.sample(range(len(self.shape(a))), len(self.shape(a)))
        return self.emit("Transpose", [a], tuple(self.shape(a)[p] for p in perm), perm=perm)

    def reduce(self) -> Value | None:
        a = self.pick(lambda v: self.is_float(v) and len(self.shape(v)) > 0)
        if a is None:
            return None
        axis, keep = self.random.randrange(len(self.shape(a))), self.random.randint(0, 1)
        name = self.random.choice(("ReduceMean", "ReduceMax", "ReduceSum"))
        shape = (*self.shape(a)[:axis], *(1,) * keep, *self.shape(a)[axis + 1 :])
        return self.emit(name, [a, self.ints(axis)], shape, keepdims=keep)

    def softmax(self) -> Value | None:
        a = self.pick(lambda v: self.is_float(v) and len(self.shape(v)) > 0)
        return None if a is None else self.emit("Softmax", [a], self.shape(a), axis=-1)

    def where(self) -> Value | None:
        a = self.pick(self.is_float)
        if a is None:
            return None
        b = self.pick(lambda v: self.broadcast(a, v) is not None)
        assert b is not None
        shape = self.broadcast(a, b)
        test = self.emit("Less", [a, b], shape, DType.BOOL)
        return self.emit("Where", [test, a, b], shape, self.type(a).dtype)

    def cast(self) -> Value | None:
        a = self.pick()
        assert a is not None
        to = self.random.choice(NUMBERS if self.type(a).dtype not in NUMBERS else FLOATS)
        return self.emit("Cast", [a], self.shape(a), to, to=int(to))

    def slice(self) -> Value | None:
        a = self.pick(lambda v: self.static(v, -1) and self.shape(v)[-1] != 1)
        if a is None:
            return None
        last = self.shape(a)[-1]
        assert isinstance(last, int)
        begin = self.random.randrange(last)
        end = self.random.randint(begin + 1, last)
        cut = [self.ints(begin), self.ints(end), self.ints(-1)]
        return self.emit("Slice", [a, *cut], (*self.shape(a)[:-1], end - begin))

    def split(self) -> Value | None:
        a = self.pick(lambda v: self.static(v, -1) and self.shape(v)[-1] in (2, 4, 6))
        if a is None:
            return None
        last = self.shape(a)[-1]
        assert isinstance(last, int)
        half = TensorType(self.type(a).dtype, (*self.shape(a)[:-1], last // 2))
        first, second = self.emit_many("Split", [a], [half, half], {"axis": -1, "num_outputs": 2})
        self.pool_.append(first)
        return second

    def unsqueeze(self) -> Value | None:
        a = self.pick(lambda v: len(self.shape(v)) < 4)
        if a is None:
            return None
        if self.shape(a)[:1] == (1,):
            return self.emit("Squeeze", [a, self.ints(0)], self.shape(a)[1:])
        return self.emit("Unsqueeze", [a, self.ints(0)], (1, *self.shape(a)))

    def gather(self) -> Value | None:
        a = self.pick(lambda v: self.static(v, 0))
        if a is None:
            return None
        rows = self.shape(a)[0]
        assert isinstance(rows, int)
        index = self.b.const(np.asarray([self.random.randrange(rows) for _ in range(3)], np.int64))
        return self.emit("Gather", [a, index], (3, *self.shape(a)[1:]), axis=0)

    def clip(self) -> Value | None:
        a = self.pick(self.is_float)
        if a is None:
            return None
        high = self.b.const(np.asarray(1.5, np.float32))
        low = self.top.absent() if self.random.random() < 0.5 else self.b.const(np.asarray(-1.5, np.float32))
        return self.emit("Clip", [a, low, high], self.shape(a))

    def pad(self) -> Value | None:
        a = self.pick(lambda v: self.is_float(v) and self.static(v, -1))
        if a is None:
            return None
        rank, last = len(self.shape(a)), self.shape(a)[-1]
        pads = [0] * (rank - 1) + [1] + [0] * (rank - 1) + [2]
        return self.emit("Pad", [a, self.ints(*pads)], (*self.shape(a)[:-1], last + 3))

    def conv(self) -> Value | None:
        a = self.pick(lambda v: self.is_float(v) and len(self.shape(v)) == 4 and self.static(v, 1))
        if a is None:
            return None
        batch, channels, height, width = self.shape(a)
        assert isinstance(channels, int)
        weights = [self.array(DType.FLOAT, 2, channels, 3, 3)]
        if self.random.random() < 0.5:
            weights.append(self.array(DType.FLOAT, 2))
        shape = (batch, 2, height, width)
        return self.emit("Conv", [a, *weights], shape, pads=[1, 1, 1, 1], kernel_shape=[3, 3])

    def pool(self) -> Value | None:
        a = self.pick(lambda v: self.is_float(v) and len(self.shape(v)) == 4)
        if a is None:
            return None
        batch, channels, height, width = self.shape(a)
        if self.random.random() < 0.5:
            return self.emit("GlobalAveragePool", [a], (batch, channels, 1, 1))
        return self.emit("MaxPool", [a], (batch, channels, height, width), kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def shape_of(self) -> Value | None:
        a = self.pick(lambda v: len(self.shape(v)) > 0)
        return None if a is None else self.emit("Shape", [a], (len(self.shape(a)),), DType.INT64)

    def layer_norm(self) -> Value | None:
        a = self.pick(lambda v: self.is_float(v) and self.static(v, -1))
        if a is None:
            return None
        last = self.shape(a)[-1]
        assert isinstance(last, int)
        scale, bias = self.array(DType.FLOAT, last), self.array(DType.FLOAT, last)
        return self.emit("LayerNormalization", [a, scale, bias], self.shape(a), axis=-1, epsilon=1e-5)

    def constant(self) -> Value | None:
        shape = self.random.choice([(2, 3), (4,), (), (3, 4)])
        return self.array(self.random.choice(NUMBERS), *shape)


__all__ = ["BINDINGS", "feeds", "random_graph"]
