"""A cache's length that is made up leaves positions inside the table of angles that they are looked up in."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import memoptc


def _weight(name: str, value: Any) -> Any:
    return numpy_helper.from_array(np.asarray(value, np.float32), name)


def test_positions_lie_inside_the_table_of_angles() -> None:
    r, node, info = np.random.default_rng(0), helper.make_node, helper.make_tensor_value_info
    angles = np.linspace(0, 1, 128).reshape(64, 2)
    turned = ["cos", "sin", "positions"]
    nodes = [
        node("Gather", ["table", "ids"], ["x"]),
        node("MatMul", ["x", "wk"], ["k"]),
        node("RotaryEmbedding", ["x", *turned], ["q1"], num_heads=2),
        node("RotaryEmbedding", ["k", *turned], ["k1"], num_heads=2),
        node(
            "Attention",
            ["q1", "k1", "x", "", "past_key", "past_value"],
            ["y", "key", "value"],
            q_num_heads=2,
            kv_num_heads=2,
            is_causal=1,
        ),
        node("MatMul", ["y", "head"], ["logits"]),
    ]
    cache = {
        n: info(n, TensorProto.FLOAT, ["batch", 2, "past" if n.startswith("past") else "total", 4])
        for n in ("past_key", "past_value", "key", "value")
    }
    ids = [info(n, TensorProto.INT64, ["batch", "steps"]) for n in ("ids", "positions")]
    weights = {"table": (10, 8), "wk": (8, 8), "head": (8, 10)}
    graph = helper.make_graph(
        nodes,
        "decoder",
        [*ids, cache["past_key"], cache["past_value"]],
        [info("logits", TensorProto.FLOAT, ["batch", "steps", 10]), cache["key"], cache["value"]],
        [_weight(n, r.standard_normal(s)) for n, s in weights.items()]
        + [_weight("cos", np.cos(angles)), _weight("sin", np.sin(angles))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    assert memoptc.compile(model, level=2, measure=True).report.to_json()["verification"]["passed"]
