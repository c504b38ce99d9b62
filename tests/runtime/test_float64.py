"""The float64 twin agrees with ONNX's own reference in float64, operator by operator."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from runtime_models import convolutions, mlp, normal, parse

from memoptc.ir.ops.double import NoDouble
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.float64 import Float64
from memoptc.runtime.options import RunOptions

IMAGE = "float[N, 4, H, W] x"
NODES = {
    "conv": ("Conv <pads = [1, 2, 0, 1], strides = [2, 1], dilations = [1, 2]> (x, w)", {"w": normal(6, 4, 3, 2)}),
    "conv grouped": ("Conv <group = 2> (x, w, b)", {"w": normal(6, 2, 3, 3), "b": normal(6)}),
    "conv depthwise": ("Conv <group = 4, pads = [1, 1, 1, 1]> (x, w)", {"w": normal(4, 1, 3, 3)}),
    "conv same": ('Conv <auto_pad = "SAME_UPPER"> (x, w)', {"w": normal(3, 4, 2, 4)}),
    "transposed": ("ConvTranspose <strides = [2, 3], pads = [1, 0, 0, 1]> (x, w, b)",
                   {"w": normal(4, 5, 3, 3), "b": normal(5)}),
    "transposed grouped": ("ConvTranspose <group = 2, output_padding = [1, 1], strides = [2, 2], "
                           "dilations = [2, 1]> (x, w)", {"w": normal(4, 3, 2, 3)}),
    "average": ("AveragePool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]> (x)", {}),
    "average with padding": ("AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
                             "count_include_pad = 1> (x)", {}),
    "global average": ("GlobalAveragePool(x)", {}),
    "global max": ("GlobalMaxPool(x)", {}),
    "instance norm": ("InstanceNormalization(x, s, b)", {"s": normal(4), "b": normal(4)}),
    "erf": ("Erf(x)", {}),
    "gelu": ("Gelu(x)", {}),
    "gelu tanh": ('Gelu <approximate = "tanh"> (x)', {}),
    "leaky": ("LeakyRelu <alpha = 0.2> (x)", {}),
    "prelu": ("PRelu(x, s)", {"s": normal(4, 1, 1)}),
    "elu": ("Elu <alpha = 1.5> (x)", {}),
    "selu": ("Selu(x)", {}),
    "softplus": ("Softplus(x)", {}),
    "softsign": ("Softsign(x)", {}),
    "mish": ("Mish(x)", {}),
    "hard sigmoid": ("HardSigmoid <alpha = 0.3> (x)", {}),
    "hard swish": ("HardSwish(x)", {}),
    "resize nearest": ('Resize <mode = "nearest"> (x, , s)', {"s": np.array([1, 1, 2, 3], np.float32)}),
    "resize linear": ('Resize <mode = "linear"> (x, , s)', {"s": np.array([1, 1, 2, 1.5], np.float32)}),
    "resize corners": ('Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , z)',
                       {"z": np.array([2, 4, 9, 11], np.int64)}),
    "shape constant": ("ConstantOfShape(z)", {"z": np.array([2, 3], np.int64)}),
}  # fmt: skip


def exact(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run in onnxruntime, in float32: what the twin must be close to."""
    return Evaluator(model, RunOptions(optimize=False)).run(feed)


