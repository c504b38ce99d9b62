"""Models too large to keep: built by script, the same bytes every time.

    python benchmarks/models.py chain50k OUT.onnx [--nodes 50000]
    python benchmarks/models.py external3g OUT.onnx [--layers 48] [--width 4096]
    python benchmarks/models.py vit_s OUT.onnx [--classes 27]
    python benchmarks/models.py audio_s OUT.onnx [--classes 8]

chain50k is one long graph of cheap nodes: element-wise ones, Adds that reach back over up to 200 nodes, small
MatMuls, Constant nodes, views, and an If with two branches every thousand nodes; its batch is dynamic.
external3g is a stack of dense layers, 3 GB of float32 weights in OUT.onnx.data, written one layer at a time.
vit_s has the shape of ViT-S/16 (Dosovitskiy et al., 2021; 12 layers, width 384, 6 heads, 196 patches and a class
token) and random weights; audio_s is a small encoder of spectra with that of Whisper's (Radford et al., 2022): two
convolutions along time, then attention; the mean of its 128 tokens is read.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Value
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.types import DType, TensorType

WIDTH = 16
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def chain50k(path: Path, nodes: int = 50_000, seed: int = 0) -> None:
    """Write the chain.

    Args:
        path: Where to.
        nodes: How many nodes, those inside branches included.
        seed: Of structure and weights.
    """
    made = _Chain(nodes, seed)
    graph = helper.make_graph(
        made.nodes,
        "chain",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", WIDTH])],
        made.weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


class _Chain:
    """Nodes one after the other; `values` holds those of shape [batch, WIDTH] to reach back to."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.arrays = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.made = self.branches = 0
        self.values = ["x"]
        self.weights.append(numpy_helper.from_array(np.array([-1], np.int64), "flat"))
        self.weights.append(numpy_helper.from_array(np.array([-1, WIDTH], np.int64), "rows"))
        self.weights.append(numpy_helper.from_array(np.array(0.0, np.float32), "zero"))
        kinds: list[tuple[float, Callable[[], None]]] = [
            (0.45, self.unary), (0.25, self.skip), (0.1, self.matmul), (0.1, self.constant), (0.1, self.view),
        ]  # fmt: skip
        steps, weights = [k for _, k in kinds], [w for w, _ in kinds]
        while self.made < count - 8:
            if self.made // 1000 > self.branches:
                self.branch()
            else:
                self.rng.choices(steps, weights)[0]()
        while self.made < count:
            self.add("Tanh", [self.values[-1]], "y" if self.made == count - 1 else None)

    def add(self, op: str, inputs: list[str], name: str | None = None, *, keep: bool = True, **attrs: object) -> str:
        """Append a node and give its result's name."""
        name = name or f"v{self.made}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{self.made}", **attrs))
        self.made += 1
        if keep:
            self.values.append(name)
        return name

    def unary(self) -> None:
        self.add(self.rng.choice(["Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Abs"]), [self.values[-1]])

    def skip(self) -> None:
        back = self.values[-min(len(self.values), self.rng.randint(2, 200))]
        # Bounded again after every sum, so that fifty thousand of them do not overflow.
        total = self.add("Add", [self.values[-1], back], keep=False)
        self.add("Tanh", [total])

    def matmul(self) -> None:
        name = f"w{len(self.weights)}"
        content = self.arrays.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4
        self.weights.append(numpy_helper.from_array(content, name))
        self.add("MatMul", [self.values[-1], name])

    def constant(self) -> None:
        content = numpy_helper.from_array(np.array(self.rng.uniform(0.5, 1.5), np.float32))
        scale = self.add("Constant", [], keep=False, value=content)
        self.add("Mul", [self.values[-1], scale])

    def view(self) -> None:
        flat = self.add("Reshape", [self.values[-1], "flat"], keep=False)
        self.add("Reshape", [flat, "rows"])

    def branch(self) -> None:
        self.branches += 1
        x, k = self.values[-1], self.branches
        total = self.add("ReduceSum", [x], keep=False, keepdims=0)
        positive = self.add("Greater", [total, "zero"], keep=False)
        then = self._body(f"then{k}", ["Relu", "Neg"], x)
        other = self._body(f"else{k}", ["Neg", "Sigmoid"], x)
        self.made += len(then.node) + len(other.node)
        self.add("If", [positive], then_branch=then, else_branch=other)

    def _body(self, name: str, ops: list[str], captured: str) -> onnx.GraphProto:
        nodes, value = [], captured
        for index, op in enumerate(ops):
            nodes.append(helper.make_node(op, [value], [f"{name}_{index}"], name=f"{name}_n{index}"))
            value = f"{name}_{index}"
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(value, FLOAT, ["batch", WIDTH])])


