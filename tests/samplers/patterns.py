"""Chains of operators that passes look for, with open extents and near-misses, and with captures of an If's branches.

Each pattern is a function of a numpy generator that gives a `Chain`: nodes on one or two inputs whose extents are
symbols, weights, and the feeds under several bindings, extents of 0, 1 and 2 among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from samplers.sample import Array, Feed, Rng, floats, pick

OPSETS = (8, 9, 10, 11, 13, 17, 18)
_EXTENTS = (0, 1, 2, 3, 5, 8)


@dataclass
class Chain:
    """Nodes under construction.

    Args:
        r: Draws all that is free.
        opset: Of standard ONNX; operators are spelled for it.
    """

    r: Rng
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)

    def add(self, op_type: str, *operands: str, outputs: int = 1, **attrs: Any) -> str:
        """Append a node; gives its first result."""
        name = f"v{len(self.nodes)}"
        results = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, operands, results, **attrs))
        return name

    def weight(self, array: Array) -> str:
        """Add a weight."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def floats(self, *shape: int) -> str:
        """Add a weight of plain numbers."""
        return self.weight(floats(self.r, *shape))

    def ints(self, *values: int) -> str:
        """Add a weight of integers."""
        return self.weight(np.asarray(values, np.int64))

    def input(self, *dims: int | str) -> str:
        """Add an input of floats."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = dims
        return name

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        """Take a part, in the spelling of the opset."""
        if self.opset < 10:
            return self.add("Slice", x, starts=[start], ends=[end], axes=[axis])
        return self.add("Slice", x, *(self.ints(v) for v in (start, end, axis, step)))

    def axes(self, op_type: str, x: str, *axes: int, **attrs: Any) -> str:
        """Squeeze, Unsqueeze or ReduceSum along axes, in the spelling of the opset."""
        if self.opset < 13:
            return self.add(op_type, x, axes=list(axes), **attrs)
        return self.add(op_type, x, self.ints(*axes), **attrs)

    def elementwise(self, x: str) -> str:
        """An element-wise op, or none."""
        way = int(self.r.integers(5))
        if way < 3:
            return self.add(("Relu", "Sigmoid", "Neg")[way], x)
        return self.add("Mul", x, self.weight(np.float32(0.5).reshape(()))) if way == 3 else x

    def model(self, last: str, *, branch: bool) -> onnx.ModelProto:
        """Make a model whose outputs are the result and its shape; the chain's tail is a branch that captures it."""
        if branch:
            then = helper.make_graph(
                [helper.make_node("Add", [last, last], ["t"])], "then", [], [helper.make_empty_tensor_value_info("t")]
            )
            other = helper.make_graph(
                [helper.make_node("Neg", [last], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")]
            )
            self.nodes.append(helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other))
        else:
            self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        self.nodes.append(helper.make_node("Shape", ["y"], ["shape"]))
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(d)) for n, d in self.inputs.items()]
        inputs += [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])] if branch else []
        outputs = [helper.make_empty_tensor_value_info(n) for n in ("y", "shape", last)]
        graph = helper.make_graph(self.nodes, "chain", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7)

    def feeds(self, *, branch: bool) -> list[Feed]:
        """Inputs under several bindings, the first without extents of 0."""
        symbols = sorted({d for dims in self.inputs.values() for d in dims if isinstance(d, str)})
        bindings = [dict.fromkeys(symbols, e) for e in (5, 1, 2, 0)]
        bindings += [{s: int(self.r.choice(_EXTENTS)) for s in symbols} for _ in range(4)]
        found: list[Feed] = []
        for number, binding in enumerate(bindings):
            feed = {
                name: floats(self.r, *(binding[d] if isinstance(d, str) else d for d in dims))
                for name, dims in self.inputs.items()
            }
            found.append(feed | ({"flag": np.asarray(number % 2 == 0)} if branch else {}))
        return found


Pattern = Callable[[Chain], str]


def part_of_convolution(c: Chain) -> str:
    """What narrow looks for: a window, a product or a normalization of which a part is used."""
    x = c.elementwise(c.input("n", 4, "h", "w"))
    way = int(c.r.integers(3))
    if way == 0:
        pad = int(c.r.integers(2))
        x = c.add("Conv", x, c.floats(6, 4, 3, 3), kernel_shape=[3, 3], pads=[pad] * 4)
    elif way == 1:
        x = c.add("MaxPool", x, kernel_shape=[2, 2], strides=[int(c.r.integers(1, 3))] * 2)
    else:
        x = c.add("Softmax", x, axis=3)
    x = c.elementwise(x)
    axis = int(c.r.integers(4))
    if c.r.random() < 0.5:
        return c.slice(x, int(c.r.integers(-2, 2)), int(pick(c.r, -1, 1, 2, 100)), axis)
    return c.add("Gather", x, c.weight(np.asarray(pick(c.r, 0, -1))), axis=axis)


