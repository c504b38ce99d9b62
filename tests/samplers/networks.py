"""Small networks of layers that passes with data look for: products, convolutions, attention and decoders.

Each is a function of a numpy generator that gives a model, feeds under several bindings whose first is the kind of data
to calibrate with, and the passes that have something to do in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from decoder_runs import feed
from decoders import Style, decoder
from encoders import encoder
from onnx import TensorProto, helper

from memoptc.ir.onnx_io import read_onnx
from memoptc.testing.numbers import Feed, feed_of
from samplers.patterns import Chain
from samplers.sample import Rng, floats, pick

Network = tuple[onnx.ModelProto, list[Feed], tuple[str, ...]]

_OF_PRODUCTS = (
    "smooth",
    "split-outliers",
    "factorize{smallest=256}",
    "cluster-weights{smallest=256}",
    "scale-columns{observe=true}",
    "mix-weights{smallest=256}",
    "quantize-weights{smallest=256}",
    "quantize-search",
    "prune",
    "feature-statistics",
    'to-half{format="bfloat16",smallest=64,storage=true}',
)
_OF_CLASSIFIERS = ("early-exit{max_disagreement=0.3}", "early-exit{threshold=0.5}")
_OF_CONVOLUTIONS = ("equalize", "prune", "quantize-search", "quantize-weights{smallest=64}", "drop-dead-channels")


def perceptron(r: Rng) -> Network:
    """Products with activations between, some features large, some hidden units dead, weights of low rank."""
    c = Chain(r, int(pick(r, 13, 17, 18, 21)))
    width, classes = int(pick(r, 16, 32, 64)), int(pick(r, 2, 3, 10))
    x = c.input("n", width)
    for _ in range(int(r.integers(2, 5))):
        if c.opset >= 17 and r.random() < 0.5:
            gain = np.where(r.random(width) < 0.1, 20, 1).astype(np.float32)
            x = c.add("LayerNormalization", x, c.weight(gain), c.floats(width), axis=-1)
        weight = floats(r, width, width) / np.float32(np.sqrt(width))
        if r.random() < 0.3:
            weight = weight[:, :3] @ weight[:3]
        weight[:, r.random(width) < 0.2] *= np.float32(pick(r, 0, 1, 8))
        x = c.add("MatMul", x, c.weight(weight))
        if r.random() < 0.7:
            x = c.add("Add", x, c.floats(width))
        x = c.add(pick(r, "Relu", "Relu", "Sigmoid", "Tanh"), x)
    x = c.add("MatMul", x, c.floats(width, classes))
    if r.random() < 0.5:
        x = c.add("Softmax", x, axis=1)
    model = _model(c, x, ("n", classes))
    return model, _feeds(model, r), (*_OF_PRODUCTS, *_OF_CLASSIFIERS)


def images(r: Rng) -> Network:
    """Convolutions whose channels differ in scale, normalised or not, with a classifier behind."""
    c = Chain(r, int(pick(r, 13, 18)))
    x, width = c.input("n", 3, pick(r, "h", 8), 8), 3
    for _ in range(int(r.integers(2, 4))):
        wide = int(pick(r, 8, 16))
        weight = floats(r, wide, width, 3, 3) * (2.0 ** r.integers(-3, 4, (wide, 1, 1, 1))).astype(np.float32) / 8
        weight[r.random(wide) < 0.15] = 0
        x = c.add("Conv", x, c.weight(weight), c.floats(wide), kernel_shape=[3, 3], pads=[1] * 4)
        if r.random() < 0.3:
            spread = c.weight(np.abs(floats(r, wide)) + np.float32(0.1))
            x = c.add("BatchNormalization", x, c.floats(wide), c.floats(wide), c.floats(wide), spread)
        x, width = c.add(pick(r, "Relu", "Relu", "LeakyRelu", "Sigmoid"), x), wide
    x = c.add("Flatten", c.add("GlobalAveragePool", x))
    x = c.add("Gemm", x, c.floats(width, 5), c.floats(5))
    model = _model(c, x, ("n", 5))
    return model, _feeds(model, r), (*_OF_CONVOLUTIONS, *_OF_CLASSIFIERS)


def tokens(r: Rng) -> Network:
    """An encoder with attention over tokens."""
    model = encoder(
        int(r.integers(1, 4)),
        pick(r, "tokens", 9),
        readout=pick(r, "tokens", "first", "mean"),
        masked=bool(r.random() < 0.3),
        pre_norm=bool(r.random() < 0.5),
        seed=int(r.integers(100)),
    )
    own = ("prune-tokens{min_sqnr=5.0}", "prune-tokens{keep=0.5}", 'prune-tokens{form="merge",min_sqnr=5.0}')
    return model, _feeds(model, r), (*own, *_OF_PRODUCTS, *_OF_CLASSIFIERS)


def steps(r: Rng) -> Network:
    """A decoder with a cache."""
    style = Style(
        layers=1,
        norm=pick(r, "rms", "layer"),
        rotary=pick(r, "halves", "none"),
        gated=bool(r.random() < 0.5),
        tied=bool(r.random() < 0.5),
        seed=int(r.integers(100)),
    )
    sizes = ((1, 6, 0), (1, 6, 5), (3, 1, 9), (2, 4, 5))
    return (
        decoder(style),
        [feed(style, *size, hidden=pick(r, "", "left")) for size in sizes],
        (
            "fuse-rotary,fuse-skip-norm,fuse-cached-attention,quantize-cache",
            *_OF_PRODUCTS,
        ),
    )


def _model(c: Chain, last: str, shape: tuple[int | str, ...]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(d)) for n, d in c.inputs.items()]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, list(shape))]
    graph = helper.make_graph(c.nodes, "network", inputs, outputs, c.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", c.opset)], ir_version=9)


def _feeds(model: onnx.ModelProto, r: Rng) -> list[Feed]:
    """Feeds; symbols share an extent, but for the batch: that of the first is large, so that outputs show noise."""
    graph = read_onnx(model)
    symbols = {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
    batch = {s for s in symbols if s in ("n", "batch", "batch_size", "N")}
    bindings = [dict.fromkeys(symbols, e) | dict.fromkeys(batch, n) for e, n in ((6, 8), (6, 3), (1, 2), (9, 1))]
    return [feed_of(graph, binding, int(r.integers(1000))) for binding in bindings]


NETWORKS: tuple[Callable[[Rng], Network], ...] = (perceptron, perceptron, images, tokens, steps)
