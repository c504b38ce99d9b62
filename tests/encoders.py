"""Small encoders with attention over tokens, as exporters write them, with random weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Readout = Literal["tokens", "first", "mean"]

WIDTH, HEADS = 8, 2


class _Writer:
    """Nodes and weights as they come."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def op(self, kind: str, *operands: str, **attrs: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, operands, [name], name=f"node_{name}", **attrs))
        return name

    def const(self, content: npt.ArrayLike) -> str:
        array = np.asarray(content)
        name = f"c{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.const((self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))


def encoder(
    layers: int = 3,
    tokens: int | str = "tokens",
    *,
    readout: Readout = "tokens",
    masked: bool = False,
    pre_norm: bool = True,
    flat_heads: bool = False,
    batch: int | str = "batch",
    seed: int = 0,
) -> onnx.ModelProto:
    """Make an encoder `x[batch, tokens, 8]` (and `mask[batch, tokens]`, float 0 or 1) of 2 heads.

    Args:
        layers: Attention and feed-forward blocks.
        tokens: Their number, or a symbol.
        readout: All hidden states, that of token 0, or their mean.
        masked: Whether tokens whose mask is 0 get no attention.
        pre_norm: Whether norms stand before the blocks, as in ViT, or behind, as in BERT.
        flat_heads: Whether attention is computed over `[batch * heads, tokens, width]`; a mask is added to scores
            `[batch, heads, tokens, tokens]` then, as in BART.
        batch: Its extent, or a symbol.
        seed: Of the weights.
    """
    w = _Writer(seed)
    rows = w.op("Shape", "x", start=0, end=2)

    def norm(x: str) -> str:
        return w.op("LayerNormalization", x, w.weight(WIDTH), w.weight(WIDTH))

    def heads(x: str) -> str:
        split = w.op(
            "Reshape", w.op("MatMul", x, w.weight(WIDTH, WIDTH)), w.op("Concat", rows, w.ints(HEADS, 4), axis=0)
        )
        moved = w.op("Transpose", split, perm=[0, 2, 1, 3])
        if not flat_heads:
            return moved
        count = w.op("Shape", "x", start=1, end=2)
        return w.op("Reshape", moved, w.op("Concat", w.ints(-1), count, w.ints(4), axis=0))

    def attention(x: str) -> str:
        q, k, v = heads(x), heads(x), heads(x)
        scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 2, 1] if flat_heads else [0, 1, 3, 2]))
        scores = w.op("Mul", scores, w.const(np.float32(0.5)))
        if masked:
            gap = w.op("Mul", w.op("Sub", w.const(np.float32(1)), "mask"), w.const(np.float32(-1e4)))
            count = w.op("Shape", "x", start=1, end=2)
            if flat_heads:
                first = w.op("Shape", "x", start=0, end=1)
                scores = w.op("Reshape", scores, w.op("Concat", first, w.ints(HEADS), count, count, axis=0))
            scores = w.op("Add", scores, w.op("Unsqueeze", gap, w.ints(1, 2)))
            if flat_heads:
                scores = w.op("Reshape", scores, w.op("Concat", w.ints(-1), count, count, axis=0))
        mixed = w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
        if flat_heads:
            mixed = w.op(
                "Reshape", mixed, w.op("Concat", w.op("Shape", "x", start=0, end=1), w.ints(HEADS, -1, 4), axis=0)
            )
        merged = w.op(
            "Reshape", w.op("Transpose", mixed, perm=[0, 2, 1, 3]), w.op("Concat", rows, w.ints(WIDTH), axis=0)
        )
        return w.op("MatMul", merged, w.weight(WIDTH, WIDTH))

    def feed_forward(x: str) -> str:
        return w.op("MatMul", w.op("Relu", w.op("MatMul", x, w.weight(WIDTH, 16))), w.weight(16, WIDTH))

    x = "x"
    for _ in range(layers):
        for block in (attention, feed_forward):
            x = w.op("Add", x, block(norm(x))) if pre_norm else norm(w.op("Add", block(x), x))
    if pre_norm:
        x = norm(x)
    if readout == "first":
        x = w.op("MatMul", w.op("Gather", x, w.const(np.int64(0)), axis=1), w.weight(WIDTH, 3))
    elif readout == "mean":
        x = w.op("MatMul", w.op("ReduceMean", x, w.ints(1), keepdims=0), w.weight(WIDTH, 3))
    w.nodes[-1].output[0] = "y"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, tokens, WIDTH])]
    if masked:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch, tokens]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(w.nodes, "encoder", inputs, [output], w.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)