def late_broadcast(c: Chain) -> str:
    """What widen-late looks for: a mask that is expanded, compared and added."""
    x, mask = c.input("n", "s", 4), c.input("n", "s", 1)
    wide = c.add("Expand", mask, c.add("Shape", x))
    wide = c.elementwise(wide)
    if c.r.random() < 0.5:
        wide = c.add("Cast", c.add("Cast", wide, to=int(TensorProto.FLOAT16)), to=int(TensorProto.FLOAT))
        wide = c.add("Transpose", wide, perm=[0, 2, 1])
        x = c.add("Transpose", x, perm=[0, 2, 1])
    return c.add("Add", x, wide) if c.r.random() < 0.7 else c.add("Concat", x, wide, axis=0)


def parts_of_product(c: Chain) -> str:
    """What split-products looks for: a product that is taken apart."""
    x = c.input("n", "s", 8)
    wide = c.add("MatMul", x, c.floats(8, 12))
    if c.r.random() < 0.5:
        wide = c.add("Add", wide, c.floats(12))
    if c.r.random() < 0.5:
        wide = c.add("Reshape", wide, c.ints(0, 0, 3, 4))
        parts = [c.add("Gather", wide, c.weight(np.asarray(i)), axis=2) for i in range(3)]
    else:
        parts = [c.slice(wide, 4 * i, 4 * i + pick(c.r, 4, 4, 4, 5), 2) for i in range(3)]
        parts = [c.slice(p, 0, 4, 2) for p in parts]
    return c.add("Mul", c.add("Sub", parts[0], parts[1]), parts[2])


def sum_of_products(c: Chain) -> str:
    """What split-sums looks for: a product of joined operands."""
    a, b = c.input("n", "s", 8), c.input("n", "s", pick(c.r, 8, 3))
    joined = c.add("Concat", c.elementwise(a), c.elementwise(b), axis=2)
    return c.elementwise(c.add("MatMul", joined, c.floats(8 + int(c.inputs[b][2]), 2)))


