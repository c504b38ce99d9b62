"""Moves on random graphs: numbers stay, and nothing is left to do the second time."""

from __future__ import annotations

import numpy as np
import pytest
from numbers_of import compare, feed_of

from memoptc.instruments import VerifyEach
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Value
from memoptc.ir.dims import Sym
from memoptc.ir.infer import infer_shapes
from memoptc.ir.printer import print_graph
from memoptc.ir.types import DType, TensorType
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import parse

BINDING = {"N": 2, "S": 24}
PLANNED = {"N": 2, "S": 400}
"""Extents that moves are planned for: large enough for a kernel's own memory not to matter."""


class Draw:
    """A graph to build on, and random numbers; extents N and S are symbols."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("g", ModelInfo())
        self.b = Builder(self.graph)

    def input(self, *shape: int | str, dtype: DType = DType.FLOAT) -> Value:
        """A graph input."""
        dims = tuple(Sym(d) if isinstance(d, str) else d for d in shape)
        return self.graph.add_input(f"x{len(self.graph.inputs)}", TensorType(dtype, dims))

    def weight(self, *shape: int) -> Value:
        """A constant of random numbers."""
        return self.b.const(self.rng.standard_normal(shape).astype(np.float32))

    def pick(self, *choices: int) -> int:
        """One of some numbers."""
        return int(self.rng.choice(choices))


def check(graph: Graph, outputs: list[Value], pipeline: str, *, exact: bool = False) -> dict[str, int]:
    """Run a pipeline: well-formed, same numbers, a fixed point. Gives its counts."""
    graph.set_outputs(outputs)
    infer_shapes(graph)
    before = graph.clone()
    context = Context(dims=PLANNED)
    records = run_pipeline(parse(pipeline), graph, context, [VerifyEach()])
    once = print_graph(graph)
    run_pipeline(parse(pipeline), graph, Context(dims=PLANNED))
    assert print_graph(graph) == once
    feeds = [feed_of(before, b, seed) for seed, b in enumerate((BINDING, {"N": 1, "S": 24}, {"N": 3, "S": 30}))]
    assert compare(before, graph, exact=exact, feeds=feeds) > 0
    return {key: count for r in records for key, count in r.stats.items()}


@pytest.mark.parametrize("seed", range(12))
def test_sums_of_convolutions(seed: int) -> None:
    draw = Draw(seed)
    rank, filters = draw.pick(1, 2), draw.pick(1, 3)
    extents = [draw.pick(16, 32, 48) if seed % 2 else draw.pick(3, 5, 11, 16) for _ in range(draw.pick(2, 3))]
    parts = [draw.b.Tanh(draw.input("N", e, *["S"] * rank)) for e in extents]
    kernel = draw.pick(1, 3)
    weights = [draw.weight(filters, sum(extents), *[kernel] * rank)]
    if draw.pick(0, 1):
        weights.append(draw.weight(filters))
    stride, dilation = draw.pick(1, 2), draw.pick(1, 2)
    joined = draw.b.Concat(*parts, axis=draw.pick(1, -1 - rank))
    y = draw.b.Conv(
        joined, *weights, kernel_shape=[kernel] * rank, strides=[stride] * rank, dilations=[dilation] * rank,
        pads=[draw.pick(0, 1) for _ in range(2 * rank)],
    )  # fmt: skip
    counts = check(draw.graph, [draw.b.Relu(y)], "split-sums,drop-dead")
    assert ("Conv" in counts) == (sum(extents) % 16 != 0 or all(e % 16 == 0 for e in extents))


@pytest.mark.parametrize("seed", range(12))
def test_borders_of_transposed_convolutions(seed: int) -> None:
    draw = Draw(seed)
    kernel, stride, dilation = draw.pick(2, 3, 4), draw.pick(1, 2, 3), draw.pick(1, 2)
    x = draw.input("N", 4, "S", 7)
    group = draw.pick(1, 2)
    y = draw.b.ConvTranspose(
        x, draw.weight(4, 3, kernel, kernel), kernel_shape=[kernel, kernel], strides=[stride, stride],
        dilations=[dilation, dilation], group=group, pads=[draw.pick(0, 1) for _ in range(4)],
        output_padding=[draw.pick(0, stride - 1), 0],
    )  # fmt: skip
    starts, ends = [draw.pick(0, 1, 2), draw.pick(0, 1, -9)], [draw.pick(-1, -2, 2**40), draw.pick(-1, 9, 2**31 - 1)]
    y = draw.b.Slice(y, np.asarray(starts), np.asarray(ends), np.asarray([2, -1]))
    check(draw.graph, [y], "narrow,drop-dead", exact=True)


@pytest.mark.parametrize("seed", range(12))
def test_products_that_are_taken_apart(seed: int) -> None:
    draw = Draw(seed)
    heads, size, parts = draw.pick(1, 2, 3), draw.pick(1, 4), draw.pick(2, 3)
    b, width = draw.b, heads * size * parts
    x = draw.input("N", "S", 6)
    y = b.MatMul(x, draw.weight(6, width))
    y = b.Add(y, draw.weight(width)) if draw.pick(0, 1) else b.Mul(draw.weight(1, 1, width), y)
    axis = draw.pick(0, 1)
    if axis:
        y = b.Reshape(y, np.array([0, 0, parts, heads, size]))
        y = b.Transpose(y, perm=[2, 0, 3, 1, 4])
    place = 0 if axis else 2
    each = 1 if axis else heads * size
    if draw.pick(0, 1):
        taken = list(b.Split(y, num_outputs=parts, axis=place, _outputs=parts))
    else:
        cuts = [np.array([e * each]) for e in range(parts + 1)]
        taken = [b.Slice(y, cuts[i], cuts[i + 1], np.array([place])) for i in range(parts)]
    outputs = [b.Tanh(b.Squeeze(t, np.array([0])) if axis else t) for t in taken]
    counts = check(draw.graph, outputs, "split-products{least=1},(simplify,share-common,drop-dead)*")
    assert counts["parts"] == len(taken)


@pytest.mark.parametrize("seed", range(20))
def test_broadcasts_and_casts(seed: int) -> None:
    draw = Draw(seed)
    b = draw.b
    x, whole = draw.input("N", 1, 3), draw.input("N", "S", 3)
    values = [b.Expand(x, b.Shape(whole)), b.ConstantOfShape(b.Shape(whole)), b.Expand(whole, np.array([1, 1, 1])), x]
    for _ in range(8):
        one, other = (values[draw.pick(*range(len(values)))] for _ in range(2))
        other = one if draw.pick(0, 1, 2) == 0 else other
        kind = draw.pick(*range(7))
        if kind == 0:
            made = b.Tanh(one)
        elif kind == 1:
            made = b.Add(one, other)
        elif kind == 2:
            made = b.Where(b.Less(one, other), one, other)
        elif kind == 3:
            made = b.Max(one, other, values[-1])
        elif kind == 4:
            made = b.Transpose(b.Cast(b.Less(one, other), to=1), perm=[0, 2, 1])
            made = b.Transpose(made, perm=[0, 2, 1])
        elif kind == 5:
            made = b.Slice(
                b.Cast(b.Greater(one, other), to=1), np.array([0]), np.array([9]), np.array([draw.pick(0, 2)])
            )
        else:
            made = b.Mul(one, whole)
        values.append(made)
    check(draw.graph, [b.Abs(v) for v in values[-3:]], "(widen-late,drop-dead)*", exact=True)


@pytest.mark.parametrize("seed", range(12))
def test_dead_channels(seed: int) -> None:
    draw = Draw(seed)
    b, count = draw.b, draw.pick(8, 12, 32)
    filters, bias = (draw.rng.standard_normal(shape).astype(np.float32) for shape in ((count, 3, 3, 3), (count,)))
    readers = draw.rng.standard_normal((5, count, 1, 1)).astype(np.float32)
    silent, unread = draw.rng.random((2, count)) < 0.5
    filters[silent], bias[silent] = 0.0, 0.0
    readers[:, unread] = 0.0
    y = b.Relu(b.Conv(draw.input("N", 3, "S", 7), b.const(filters), b.const(bias), kernel_shape=[3, 3]))
    kind = draw.pick(0, 1, 2, 3)
    if kind == 1:
        y = b.MaxPool(y, kernel_shape=[2, 2])
    elif kind == 2:
        y = b.Clip(y, np.float32(-1), np.float32(6))
    elif kind == 3:
        y = b.Conv(y, draw.weight(count, 1, 3, 3), group=count, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    y = b.Conv(y, b.const(readers), kernel_shape=[1, 1])
    counts = check(draw.graph, [y], "drop-dead-channels,drop-dead")
    block = next(n for n in (16, 8, 4) if count % n == 0)
    alive = int((~(silent | unread)).sum())
    assert counts.get("channels", 0) == count - max(-(-alive // block), 1) * block
