"""Placing operators in a graph whose values are kept in a pool: for random graphs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Loc, ModelInfo, Op, Value
from memoptc.ir.dims import KnownDim
from memoptc.ir.types import DType, Shape, TensorType

FLOATS = (DType.FLOAT, DType.DOUBLE)
INTS = (DType.INT64, DType.INT32)
NUMBERS = FLOATS + INTS


def numbers(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Tame random numbers of an element type."""
    if dtype == DType.BOOL:
        return np.asarray(rng.integers(0, 2, shape), np.bool_)
    if dtype in INTS:
        return np.asarray(rng.integers(-4, 5, shape), dtype.numpy())
    return np.asarray(rng.standard_normal(shape), dtype.numpy())


class Placer:
    """Holds a graph and the values in it that new operators may take."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.pool_: list[Value] = []
        self.top = Graph("random", ModelInfo(opset_imports={"": 18}))
        self.b = Builder(self.top)

    def type(self, value: Value) -> TensorType:
        """The type of a tensor."""
        type_ = value.tensor_type
        assert type_ is not None
        return type_

    def shape(self, value: Value) -> tuple[KnownDim, ...]:
        """Extents of a tensor, all of them numbers or symbols."""
        shape = self.type(value).shape
        assert shape is not None
        return tuple(d for d in shape if d is not None)

    def pick(self, test: Callable[[Value], bool] = lambda v: True) -> Value | None:
        """One of the values that pass a test, `None` where none does."""
        fitting = [v for v in self.pool_ if test(v)]
        # Later values are likelier, so that graphs grow deep and not only wide.
        return max(self.random.choices(fitting, k=2), key=fitting.index) if fitting else None

    def emit(
        self, op_type: str, operands: list[Value], shape: Shape | None, dtype: DType | None = None, /, **attrs: Any
    ) -> Value:
        """Append an operator with one result, of the first operand's element type unless another is given."""
        return self.emit_many(op_type, operands, [TensorType(dtype or self.type(operands[0]).dtype, shape)], attrs)[0]

    def emit_many(
        self, op_type: str, operands: list[Value], types: list[TensorType], attrs: dict[str, Any],
        regions: dict[str, Graph] | None = None,
    ) -> tuple[Value, ...]:  # fmt: skip
        """Append an operator, its name and place numbered."""
        self.count += 1
        name = f"{op_type.lower()}_{self.count}"
        op = self.b.op(op_type, operands, attrs, outputs=len(types), type=types, regions=regions, name=name)
        op.name = f"/{name}"
        op.loc = Loc((op.name,))
        return op.results

    def ints(self, *values: int) -> Value:
        """A vector of int64."""
        return self.b.const(np.asarray(values, np.int64))

    def array(self, dtype: DType, *shape: int) -> Value:
        """A weight of random numbers."""
        return self.b.const(numbers(self.rng, dtype, shape))

    def is_float(self, value: Value) -> bool:
        """True if elements are float32."""
        return self.type(value).dtype == DType.FLOAT


class ControlFlow(Placer):
    """Places If, Loop and Scan, each with captures; `None` is given when nothing fits."""

    def branch(self) -> Value | None:
        """If: both branches compute from captured values."""
        a = self.pick(self.is_float)
        if a is None:
            return None
        test = self.flag(a)
        type_ = TensorType(DType.FLOAT, self.shape(a))
        regions = {}
        for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
            region = Graph(name)
            first = region.append(Op(op_type, [a], [type_], result_names=["shared"])).result
            add = region.append(Op("Add", [first, a], [type_], result_names=[f"{name}_sum"])).result
            region.set_outputs([add])
            regions[name] = region
        return self.emit_many("If", [test], [type_], {}, regions)[0]

    def flag(self, a: Value) -> Value:
        """A truth value that depends on numbers: whether all of a value lies below 0."""
        zero = self.b.const(np.asarray(0, np.float32))
        flat = self.emit("ReduceMax", [a], (), keepdims=0)
        return self.emit("Less", [flat, zero], (), DType.BOOL)

    def loop(self) -> Value | None:
        """Loop: one carried value, one collected value, one capture."""
        a = self.pick(self.is_float)
        if a is None:
            return None
        type_, steps = TensorType(DType.FLOAT, self.shape(a)), self.random.randint(1, 3)
        scalar, flag = TensorType(DType.INT64, ()), TensorType(DType.BOOL, ())
        body = Graph("loop_body")
        body.add_input("i", scalar)
        keep, state = body.add_input("keep", flag), body.add_input("state", type_)
        bounded = body.append(Op("Tanh", [state], [type_], result_names=["bounded"])).result
        after = body.append(Op("Add", [bounded, a], [type_], result_names=["after"])).result
        again = body.append(Op("Identity", [keep], [flag], result_names=["again"])).result
        body.set_outputs([again, after, bounded])
        count, true = self.b.const(np.asarray(steps, np.int64)), self.b.const(np.asarray(True))
        last, every = self.emit_many(
            "Loop", [count, true, a], [type_, TensorType(DType.FLOAT, (steps, *self.shape(a)))], {}, {"body": body}
        )
        self.pool_.append(every)
        return last

    def scan(self) -> Value | None:
        """Scan along axis 0: a running maximum and each step's sum."""
        a = self.pick(lambda v: self.is_float(v) and len(self.shape(v)) > 1)
        if a is None:
            return None
        rows, *rest = self.shape(a)
        row = TensorType(DType.FLOAT, tuple(rest))
        body = Graph("scan_body")
        state, item = body.add_input("state", row), body.add_input("item", row)
        best = body.append(Op("Max", [state, item], [row], result_names=["best"])).result
        total = body.append(Op("Add", [best, item], [row], result_names=["total"])).result
        body.set_outputs([best, total])
        start = self.emit("ReduceMin", [a, self.ints(0)], tuple(rest), keepdims=0)
        collected = TensorType(DType.FLOAT, (rows, *rest))
        final, every = self.emit_many("Scan", [start, a], [row, collected], {"num_scan_inputs": 1}, {"body": body})
        self.pool_.append(every)
        return final
