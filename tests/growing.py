"""Graphs of shapes that compilers stumble over, of any size: deep, wide, long, or with many ways from end to end.

`SHAPES[name](n)` makes one of about `n` ops (or `n` levels, for nested ones); `steps(work)` counts what work it takes.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Function, Graph, ModelInfo, Op, Output, Value
from memoptc.ir.dims import Sym
from memoptc.ir.types import DType, TensorType

F32 = TensorType(DType.FLOAT, (2, 4))
BIG = TensorType(DType.FLOAT, (2, 64, 4, 4))
FLAG = TensorType(DType.BOOL, ())


def _start(type_: TensorType = F32) -> tuple[Graph, Builder, Value]:
    graph = Graph("g", ModelInfo(opset_imports={"": 18}))
    x = graph.add_input("x", type_)
    return graph, Builder(graph), x


def _finish(graph: Graph, *values: Value) -> Graph:
    graph.set_outputs(values, [Output(f"y{i}", v.type) for i, v in enumerate(values)])
    return graph


def _op(b: Builder, op_type: str, *operands: Any, type: TensorType = F32, **attrs: Any) -> Value:
    return b.op(op_type, operands, attrs, type=type).result


def chain(n: int) -> Graph:
    """One op after the other."""
    graph, b, x = _start()
    for i in range(n):
        x = _op(b, ("Relu", "Neg", "Sin", "Abs")[i % 4], x)
    return _finish(graph, x)


def wide(n: int) -> Graph:
    """All ops beside each other, joined by one Concat."""
    graph, b, x = _start()
    parts = [_op(b, "Mul", x, np.float32(i + 2)) for i in range(n)]
    return _finish(graph, _op(b, "Concat", *parts, type=F32.with_shape((2, 4 * n)), axis=1))


def outputs(n: int) -> Graph:
    """All ops beside each other, each an output."""
    graph, b, x = _start()
    return _finish(graph, *(_op(b, "Mul", x, np.float32(i + 2)) for i in range(n)))


def twins(n: int) -> Graph:
    """The same op over and over."""
    graph, b, x = _start()
    total = x
    for _ in range(n // 2):
        total = _op(b, "Add", total, _op(b, "Sin", x))
    return _finish(graph, total)


def residual(n: int) -> Graph:
    """Ladder of `x + f(x)`: 2^n ways from end to end."""
    graph, b, x = _start()
    for _ in range(n // 2):
        x = _op(b, "Add", x, _op(b, "Relu", x))
    return _finish(graph, x)


def doubled(n: int) -> Graph:
    """Ladder of `x + x` over a broadcast."""
    graph, b, x = _start()
    v = _op(b, "ConstantOfShape", np.array([2, 4], np.int64))
    for i in range(n):
        v = _op(b, ("Add", "Mul", "Sub")[i % 3], v, v)
    return _finish(graph, _op(b, "Mul", x, v))


def truths(n: int) -> Graph:
    """Ladder of And and Or over comparisons that always hold."""
    graph, b, x = _start(TensorType(DType.FLOAT, (Sym("N"), 4)))
    flags = TensorType(DType.BOOL, (Sym("N"),))
    count = _op(b, "Gather", _op(b, "Shape", x, type=TensorType(DType.INT64, (2,))), np.int64(0), type=_INT)
    places = _op(b, "Range", np.int64(0), count, np.int64(1), type=TensorType(DType.INT64, (Sym("N"),)))
    a = _op(b, "GreaterOrEqual", places, np.int64(0), type=flags)
    for i in range(n):
        a = _op(b, ("And", "Or")[i % 2], a, a, type=flags)
    column = _op(b, "Unsqueeze", a, np.array([1], np.int64), type=TensorType(DType.BOOL, (Sym("N"), 1)))
    kind = TensorType(DType.FLOAT, (Sym("N"), 4))
    return _finish(graph, _op(b, "Where", column, x, np.float32(0), type=kind))


def masks(n: int) -> Graph:
    """Attention whose mask is a ladder of sums."""
    graph, b, q = _start(TensorType(DType.FLOAT, (1, 2, 64, 8)))
    k = graph.add_input("k", TensorType(DType.FLOAT, (1, 2, 8, 64)))
    v = graph.add_input("v", TensorType(DType.FLOAT, (1, 2, 64, 8)))
    keep = graph.add_input("keep", TensorType(DType.BOOL, (1, 1, 1, 64)))
    row, scores = TensorType(DType.FLOAT, (1, 1, 1, 64)), TensorType(DType.FLOAT, (1, 2, 64, 64))
    mask = _op(b, "Where", keep, np.float32(0), np.float32(-1e9), type=row)
    for _ in range(n):
        mask = _op(b, "Add", mask, mask, type=row)
    added = _op(b, "Add", _op(b, "MatMul", q, k, type=scores), mask, type=scores)
    weights = _op(b, "Softmax", added, type=scores, axis=-1)
    return _finish(graph, _op(b, "MatMul", weights, v, type=v.type))  # type: ignore[arg-type]


def takes(n: int) -> Graph:
    """Slices and Gathers of two axes, in turns, with another op behind each pair."""
    extents = [2, n + 128, n + 128]
    graph, b, x = _start(TensorType(DType.FLOAT, tuple(extents)))
    for i in range(n):
        if i % 3 < 2:
            extents[1 + i % 3] -= 1
        type_ = TensorType(DType.FLOAT, tuple(extents))
        if i % 3 == 0:
            x = _op(b, "Slice", x, *(np.array([k], np.int64) for k in (1, 2**31 - 1, 1)), type=type_)
        elif i % 3 == 1:
            x = _op(b, "Gather", x, np.arange(extents[2]), type=type_, axis=2)
        else:
            x = _op(b, "Relu", x, type=type_)
    return _finish(graph, x)


def slices(n: int) -> Graph:
    """One Slice after the other, each of another axis than the one before."""
    extents = [2, n + 128, n + 128]
    graph, b, x = _start(TensorType(DType.FLOAT, tuple(extents)))
    for i in range(n):
        axis = 1 + i % 2
        extents[axis] -= 1
        bounds = [np.array([k], np.int64) for k in (1, 2**31 - 1, axis)]
        x = _op(b, "Slice", x, *bounds, type=TensorType(DType.FLOAT, tuple(extents)))
    return _finish(graph, x)


def views(n: int) -> Graph:
    """Transposes and Reshapes in a row."""
    graph, b, x = _start(TensorType(DType.FLOAT, (2, 4)))
    for i in range(n):
        type_ = TensorType(DType.FLOAT, ((4, 2), (8,), (2, 4))[i % 3])
        if i % 3:
            x = _op(b, "Reshape", x, np.array(type_.shape, np.int64), type=type_)
        else:
            x = _op(b, "Transpose", x, type=type_, perm=[1, 0])
    return _finish(graph, x)


def shapes(n: int) -> Graph:
    """Reshapes whose targets are computed."""
    kind = TensorType(DType.FLOAT, (Sym("N"), 4))
    graph, b, x = _start(kind)
    one, two = TensorType(DType.INT64, (1,)), TensorType(DType.INT64, (2,))
    for _ in range(max(n // 4, 1)):
        rows = _op(b, "Gather", _op(b, "Shape", x, type=two), np.array([0], np.int64), type=one, axis=0)
        target = _op(b, "Concat", rows, np.array([4], np.int64), type=two, axis=0)
        x = _op(b, "Relu", _op(b, "Reshape", x, target, type=kind), type=kind)
    return _finish(graph, x)


def constants(n: int) -> Graph:
    """A chain that depends on nothing."""
    graph, b, x = _start()
    v = b.const(np.ones((2, 4), np.float32))
    for i in range(n):
        v = _op(b, ("Add", "Mul")[i % 2], v, v if i % 2 else np.float32(0.5))
    return _finish(graph, _op(b, "Add", x, v))


def dead(n: int) -> Graph:
    """A ladder that nothing uses."""
    graph, b, x = _start()
    v = x
    for _ in range(n // 2):
        v = _op(b, "Add", v, _op(b, "Relu", v))
    return _finish(graph, _op(b, "Neg", x))


def layers(n: int) -> Graph:
    """Convolutions, normalised and activated, with residual connections."""
    graph, b, x = _start(BIG)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 64, 1, 1)).astype(np.float32) / 8
    ones = [b.const(np.ones(64, np.float32) * i) for i in (1, 2, 3, 4)]
    for _ in range(max(n // 4, 1)):
        y = _op(b, "Conv", x, w, type=BIG)
        y = _op(b, "Relu", _op(b, "BatchNormalization", y, *ones, type=BIG), type=BIG)
        x = _op(b, "Add", x, y, type=BIG)
    return _finish(graph, x)


def products(n: int) -> Graph:
    """Products of joined operands, scaled."""
    graph, b, x = _start(TensorType(DType.FLOAT, (8, 64)))
    kind, rng = TensorType(DType.FLOAT, (8, 64)), np.random.default_rng(0)
    for _ in range(max(n // 4, 1)):
        joined = _op(b, "Concat", x, _op(b, "Sin", x, type=kind), type=TensorType(DType.FLOAT, (8, 128)), axis=1)
        w = rng.standard_normal((128, 64)).astype(np.float32) / 16
        x = _op(b, "Mul", _op(b, "MatMul", joined, w, type=kind), np.float32(0.5), type=kind)
    return _finish(graph, x)


def _branch(outer: Value, make: Callable[[Builder, Value], list[Value]], name: str) -> Graph:
    branch = Graph(name)
    made = make(Builder(branch), outer)
    branch.set_outputs(made, [Output(f"{name}_{i}", v.type) for i, v in enumerate(made)])
    return branch


def _if(b: Builder, flag: Value, x: Value, then: Callable[[Builder, Value], list[Value]], name: str, count: int) -> Op:
    """An If with `count` results, of which the last is used by nobody when there are several."""
    other = _branch(x, lambda c, v: [_op(c, "Neg", v) for _ in range(count)], f"{name}_else")
    regions = {"then_branch": _branch(x, then, f"{name}_then"), "else_branch": other}
    return b.op("If", [flag], type=[F32] * count, outputs=count, regions=regions)


def nested(depth: int) -> Graph:
    """If in If in If; each gives something that nothing uses."""
    graph, b, x = _start()
    flag = graph.add_input("flag", FLAG)

    def level(left: int) -> Callable[[Builder, Value], list[Value]]:
        def make(c: Builder, v: Value) -> list[Value]:
            y = _op(c, "Sin", v)
            if left:
                y = _if(c, flag, y, level(left - 1), f"level{left}", 2).result
            return [_op(c, "Relu", y), _op(c, "Cos", y)]

        return make

    return _finish(graph, _if(b, flag, x, level(depth), "top", 2).result)


def nested_loops(depth: int) -> Graph:
    """Loop in Loop in Loop, each with state that nothing needs."""
    graph, b, x = _start()
    trips, go = b.const(np.int64(2)), b.const(np.bool_(True))

    def loop(c: Builder, v: Value, left: int) -> Value:
        body = Graph(f"body{left}")
        body.add_input(f"i{left}", _INT)
        on = body.add_input(f"on{left}", FLAG)
        state, unused = body.add_input(f"s{left}", F32), body.add_input(f"u{left}", F32)
        d = Builder(body)
        y = loop(d, state, left - 1) if left else _op(d, "Sin", state)
        made = [_op(d, "Identity", on, type=FLAG), _op(d, "Relu", y), _op(d, "Cos", unused)]
        body.set_outputs(made, [Output(f"b{left}_{i}", m.type) for i, m in enumerate(made)])
        return c.op("Loop", [trips, go, v, v], type=[F32, F32], outputs=2, regions={"body": body}).result

    return _finish(graph, loop(b, x, depth))


def constant_ifs(depth: int) -> Graph:
    """If in If in If, of which it is known which branch runs."""
    graph, b, x = _start()
    flag = b.const(np.bool_(True))

    def level(left: int) -> Callable[[Builder, Value], list[Value]]:
        def make(c: Builder, v: Value) -> list[Value]:
            y = _op(c, "Sin", v)
            return [_op(c, "Relu", _if(c, flag, y, level(left - 1), f"level{left}", 1).result if left else y)]

        return make

    return _finish(graph, _if(b, flag, x, level(depth), "top", 1).result)


def branches(n: int) -> Graph:
    """One If after the other, each with a result that nothing uses."""
    graph, b, x = _start()
    flag = graph.add_input("flag", FLAG)
    for i in range(max(n // 5, 1)):
        x = _if(b, flag, x, lambda c, v: [_op(c, "Sin", v), _op(c, "Cos", v)], f"if{i}", 2).result
    return _finish(graph, x)


def functions(n: int) -> Graph:
    """Functions that call functions, each called once from outside, too."""
    graph, b, x = _start()
    count = max(n // 4, 1)
    for i in range(count):
        body = Graph(f"f{i}", ModelInfo(opset_imports={"": 18, "local": 1}))
        v = body.add_input("a", None)
        c = Builder(body)
        y = c.op("Sin", [v], type=None).result
        body.set_outputs([c.op("Relu", [y]).result], [Output("b", None)])
        assert graph.model is not None
        graph.model.opset_imports["local"] = 1
        graph.model.functions["local", f"F{i}", ""] = Function("local", f"F{i}", "", body)
        x = b.op(f"F{i}", [x], domain="local", type=F32).result
    return _finish(graph, x)


_INT = TensorType(DType.INT64, ())

FLAT: dict[str, Callable[[int], Graph]] = {
    f.__name__: f
    for f in (
        chain, wide, outputs, twins, residual, doubled, truths, masks, takes, slices, views, shapes, constants, dead,
        layers, products, branches, functions,
    )
}  # fmt: skip
"""Shapes whose size is a number of ops."""

NESTED: dict[str, Callable[[int], Graph]] = {f.__name__: f for f in (nested, nested_loops, constant_ifs)}
"""Shapes whose size is a depth: files hold about 30 levels."""

SHAPES = FLAT | NESTED


class _TooMany(BaseException):
    """Stops what takes too many steps."""


def steps(work: Callable[[], object], most: int | None = None) -> int:
    """Count the calls of functions, generators resumed included, that some work makes: the same on every machine.

    Args:
        work: What to do.
        most: Stop after that many and one more.
    """
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"
        if most is not None and count > most:
            raise _TooMany

    gc.disable()
    sys.setprofile(note)
    try:
        work()
    except _TooMany:
        pass
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def exponent(points: list[tuple[float, float]]) -> float:
    """Fit `cost = c * size^e` to (size, cost) pairs; gives `e`."""
    xs, ys = [math.log(n) for n, _ in points], [math.log(max(c, 1e-9)) for _, c in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
