"""Small models for tests of onnxruntime's C interface, and whether it can be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.native import userfault
from memoptc.runtime.native.capi import Unavailable, api


def usable() -> bool:
    """Whether the installed onnxruntime can be reached through its C interface."""
    try:
        api()
    except Unavailable:
        return False
    return True


def streams() -> bool:
    """Whether this system lets a program fill its own pages, as streamed weights need it."""
    try:
        userfault.UserFaults().close()
    except InputError:
        return False
    return True


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any] | None]],
    weights: dict[str, npt.NDArray[Any]] | None = None,
    opset: int = 18,
) -> bytes:
    """Serialise a small model."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    ).SerializeToString()
    return data


def network(width: int = 64, depth: int = 4) -> bytes:
    """Dense layers with a skip connection; the batch is dynamic."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], {}, "x"
    for i in range(depth):
        weights[f"w{i}"] = (rng.standard_normal((width, width)) / 8).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"t{i}"]))
        value = f"t{i}"
    nodes.append(helper.make_node("Add", [value, "t0"], ["y"]))
    ports = {"x": (TensorProto.FLOAT, ["batch", width])}
    return model(nodes, ports, {"y": (TensorProto.FLOAT, ["batch", width])}, weights)


def feed(batch: int, width: int = 64, seed: int = 0) -> dict[str, Any]:
    """Made-up inputs."""
    return {"x": np.random.default_rng(seed).standard_normal((batch, width)).astype(np.float32)}


def same(a: list[Any], b: list[Any]) -> bool:
    """Whether two lists of arrays agree bit for bit."""
    return len(a) == len(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)
    )
