"""Small decoders whose layers carry states on: LSTM, a selective scan behind a short convolution, hybrids of that."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from decoder_forms import model_of
from decoders import Style, Writer
from onnx import TensorProto

KERNEL = 4
"""Inputs that a short convolution sees at once."""


def lstm(style: Style) -> onnx.ModelProto:
    """Hidden states and cells of an LSTM each layer, which have the same shape; any number of steps."""
    s, w = style, Writer(style)
    x = w.Transpose(w.Gather(w.const(w.weight(s.vocabulary, s.hidden)), "ids"), perm=[1, 0, 2])
    inputs: list[tuple[str, int, list[Any]]] = [("ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = []
    for layer in range(s.layers):
        gates = [w.weight(4 * s.hidden, s.hidden)[None] for _ in range(2)]
        made = [f"steps_{layer}", f"new_h_{layer}", f"new_c_{layer}"]
        w.LSTM(x, *gates, "", "", f"h_{layer}", f"c_{layer}", out=made, hidden_size=s.hidden)
        x = w.Squeeze(made[0], [1])
        inputs += [(f"{kind}_{layer}", TensorProto.FLOAT, [1, "batch", s.hidden]) for kind in "ch"]
        outputs += made[1:]
    w.MatMul(w.Transpose(x, perm=[1, 0, 2]), w.weight(s.hidden, s.vocabulary), out="logits")
    return _unranked(model_of(w, inputs, ["logits", *outputs]))


def scan(style: Style, *, attention: bool = False) -> onnx.ModelProto:
    """One step at a time through a short convolution and a sum that decays; the last layer may be attention."""
    s, w = style, Writer(style)
    x = w.Gather(w.const(w.weight(s.vocabulary, s.hidden)), "input_ids")
    inputs: list[tuple[str, int, list[Any]]] = [("input_ids", TensorProto.INT64, ["batch", 1])]
    outputs = ["logits"]
    for layer in range(s.layers):
        n = w.norm(x, s.hidden)
        if attention and layer == s.layers - 1:
            parts = [
                w.Transpose(w.Reshape(w.MatMul(n, w.weight(s.hidden, s.hidden)), [0, 0, s.heads, s.width]),
                            perm=[0, 2, 1, 3])
                for _ in range(3)
            ]  # fmt: skip
            k, v = (
                w.Concat(f"past_{part}", new, axis=2, out=f"present_{part}")
                for part, new in zip(("key", "value"), parts[1:], strict=True)
            )
            scores = w.Mul(w.MatMul(parts[0], w.Transpose(k, perm=[0, 1, 3, 2])), s.width**-0.5)
            weighed = w.Transpose(w.MatMul(w.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
            new = w.MatMul(w.Reshape(weighed, [0, 0, s.hidden]), w.weight(s.hidden, s.hidden))
            shape = ["batch", s.heads, "past", s.width]
            inputs += [(f"past_{part}", TensorProto.FLOAT, shape) for part in ("key", "value")]
            outputs += ["present_key", "present_value"]
        else:
            seen = w.Concat(f"conv_{layer}", w.Transpose(n, perm=[0, 2, 1]), axis=2)
            w.Slice(seen, [1], [KERNEL + 1], [2], out=f"new_conv_{layer}")
            mixed = w.ReduceSum(w.Mul(f"new_conv_{layer}", w.weight(s.hidden, KERNEL)), [2], keepdims=0)
            decay = w.Sigmoid(w.MatMul(mixed, w.weight(s.hidden, s.hidden)))
            w.Add(w.Mul(f"sum_{layer}", decay), mixed, out=f"new_sum_{layer}")
            new = w.MatMul(w.Unsqueeze(f"new_sum_{layer}", [1]), w.weight(s.hidden, s.hidden))
            inputs += [
                (f"conv_{layer}", TensorProto.FLOAT, ["batch", s.hidden, KERNEL]),
                (f"sum_{layer}", TensorProto.FLOAT, ["batch", s.hidden]),
            ]
            outputs += [f"new_conv_{layer}", f"new_sum_{layer}"]
        x = w.Add(x, new)
    w.MatMul(w.norm(x, s.hidden), w.weight(s.hidden, s.vocabulary), out="logits")
    return _unranked(model_of(w, inputs, outputs))


def _unranked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave ranks of states open, as they differ."""
    for output in model.graph.output[1:]:
        output.type.tensor_type.ClearField("shape")
    return model


def first_states(model: onnx.ModelProto, batch: int) -> dict[str, Any]:
    """Zeros for everything but ids, and no past."""
    shapes = {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input[1:]}
    return {
        name: np.zeros([{"batch": batch, "past": 0}.get(d, d) for d in shape], np.float32)
        for name, shape in shapes.items()
    }
