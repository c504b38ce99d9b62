"""Small models for the tests of the runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse as parse_text


def parse(text: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """Read a graph in ONNX's text form and add weights to it."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> {text}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def constant_text(rng: np.random.Generator, *shape: int) -> str:
    """A constant of small normal numbers, in memoptc's text form."""
    values = rng.standard_normal(shape).astype(np.float32).reshape(-1) / 3
    return f"const() {{value=[{','.join(repr(float(v)) for v in values)}]}} : f32[{','.join(map(str, shape))}]"


def from_text(text: str) -> onnx.ModelProto:
    """Read a graph in memoptc's text form, and infer its types."""
    graph = parse_text(text)
    infer_shapes(graph)
    proto: onnx.ModelProto = to_proto(graph)
    return proto


def mlp() -> onnx.ModelProto:
    """Two layers with a symbolic batch."""
    return parse(
        "mlp (float[N, 16] x) => (float[N, 4] y) { a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }",
        w1=normal(16, 32, seed=1, scale=0.25),
        w2=normal(32, 4, seed=2, scale=0.2),
    )


def convolutions() -> onnx.ModelProto:
    """A small convolutional net."""
    return parse(
        """net (float[N, 3, 16, 16] x) => (float[N, 5] y) {
             a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
             b = Relu(a)
             c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
             d = Conv <kernel_shape = [3, 3], strides = [2, 2]> (c, w2)
             e = GlobalAveragePool(d)
             f = Flatten(e)
             y = MatMul(f, w3)
           }""",
        w1=normal(8, 3, 3, 3, seed=1, scale=0.2),
        b1=normal(8, seed=2, scale=0.3),
        w2=normal(6, 8, 3, 3, seed=3, scale=0.1),
        w3=normal(6, 5, seed=4),
    )


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Give a copy of one weight."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def with_weight(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    """Give a copy of the model with another content of one weight."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy
