"""Small models with one body and a head of their own each, weights in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memoptc.runtime import Session

WIDTH, LAYERS = 256, 6
WEIGHTS = WIDTH * WIDTH * 4 * LAYERS
"""Bytes of the body's weights."""


def write(folder: Path, name: str, head: int, offset: int = 0) -> Path:
    """A body that all models have, and a head of their own, with weights in a file of their own."""
    rng, own = np.random.default_rng(0), np.random.default_rng(100 + head)
    arrays = [rng.standard_normal((WIDTH, WIDTH)) / 16 for _ in range(LAYERS)] + [own.standard_normal((WIDTH, 8))]
    weights = [numpy_helper.from_array(a.astype(np.float32), f"{name}.w{i}") for i, a in enumerate(arrays)]
    if offset:
        weights.insert(0, numpy_helper.from_array(np.zeros(offset, np.float32), "unused"))
    nodes = []
    for i in range(LAYERS + 1):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"{name}.w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"h{i + 1}"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(f"h{LAYERS + 1}", TensorProto.FLOAT, ["N", 8])],
        weights,
    )
    path = folder / f"{name}.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(made, path, save_as_external_data=True, location=f"{name}.data", size_threshold=1024)
    return path


def feed(batch: int = 3) -> dict[str, Any]:
    """Made-up inputs."""
    return {"h0": np.random.default_rng(batch).standard_normal((batch, WIDTH)).astype(np.float32)}


def alone(path: Path, batch: int) -> bytes:
    """Outputs of a session of its own."""
    with Session(path, memory="planned", threads=1) as session:
        return bytes(session.run(None, feed(batch))[0].tobytes())
