"""Small decoders in the operators of other exporters: GroupQueryAttention, Attention of opset 24, cross attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from decoders import LOWEST, Style, Writer, cache_name
from onnx import TensorProto, helper

LONGEST = 64
"""Steps that tables of positions, and caches of constant length, hold."""


def genai(style: Style) -> onnx.ModelProto:
    """GroupQueryAttention with rotary inside; lengths are counted from the mask, as onnxruntime-genai builds it."""
    s, w = style, Writer(style)
    table = w.const(w.weight(s.vocabulary, s.hidden))
    x = w.Gather(table, "input_ids")
    one = w.const([1])
    count = w.ReduceSum("attention_mask", one, keepdims=0)
    lengths = w.Cast(w.Sub(count, 1), to=TensorProto.INT32)
    total = w.Cast(w.Gather(w.Shape("attention_mask"), 1), to=TensorProto.INT32)
    angles = np.arange(LONGEST)[:, None] * 10000.0 ** -(np.arange(0, s.width, 2) / s.width)
    tables = [w.const(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
    outputs = ["logits"]
    for layer in range(s.layers):
        n = w.norm(x, s.hidden)
        q, k, v = (w.MatMul(n, w.weight(s.hidden, heads * s.width)) for heads in (s.heads, s.kv, s.kv))
        past = [cache_name(s, layer, part) for part in ("key", "value")]
        present = [cache_name(s, layer, part, "out") for part in ("key", "value")]
        merged = w.GroupQueryAttention(
            q, k, v, *past, lengths, total, *tables, out=[f"attention_{layer}", *present], num_heads=s.heads,
            kv_num_heads=s.kv, do_rotary=1, domain="com.microsoft",
        )  # fmt: skip
        outputs += present
        x = _after(w, x, merged)
    w.MatMul(w.norm(x, s.hidden), w.weight(s.hidden, s.vocabulary), out="logits")
    return model_of(w, _usual(s), outputs, contrib=True)


def opset24(style: Style, *, written: bool = False) -> onnx.ModelProto:
    """Attention of opset 24: with a past, or over a cache of constant length that TensorScatter writes into."""
    s, w = style, Writer(style, opset=24)
    table = w.const(w.weight(s.vocabulary, s.hidden))
    x = w.Gather(table, "input_ids")
    shape = w.Shape("input_ids")
    steps, first = w.Gather(shape, 1), cache_name(s, 0, "key")
    if written:
        past = w.Squeeze(w.Slice("cache_position", [0], [1], [0]), [0])
        total = w.const(LONGEST)
        start = w.Expand(w.Unsqueeze(past, [0]), w.Slice(shape, [0], [1]))
    else:
        past = w.Gather(w.Shape(first), 2)
        total = w.Add(past, steps)
    keys, rows = w.grids(steps, past, total)
    shown = w.LessOrEqual(keys, rows)
    if not written:
        shown = w.And(shown, w.Cast(w.Unsqueeze("attention_mask", [1, 2]), to=TensorProto.BOOL))
    mask = w.Where(shown, 0.0, LOWEST)
    outputs = ["logits"]
    for layer in range(s.layers):
        n = w.norm(x, s.hidden)
        q, k, v = (
            w.Transpose(
                w.Reshape(w.MatMul(n, w.weight(s.hidden, heads * s.width)), [0, 0, heads, s.width]), perm=[0, 2, 1, 3]
            )
            for heads in (s.heads, s.kv, s.kv)
        )
        caches = [cache_name(s, layer, part) for part in ("key", "value")]
        present = [cache_name(s, layer, part, "out") for part in ("key", "value")]
        kind = {"scale": float(s.width**-0.5)}
        if written:
            k, v = (
                w.TensorScatter(c, n, start, axis=2, out=p) for c, n, p in zip(caches, (k, v), present, strict=True)
            )
            merged = w.Attention(q, k, v, mask, **kind)
        else:
            merged = w.Attention(q, k, v, mask, *caches, out=[f"attention_{layer}", *present], **kind)
        outputs += present
        x = _after(w, x, w.Reshape(w.Transpose(merged, perm=[0, 2, 1, 3]), [0, 0, s.hidden]))
    w.MatMul(w.norm(x, s.hidden), w.weight(s.hidden, s.vocabulary), out="logits")
    if written:
        inputs = [
            ("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            ("cache_position", TensorProto.INT64, ["sequence"]),
        ]
        return model_of(w, [*inputs, *_caches(s, LONGEST)], outputs)
    return model_of(w, _usual(s), outputs)


def seq2seq(style: Style) -> onnx.ModelProto:
    """Self attention that grows, and cross attention over an encoder's keys and values, which are only read."""
    s, w = style, Writer(style)
    table = w.const(w.weight(s.vocabulary, s.hidden))
    x = w.Gather(table, "input_ids")
    steps, past = w.Gather(w.Shape("input_ids"), 1), w.Gather(w.Shape("past_key_values.0.decoder.key"), 2)
    keys, rows = w.grids(steps, past, w.Add(past, steps))
    causal = w.Where(w.LessOrEqual(keys, rows), 0.0, LOWEST)
    hidden = w.Cast(w.Unsqueeze("encoder_attention_mask", [1, 2]), to=TensorProto.FLOAT)
    padding = w.Mul(w.Sub(1.0, hidden), LOWEST / 4)
    outputs = ["logits"]
    inputs = [("input_ids", TensorProto.INT64, ["batch", "sequence"]),
              ("encoder_attention_mask", TensorProto.INT64, ["batch", "source"])]  # fmt: skip
    for layer in range(s.layers):
        n = w.norm(x, s.hidden)
        q, k, v = (_heads(w, n) for _ in range(3))
        names = [f"past_key_values.{layer}.decoder.{part}" for part in ("key", "value")]
        k, v = (w.Concat(name, new, axis=2, out=name.replace("past_key_values", "present"))
                for name, new in zip(names, (k, v), strict=True))  # fmt: skip
        outputs += [k, v]
        x = _after(w, x, _attend(w, q, k, v, causal))
        read = [name.replace("decoder", "encoder") for name in names]
        x = _after(w, x, _attend(w, _heads(w, w.norm(x, s.hidden)), *read, padding))
        inputs += [(n, TensorProto.FLOAT, ["batch", s.heads, "past", s.width]) for n in names]
        inputs += [(n, TensorProto.FLOAT, ["batch", s.heads, "source", s.width]) for n in read]
    w.MatMul(w.norm(x, s.hidden), w.weight(s.hidden, s.vocabulary), out="logits")
    return model_of(w, inputs, outputs)