def attention(c: Chain) -> str:
    """What scale-early, fuse-attention and fit look for; lengths of queries and keys may differ."""
    q, k = c.input("n", 2, "s", 4), c.input("n", 2, pick(c.r, "s", "t"), 4)
    scores = c.add("MatMul", q, c.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = c.add(pick(c.r, "Mul", "Div"), scores, c.weight(np.float32(2.0).reshape(())))
    if c.r.random() < 0.4:
        scores = c.add("Add", scores, c.input("n", 1, 1, c.inputs["x1"][2]))
    return c.add("MatMul", c.add("Softmax", scores, axis=3), pick(c.r, k, c.elementwise(k)))


def dead_channels(c: Chain) -> str:
    """What drop-dead-channels looks for: filters of zeros between convolutions."""
    x = c.input("n", 3, "h", "w")
    first, second = floats(c.r, 32, 3, 1, 1), floats(c.r, 4, 32, 1, 1)
    first[:: pick(c.r, 1, 2)] = 0
    second[:, :: pick(c.r, 2, 5, 100)] = 0
    x = c.add("Conv", x, c.weight(first), kernel_shape=[1, 1])
    x = c.add(pick(c.r, "Relu", "Sigmoid", "Tanh"), x)
    return c.add("Conv", x, c.weight(second), kernel_shape=[1, 1])


def tiles(c: Chain) -> str:
    """What fit tiles: two convolutions over much."""
    x = c.input("n", 3, "h", "w")
    x = c.add("Relu", c.add("Conv", x, c.floats(16, 3, 3, 3), kernel_shape=[3, 3], pads=[1] * 4))
    x = c.add("Conv", x, c.floats(2, 16, 3, 3), kernel_shape=[3, 3], pads=[1] * 4, strides=[pick(c.r, 1, 2)] * 2)
    return c.elementwise(x)


def takes(c: Chain) -> str:
    """What narrow and simplify look for: parts of parts, along axes that commute."""
    x = c.elementwise(c.input("n", 4, "h", "w"))
    rank = 4
    for _ in range(3):
        axis = int(c.r.integers(rank))
        if rank > 1 and c.r.random() < 0.4:
            x, rank = c.add("Gather", x, c.weight(np.asarray(pick(c.r, 0, -1))), axis=axis), rank - 1
        elif c.r.random() < 0.3:
            x = c.add("Transpose", x, perm=c.r.permutation(rank).tolist())
        elif c.r.random() < 0.3:
            x = c.add("Gather", x, c.ints(0, pick(c.r, 0, -1)), axis=axis)
        else:
            step = pick(c.r, 1, 1, 2, -1) if c.opset >= 10 else 1
            start, end = (int(c.r.integers(-2, 2)), pick(c.r, -1, 2, 100)) if step > 0 else (-1, -100)
            x = c.slice(x, start, end, axis, step)
    return c.elementwise(x)


def batch_normalized(c: Chain) -> str:
    """What fuse-conv-bn looks for: a convolution or product, scaled and shifted per channel."""
    x = c.input("n", 3, "h", "w")
    shape = [3, 4, 1, 1] if (turned := c.r.random() < 0.3) else [4, 3, 1, 1]
    x = c.add("ConvTranspose" if turned else "Conv", x, c.floats(*shape), kernel_shape=[1, 1])
    x = c.elementwise(x) if c.r.random() < 0.2 else x
    if c.r.random() < 0.6:
        spread = c.weight(np.abs(floats(c.r, 4)) + np.float32(0.1))
        x = c.add("BatchNormalization", x, c.floats(4), c.floats(4), c.floats(4), spread)
    else:
        x = c.add("Add", c.add("Mul", x, c.floats(4, 1, 1)), c.floats(*pick(c.r, (4, 1, 1), (1, 1, 1))))
    return c.elementwise(x)


def twins(c: Chain) -> str:
    """What share-common, share-weights and share-transposed look for: the same twice."""
    x, array = c.input("n", "s", 6), floats(c.r, 6, 6)
    a = c.elementwise(c.add("MatMul", x, c.weight(array)))
    b = c.add("MatMul", pick(c.r, x, a), c.weight(array.T if c.r.random() < 0.5 else array))
    if c.r.random() < 0.5:
        b = c.add("Transpose", c.add("Transpose", b, perm=[1, 0, 2]), perm=[1, 0, 2])
    return c.add("Add", a, c.add("Mul", b, c.weight(np.float32(pick(c.r, 0.0, 1.0, 0.5)).reshape(()))))


def skipped_norm(c: Chain) -> str:
    """What fuse-skip-norm looks for: a sum with its norm over the last axis."""
    x, skip = c.input("n", "s", 8), c.input("n", "s", pick(c.r, 8, 8, 1))
    total = c.add("Add", x, skip)
    if c.opset >= 17 and c.r.random() < 0.6:
        norm = c.add("LayerNormalization", total, c.floats(8), c.floats(8), axis=-1, epsilon=1e-5)
    else:
        square = c.add("Pow", total, c.weight(np.float32(2.0).reshape(())))
        mean = c.add("ReduceMean", square, axes=[-1]) if c.opset < 18 else c.add("ReduceMean", square, c.ints(-1))
        root = c.add("Sqrt", c.add("Add", mean, c.weight(np.float32(1e-5).reshape(()))))
        norm = c.add("Mul", c.floats(8), c.add("Div", total, root))
    return c.add("Add", norm, total) if c.r.random() < 0.5 else norm


def rotary(c: Chain) -> str:
    """What fuse-rotary looks for: halves of heads that are turned against each other by angles of positions."""
    x, positions = c.input("n", 2, "s", 8), c.input("n", "s", 1)
    half = c.add("Mul", positions, c.weight(np.asarray([1.0, 0.1, 0.01, 0.001], np.float32)))
    angles = c.add("Concat", half, half if c.r.random() < 0.8 else c.elementwise(half), axis=-1 if c.opset > 10 else 2)
    cos, sin = (c.axes("Unsqueeze", c.add(op, angles), 1) for op in ("Cos", "Sin"))
    low, high = c.slice(x, 0, 4, 3), c.slice(x, 4, pick(c.r, 8, 8, 100), 3)
    turned = c.add("Concat", c.add("Neg", high), low, axis=3)
    return c.add("Add", c.add("Mul", x, cos), c.add("Mul", turned, sin))


def wide_product(c: Chain) -> str:
    """What mix-weights, to-half and share-transposed look for: products whose weights are worth storing in few bits."""
    x, array = c.elementwise(c.input("n", "s", 64)), floats(c.r, 64, 96) / np.float32(8)
    y = c.add("MatMul", x, c.weight(array))
    y = c.add("MatMul", c.elementwise(y), c.weight(np.ascontiguousarray(array.T)))
    return c.add("Add", y, x)


def coded(c: Chain) -> str:
    """What passes on codes look for: a product between quantized values."""
    x = c.input("n", "s", 8)
    scale, zero = c.weight(np.float32(0.05).reshape(())), c.weight(np.asarray(pick(c.r, 0, 3), np.uint8))
    if c.opset >= 10:
        x = c.add("DequantizeLinear", c.add("QuantizeLinear", x, scale, zero), scale, zero)
    if c.r.random() < 0.5:
        x = c.add("Transpose", x, perm=[1, 0, 2])
    if c.opset >= 13:
        codes = c.weight(np.asarray(c.r.integers(-127, 128, (8, 6)), np.int8))
        w = c.add("DequantizeLinear", codes, c.weight(np.full(6, 0.01, np.float32)), axis=1)
    else:
        w = c.floats(8, 6)
    return c.elementwise(c.add("MatMul", x, w))


PATTERNS: dict[str, Pattern] = {
    p.__name__: p
    for p in (
        part_of_convolution,
        late_broadcast,
        parts_of_product,
        sum_of_products,
        attention,
        dead_channels,
        tiles,
        takes,
        batch_normalized,
        twins,
        skipped_norm,
        rotary,
        coded,
        wide_product,
    )
}


def chain(name: str, r: Rng) -> tuple[onnx.ModelProto, list[Feed]]:
    """Make a model of a pattern, and feeds."""
    made = Chain(r, int(r.choice(OPSETS)))
    branch = bool(r.random() < 0.3)
    last = PATTERNS[name](made)
    return made.model(last, branch=branch), made.feeds(branch=branch)
