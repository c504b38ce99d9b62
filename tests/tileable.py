"""Operators with iteration spaces under random attributes, alone or in graphs, for property tests of tiling.

`MOVES` has, per operator, a function that applies it to a value of a rank it fits; `tileable_graph(seed, size)` chains
them. Numbers stay tame. What jumps (rounding, comparing, the largest element's place) is applied only to values that
no sum in another order can have changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op, Output, Value
from memoptc.ir.dims import Dim, KnownDim, Sym, free_symbols
from memoptc.ir.iteration import accumulations, iteration_space
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.memory.footprint import used_values

EXTENTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 19)
WIDE = (5, 7, 8, 9, 11, 12, 13, 16, 17, 19, 24)
THEMES = (
    "Conv ConvTranspose MaxPool AveragePool Resize DepthToSpace SpaceToDepth Pad Relu Add Sub Concat Slice Clip "
    "BatchNormalization Conv Conv Conv Relu Add com.microsoft::FusedConv MaxPool ConvTranspose Resize Split ReduceMean",
    "MatMul Softmax Transpose Reshape LayerNormalization Add Mul Gelu ReduceMean Gather Split Concat Slice Expand "
    "Einsum Gemm Flatten Squeeze Unsqueeze CumSum Where Pad com.microsoft::MultiHeadAttention Reshape Transpose",
    "MatMul Gemm Einsum Gelu Relu Add Mul Relu Add ReduceSum ReduceMean ReduceMax ReduceMin ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceL1 ReduceProd ArgMax ArgMin TopK Transpose GlobalAveragePool GlobalMaxPool Conv MatMul Attend "
    "Attend Attend ReduceLogSumExp",
)
"""Operators that stand together in vision, in language, and before what accumulates; half of the graphs are of one
kind."""
Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Move:
    """One operator.

    Args:
        op_type: Its name, with its domain unless that is the standard one.
        ranks: Of the values it is applied to.
        make: Applies it; gives one of its results, or `None` when it does not fit.
        jumps: Whether a small change of an operand can be a large one of the result.
        opset: In which it exists.
    """

    op_type: str
    ranks: tuple[int, ...]
    make: Callable[[Maker, Value], Value | None]
    jumps: bool = False
    opset: int = 21


class Maker:
    """Makes a graph's inputs, and ops on request.

    Args:
        seed: Decides on everything.
        symbols: Whether some extents are symbols.
        opset: Version of standard ONNX.
    """

    def __init__(self, seed: int, *, symbols: bool = False, opset: int = 21) -> None:
        self.r = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.symbols = symbols
        self.graph = Graph("tileable", ModelInfo(opset_imports={"": opset, "com.microsoft": 1}))
        self.b = Builder(self.graph)
        self.pool: list[Value] = []
        self.noisy: set[Value] = set()

    # -- values ---------------------------------------------------------------------------------------

    def input(self, *shape: Dim, dtype: DType = DType.FLOAT) -> Value:
        return self.graph.add_input(f"in{len(self.graph.inputs)}", TensorType(dtype, shape))

    def array(self, *shape: int) -> Value:
        return self.b.const(np.asarray(self.rng.standard_normal(shape), np.float32), "w")

    def ints(self, *values: int) -> Value:
        return self.b.const(np.asarray(values, np.int64), "n")

    def scalar(self, value: object, dtype: Any) -> Value:
        return self.b.const(np.asarray(value, dtype), "s")

    def weight(self, *shape: int) -> Value:
        """A constant, or now and then an input."""
        return self.input(*shape) if self.r.random() < 0.15 else self.array(*shape)

    def like(self, value: Value, *, repeated: float = 0.3) -> Value:
        """Something that broadcasts against a value: another one, or a constant."""
        shape = dims(value)
        others = [v for v in self.pool if v is not value and dims(v) == shape and is_float(v)]
        if others and self.r.random() < 0.5:
            return self.r.choice(others)
        own = [d if isinstance(d, int) and self.r.random() > repeated else 1 for d in shape]
        return self.array(*own[self.r.randint(0, len(own)) if self.r.random() < 0.5 else 0 :])

    # -- graphs ---------------------------------------------------------------------------------------

    def op(self, op_type: str, *operands: Value | None, _outputs: int = 1, **attrs: Any) -> Value:
        """Make an op, with inferred types; the first result."""
        made = self.b.op(op_type, operands, {k: v for k, v in attrs.items() if v is not None}, outputs=_outputs)
        if any(v in self.noisy for v in made.operands) or any(
            a.reorders for a in (*iteration_space(made), *accumulations(made))
        ):
            self.noisy.update(made.results)
        return made.results[0]

    def start(self, rank: int) -> Value:
        """An input of a rank; of rank 4 an image, of rank 3 a batch of sequences."""
        wide = [self.r.choice(WIDE if self.r.random() < 0.7 else EXTENTS) for _ in range(rank)]
        shape: list[Dim] = list(wide)
        if rank > 2:
            shape[0] = self.r.choice((1, 2, 3))
        if rank > 3:
            shape[1] = self.r.choice((1, 2, 3, 4, 6, 8))
        if self.symbols:
            symbolic = self.r.sample(range(rank), self.r.choice((1, 1, 1, 2)) if rank > 1 else 1)
            if rank == 4 and self.r.random() < 0.6:
                symbolic = self.r.choice(([2], [3], [2, 0], [3, 2]))
            for name, axis in zip(("S", "N"), symbolic, strict=False):
                shape[axis] = Sym(name)
        return self.input(*shape)

    def branch(self, x: Value) -> Value | None:
        """An If whose branches use a value from outside: a barrier."""
        regions = {}
        for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
            regions[name] = Graph(name)
            inner = Builder(regions[name]).op(op_type, [x])
            regions[name].set_outputs([inner.result])
        made = self.b.op("If", [self.input(dtype=DType.BOOL)], type=x.type, regions=regions)
        if x in self.noisy:
            self.noisy.add(made.result)
        return made.result

    def apply(self, move: Move, value: Value) -> Value | None:
        """Apply a move if it fits, and if its result is neither empty nor of unknown rank."""
        if len(dims(value)) not in move.ranks or (move.jumps and value in self.noisy):
            return None
        before, pool = len(self.b.made), len(self.pool)
        result = move.make(self, value)
        if result is None:
            del self.pool[pool:]
            return None
        made = [r for op in self.b.made[before:] for r in op.results if not r.is_absent]
        known = [d for v in made for d in dims(v) if isinstance(d, int)]
        if not all(map(self._whole, made)) or min(known, default=1) < 1 or elements(result) > 40_000:
            for op in reversed(self.b.made[before:]):
                op.erase()
            del self.b.made[before:]
            del self.pool[pool:]
            return None
        return result

    @staticmethod
    def _whole(value: Value) -> bool:
        if not isinstance(value.type, TensorType) or value.type.shape is None:
            return False
        return all(d is not None and free_symbols(d) <= {"S", "N"} for d in value.type.shape)

    def finish(self) -> Graph:
        """Return what nobody uses, and sometimes what is used, too."""
        results = [v for v in self.pool if v.op is not None and not v.has_uses]
        inner = [v for v in self.pool if v.op is not None and v.has_uses]
        if inner and self.r.random() < 0.3:
            results.append(self.r.choice(inner))
        results = results or self.pool[-1:]
        if self.r.random() < 0.1:
            results.append(results[0])
        self.graph.set_outputs(results, [Output(f"out{i}", v.type) for i, v in enumerate(results)])
        return self.graph


def dims(value: Value) -> tuple[Dim, ...]:
    return (value.type.shape or ()) if isinstance(value.type, TensorType) else ()


def elements(value: Value) -> int:
    total = 1
    for d in dims(value):
        total *= d if isinstance(d, int) else 8
    return total


def is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype == DType.FLOAT


BRANCH = Move("If", (1, 2, 3, 4, 5), Maker.branch)


def tileable_graph(seed: int, size: int, moves: Mapping[str, Move], *, symbols: bool = False) -> Graph:
    """Make a random graph.

    Args:
        seed: Decides on everything; a smaller size gives the beginning of the same graph.
        size: Moves made.
        moves: What they are chosen from.
        symbols: Whether some extents are symbols.
    """
    moves = {**moves, "If": BRANCH}
    maker = Maker(seed, symbols=symbols)
    first = maker.start(maker.r.choice((2, 3, 3, 4, 4, 4, 4, 5)))
    maker.pool.append(first)
    if maker.r.random() < 0.3:
        maker.pool.append(maker.input(*dims(first)))
    names = [n for n, m in moves.items() if m.opset == 21]
    if maker.r.random() < 0.5:
        kind = 2 if maker.r.random() < 0.4 else 0 if len(dims(first)) == 4 else 1
        names = [*THEMES[kind].split(), "If"]
    for _ in range(size):
        for _ in range(20):
            floats = [v for v in maker.pool if is_float(v)]
            value = max(maker.r.choices(floats, k=2), key=floats.index)
            made = maker.apply(moves[maker.r.choice(names)], value)
            if made is not None:
                maker.pool.append(made)
                break
    return maker.finish()


def bound(dim: KnownDim, binding: Mapping[str, int]) -> int:
    return dim if isinstance(dim, int) else int(dim.evaluate(binding))


def feed_of(graph: Graph, binding: Mapping[str, int], seed: int = 0) -> Feed:
    """Numbers for a graph's inputs, with symbols bound; indices are small."""
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for value in graph.inputs:
        assert isinstance(value.type, TensorType)
        shape = value.type.bind(binding).static_shape
        assert shape is not None
        whole = value.type.dtype.is_integer()
        numbers = rng.integers(0, 3, shape) if whole else rng.standard_normal(shape)
        feed[value.name] = np.asarray(numbers, value.type.dtype.numpy())
    return feed


def ancestors(values: list[Value]) -> set[Op]:
    """All ops that values are computed from."""
    found: set[Op] = set()
    todo = [v.op for v in values]
    while todo:
        op = todo.pop()
        if op is not None and op not in found:
            found.add(op)
            todo += [v.op for v in used_values(op)]
    return found