def latent(style: Style, rank: int = 12) -> onnx.ModelProto:
    """Caches of what all heads' keys and values are computed from, and of a part of the keys that heads share."""
    s, w = style, Writer(style)
    x = w.Gather(w.weight(s.vocabulary, s.hidden), "input_ids")
    steps, past = w.Gather(w.Shape("input_ids"), 1), w.Gather(w.Shape(cache_name(s, 0, "key")), 2)
    mask = w.mask(steps, past, w.Add(past, steps))
    outputs, inputs = ["logits"], _usual(s)[:2]
    for layer in range(s.layers):
        n = w.norm(x, s.hidden)
        wholes = []
        for part, width in (("key", rank), ("value", s.width)):
            name, present = cache_name(s, layer, part), cache_name(s, layer, part, "out")
            new = w.Unsqueeze(w.MatMul(n, w.weight(s.hidden, width)), [1])
            wholes.append(w.Concat(name, new, axis=2, out=present))
            inputs.append((name, TensorProto.FLOAT, ["batch", 1, "past", width]))
            outputs.append(present)
        made = w.MatMul(w.Squeeze(wholes[0], [1]), w.weight(rank, 2 * s.hidden))
        w.Split(w.Transpose(w.Reshape(made, [0, 0, s.heads, 2 * s.width]), perm=[0, 2, 1, 3]), [s.width, s.width],
                out=[f"apart_{layer}", f"values_{layer}"], axis=-1)  # fmt: skip
        keys = w.Concat(f"apart_{layer}", w.Expand(wholes[1], [1, s.heads, 1, 1]), axis=-1)
        own, turned = _heads(w, n), _heads(w, n)
        scores = w.MatMul(w.Concat(own, turned, axis=-1), w.Transpose(keys, perm=[0, 1, 3, 2]))
        weights = w.Softmax(w.Add(w.Mul(scores, (2 * s.width) ** -0.5), mask), axis=-1)
        rows = w.Transpose(w.MatMul(weights, f"values_{layer}"), perm=[0, 2, 1, 3])
        x = _after(w, x, w.Reshape(rows, [0, 0, s.hidden]))
    w.MatMul(w.norm(x, s.hidden), w.weight(s.hidden, s.vocabulary), out="logits")
    return model_of(w, inputs, outputs)