@pytest.mark.parametrize("name", NODES)
def test_lowered_operators(name: str) -> None:
    text, weights = NODES[name]
    static = "same" in name
    shape = "float[2, 4, 6, 7] x" if static else IMAGE
    model = parse(f"g ({shape}) => (float y) {{ y = {text} }}", opset=20, **weights)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feed = {"x": normal(2, 4, 6, 7, seed=5, scale=2.0)}
    twin = Float64(model).run(feed, ["y"])["y"]
    near = exact(model, feed)["y"]
    assert isinstance(twin, np.ndarray)
    assert twin.dtype == np.float64
    assert twin.shape == near.shape
    assert np.abs(twin - near).max() <= 4e-6 * max(1.0, np.abs(near).max())
    wide = {"x": feed["x"].astype(np.float64)}
    if name.startswith(("conv", "average with", "global", "instance", "leaky", "prelu", "elu")):
        double = onnx.ModelProto()
        double.CopyFrom(model)
        for tensor in double.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        for value in (*double.graph.input, *double.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        reference = ReferenceEvaluator(double).run(None, wide)[0]
        assert np.abs(twin - reference).max() <= 1e-12 * max(1.0, np.abs(reference).max())


def test_erf_is_exact_to_float64() -> None:
    model = parse("g (float[N] x) => (float[N] y) { y = Erf(x) }")
    x = np.concatenate([np.linspace(-8, 8, 4001), [0.0, 1e-20, -1e-9]]).astype(np.float32)
    found = Float64(model).run({"x": x}, ["y"])["y"]
    assert np.abs(found - np.array([math.erf(float(v)) for v in x])).max() < 1e-13


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU reset"])
@pytest.mark.parametrize("lengths", [False, True])
def test_recurrent_layers(kind: str, direction: str, lengths: bool) -> None:
    operator, _, reset = kind.partition(" ")
    ways, hidden, gates = (2 if direction == "bidirectional" else 1), 5, (4 if operator == "LSTM" else 3)
    extra = ", linear_before_reset = 1" if reset else ""
    results = "y, h, c" if operator == "LSTM" else "y, h"
    declared = "float[T, D, B, 5] y, float[D, B, 5] h" + (", float[D, B, 5] c" if operator == "LSTM" else "")
    model = parse(
        f"""g (float[T, B, 3] x, int32[B] n) => ({declared}) {{
              {results} = {operator} <hidden_size = 5, direction = "{direction}"{extra}>
                          (x, w, r, b, {"n" if lengths else ""})
            }}""",
        w=normal(ways, gates * hidden, 3, seed=1),
        r=normal(ways, gates * hidden, hidden, seed=2, scale=0.4),
        b=normal(ways, 2 * gates * hidden, seed=3),
    )
    feed = {"x": normal(7, 3, 3, seed=4), "n": np.array([7, 2, 5], np.int32)}
    names = [o.name for o in model.graph.output]
    near, twin = exact(model, feed), Float64(model).run(feed, names)
    for name in names:
        found = twin[name]
        assert isinstance(found, np.ndarray)
        assert found.shape == near[name].shape
        assert np.abs(found - near[name]).max() < 2e-6


@pytest.mark.parametrize("model", [mlp(), convolutions()], ids=["mlp", "convolutions"])
def test_the_original_lies_within_rounding_of_its_twin(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    feed = {"x": normal(2, 16) if model.graph.name == "mlp" else normal(2, 3, 16, 16)}
    twin = Float64(model).run(feed, ["y"])["y"]
    gap = np.abs(exact(model, feed)["y"] - twin).max()
    assert 0 < gap < 1e-5
    assert model.SerializeToString() == before


def test_old_models_and_subgraphs() -> None:
    old = parse("g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) { y = Upsample <mode = \"linear\"> (x, s) }",
                opset=9, s=np.array([1, 1, 2, 2], np.float32))  # fmt: skip
    feed = {"x": normal(1, 2, 3, 3)}
    twin = Float64(old).run(feed, ["y"])["y"]
    assert np.abs(exact(old, feed)["y"] - twin).max() < 1e-6  # type: ignore[operator]
    branches = parse(
        """g (float[N] x, bool c) => (float[N] y) {
             y = If (c) <then_branch = t () => (float[N] a) { a = Erf(x) },
                         else_branch = e () => (float[N] b) { k = Constant <value_float = 0.1> () b = Add(x, k) }>
           }"""
    )
    for flag in (True, False):
        wide = Float64(branches).run({"x": normal(4), "c": np.array(flag)}, ["y"])["y"]
        near = exact(branches, {"x": normal(4), "c": np.array(flag)})["y"]
        assert np.abs(wide - near).max() < 1e-6  # type: ignore[operator]


def test_what_has_no_twin_says_why() -> None:
    model = parse('g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) { y = Resize <mode = "cubic"> (x, , s) }',
                  s=np.array([1, 1, 2, 2], np.float32))  # fmt: skip
    with pytest.raises(NoDouble, match="cubic"):
        Float64(model)