def external3g(path: Path, layers: int = 48, width: int = 4096, seed: int = 0) -> None:
    """Write a stack of dense layers whose weights lie in `PATH.data`; one of them is in memory at a time.

    Args:
        path: Where to.
        layers: How many; each has `width * width` float32 weights.
        width: Features.
        seed: Of the weights. The last layer repeats the first one's weights, for -O1 to find.
    """
    data = path.with_name(path.name + ".data")
    tensors, nodes, value = [], [], "x"
    with data.open("wb") as file:
        for layer in range(layers):
            rng = np.random.default_rng((seed, layer % (layers - 1) if layers > 1 else 0))
            content = rng.standard_normal((width, width), np.float32)
            content *= np.float32(1 / np.sqrt(width))
            offset = -(-file.tell() // 4096) * 4096
            file.seek(offset)
            content.tofile(file)
            tensors.append(_external(f"w{layer}", (width, width), data.name, offset, content.nbytes))
            bias = f"b{layer}"
            tensors.append(numpy_helper.from_array(np.full(width, 0.01, np.float32), bias))
            nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"], name=f"dense{layer}"))
            nodes.append(helper.make_node("Add", [f"m{layer}", bias], [f"a{layer}"], name=f"bias{layer}"))
            value = "y" if layer == layers - 1 else f"t{layer}"
            nodes.append(helper.make_node("Tanh", [f"a{layer}"], [value], name=f"tanh{layer}"))
    shape = ["batch", width]
    x, y = (helper.make_tensor_value_info(name, FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "dense", [x], [y], tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )


def _external(name: str, shape: tuple[int, ...], file: str, offset: int, length: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def vit_s(classes: int = 27, layers: int = 12, width: int = 384, heads: int = 6, seed: int = 0) -> Graph:
    """Make an encoder of images `[batch, 3, 224, 224]` with scores `[batch, classes]` from its class token.

    Args:
        classes: Of the head, whose weights are those of the last MatMul and Add.
        layers: Attention and feed-forward blocks.
        width: Of hidden states.
        heads: Of each attention.
        seed: Of the weights.
    """
    graph = Graph("vit_s", ModelInfo(opset_imports={"": 20}))
    b = Builder(graph)
    made = _Encoder(b, width, heads, np.random.default_rng(seed))
    image = graph.add_input("image", TensorType(DType.FLOAT, (parse_dim("batch"), 3, 224, 224)))
    patches = b.Conv(image, made.weight(width, 3, 16, 16) * 8, strides=[16, 16])
    patches = b.Transpose(b.Reshape(patches, np.array([0, width, -1], np.int64)), perm=[0, 2, 1])
    batch = b.Slice(b.Shape(image), *(np.array([i], np.int64) for i in (0, 1, 0)))
    first = b.Expand(made.weight(1, 1, width), b.Concat(batch, np.array([1, width], np.int64), axis=0))
    x = b.Add(b.Concat(first, patches, axis=1), made.weight(1, 197, width, scale=0.1))
    for _ in range(layers):
        x = made.block(x)
    graph.set_outputs([made.dense(b.Gather(made.norm(x), np.int64(0), axis=1), classes, name="scores")])
    return graph


def audio_s(classes: int = 8, layers: int = 4, width: int = 192, heads: int = 3, seed: int = 0) -> Graph:
    """Make an encoder of spectra `[batch, 256, 64]` with scores `[batch, classes]` from the mean of its 128 tokens.

    Args:
        classes: Of the head, whose weights are those of the last MatMul and Add.
        layers: Attention and feed-forward blocks.
        width: Of hidden states.
        heads: Of each attention.
        seed: Of the weights.
    """
    graph = Graph("audio_s", ModelInfo(opset_imports={"": 20}))
    b = Builder(graph)
    made = _Encoder(b, width, heads, np.random.default_rng(seed))
    frames = graph.add_input("frames", TensorType(DType.FLOAT, (parse_dim("batch"), 256, 64)))
    x = b.Transpose(frames, perm=[0, 2, 1])
    x = b.Gelu(b.Conv(x, made.weight(width, 64, 3) * 8, pads=[1, 1], strides=[1]))
    x = b.Gelu(b.Conv(x, made.weight(width, width, 3) * 16, pads=[1, 1], strides=[2]))
    x = b.Add(b.Transpose(x, perm=[0, 2, 1]), made.weight(1, 128, width, scale=0.1))
    for _ in range(layers):
        x = made.block(x)
    pooled = b.ReduceMean(made.norm(x), np.array([1], np.int64), keepdims=0)
    graph.set_outputs([made.dense(pooled, classes, name="scores")])
    return graph


class _Encoder:
    """Layers over hidden states `[batch, tokens, width]`, normed before each (Xiong et al., 2020)."""

    def __init__(self, b: Builder, width: int, heads: int, rng: np.random.Generator) -> None:
        self.b, self.width, self.heads, self.rng = b, width, heads, rng

    def weight(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    def dense(self, x: Value, units: int, inner: int = 0, name: str = "") -> Value:
        product = self.b.MatMul(x, self.weight(inner or self.width, units))
        bias = self.weight(units, scale=0.1)
        return self.b.Add(product, bias, _name=name) if name else self.b.Add(product, bias)

    def norm(self, x: Value) -> Value:
        return self.b.LayerNormalization(x, np.ones(self.width, np.float32), np.zeros(self.width, np.float32))

    def block(self, x: Value) -> Value:
        x = self.b.Add(x, self._attention(self.norm(x)))
        inner = self.b.Gelu(self.dense(self.norm(x), 4 * self.width))
        return self.b.Add(x, self.dense(inner, self.width, 4 * self.width))

    def _split(self, x: Value) -> Value:
        each = self.b.Reshape(x, np.array([0, 0, self.heads, self.width // self.heads], np.int64))
        return self.b.Transpose(each, perm=[0, 2, 1, 3])

    def _attention(self, x: Value) -> Value:
        b = self.b
        q, k, v = (self._split(self.dense(x, self.width)) for _ in range(3))
        scale = np.float32((self.width // self.heads) ** -0.5)
        scores = b.Mul(b.MatMul(q, b.Transpose(k, perm=[0, 1, 3, 2])), scale)
        mixed = b.Transpose(b.MatMul(b.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
        return self.dense(b.Reshape(mixed, np.array([0, 0, self.width], np.int64)), self.width)


@click.group(help=__doc__)
def main() -> None:
    """Build a model."""


@main.command("chain50k")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--nodes", default=50_000, show_default=True)
def _chain50k(out: Path, nodes: int) -> None:
    chain50k(out, nodes)


@main.command("external3g")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--layers", default=48, show_default=True)
@click.option("--width", default=4096, show_default=True)
def _external3g(out: Path, layers: int, width: int) -> None:
    external3g(out, layers, width)


@main.command("vit_s")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--classes", default=27, show_default=True)
def _vit_s(out: Path, classes: int) -> None:
    onnx.save(to_proto(vit_s(classes)), out)


@main.command("audio_s")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--classes", default=8, show_default=True)
def _audio_s(out: Path, classes: int) -> None:
    onnx.save(to_proto(audio_s(classes)), out)


if __name__ == "__main__":
    main()