def merged(model: onnx.ModelProto, style: Style | None = None, *, handed_back: bool = True) -> onnx.ModelProto:
    """One file for both: an If over `use_cache_branch`, whose other branch starts without a past.

    What an encoder's keys and values are read from there are its states, and both branches give them back; without
    `handed_back` that with a past gives empty tensors, as optimum writes it.
    """
    caches = [i for i in model.graph.input if "past" in i.name]
    read = [i.name for i in caches if ".encoder." in i.name]
    style = style or Style()
    w = Writer(style)
    w.count = 10_000  # names apart from the model's own
    bodies = []
    for name in ("with_past", "without_past"):
        body = onnx.GraphProto(name=name)
        renamed = {n: f"{name}/{n}" for node in model.graph.node for n in node.output}
        w.nodes.clear()
        for cache in caches if name == "without_past" else ():
            if cache.name in read:
                renamed[cache.name] = _heads(w, "encoder_hidden_states")
            else:
                shape = [d.dim_value or (1 if i == 0 else 0) for i, d in enumerate(cache.type.tensor_type.shape.dim)]
                renamed[cache.name] = f"{name}/{cache.name}"
                body.initializer.append(helper.make_tensor(renamed[cache.name], TensorProto.FLOAT, shape, []))
        body.node.extend(w.nodes)
        for node in model.graph.node:
            copy = body.node.add()
            copy.CopyFrom(node)
            copy.name = f"{name}/{node.name}"
            copy.input[:] = [renamed.get(n, n) for n in node.input]
            copy.output[:] = [renamed[n] for n in node.output]
        for given in read:
            back = f"{name}/back/{given}"
            if handed_back or name == "without_past":
                body.node.append(helper.make_node("Identity", [renamed.get(given, given)], [back]))
            else:
                body.initializer.append(
                    helper.make_tensor(back, TensorProto.FLOAT, [0, style.heads, 1, style.width], [])
                )
        for output in model.graph.output:
            copied = body.output.add()
            copied.CopyFrom(output)
            copied.name = renamed[output.name]
        body.output.extend(
            helper.make_tensor_value_info(f"{name}/back/{n}", TensorProto.FLOAT, [None] * 4) for n in read
        )
        bodies.append(body)
    inputs = [*model.graph.input, helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])]
    outputs = list(model.graph.output)
    if read:
        states = ["batch", "source", style.hidden]
        inputs.append(helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, states))
        names = [n.replace("past_key_values", "present") for n in read]
        outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in names]
    choice = helper.make_node(
        "If", ["use_cache_branch"], [o.name for o in outputs], then_branch=bodies[0], else_branch=bodies[1]
    )
    graph = helper.make_graph([choice], "merged", inputs, outputs, [*model.graph.initializer, *w.weights])
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(made)
    return made


def _heads(w: Writer, x: str) -> str:
    s = w.style
    return str(
        w.Transpose(w.Reshape(w.MatMul(x, w.weight(s.hidden, s.hidden)), [0, 0, s.heads, s.width]), perm=[0, 2, 1, 3])
    )


def _attend(w: Writer, q: str, k: str, v: str, mask: str) -> str:
    s = w.style
    scores = w.Add(w.Mul(w.MatMul(q, w.Transpose(k, perm=[0, 1, 3, 2])), s.width**-0.5), mask)
    return str(w.Reshape(w.Transpose(w.MatMul(w.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3]), [0, 0, s.hidden]))


def _after(w: Writer, x: str, merged: str) -> str:
    """The projection and the layers behind attention."""
    s = w.style
    x = w.Add(x, w.MatMul(merged, w.weight(s.hidden, s.hidden)))
    up = w.MatMul(w.norm(x, s.hidden), w.weight(s.hidden, 2 * s.hidden))
    return str(w.Add(x, w.MatMul(w.Mul(up, w.Sigmoid(up)), w.weight(2 * s.hidden, s.hidden))))


def _caches(s: Style, past: str | int) -> list[tuple[str, int, list[Any]]]:
    return [
        (cache_name(s, layer, part), TensorProto.FLOAT, ["batch", s.kv, past, s.width])
        for layer in range(s.layers)
        for part in ("key", "value")
    ]


def _usual(s: Style) -> list[tuple[str, int, list[Any]]]:
    return [
        ("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        ("attention_mask", TensorProto.INT64, ["batch", "total"]),
        *_caches(s, "past"),
    ]


def model_of(
    w: Writer, inputs: list[tuple[str, int, list[Any]]], outputs: list[str], *, contrib: bool = False
) -> onnx.ModelProto:
    """Put a model together."""
    given = [helper.make_tensor_value_info(*i) for i in inputs]
    results = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * (3 if n == "logits" else 4)) for n in outputs
    ]
    graph = helper.make_graph(w.nodes, "decoder", given, results, w.weights)
    imports = [helper.make_opsetid("", w.opset)] + [helper.make_opsetid("com.microsoft", 1)] * contrib
    model = helper.make_model(graph, opset_imports=imports, ir_version=9 if w.opset < 24 else 11)
    onnx.checker.check_model(model)
    return model
