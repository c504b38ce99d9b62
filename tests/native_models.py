"""Small models for tests of onnxruntime's C interface, and whether it can be used."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from memoptc.runtime.native.capi import Unavailable, api


def usable() -> bool:
    """Whether the installed onnxruntime can be reached through its C interface."""
    try:
        api()
    except Unavailable:
        return False
    return True


def version() -> tuple[int, ...]:
    """The installed onnxruntime's version."""
    import onnxruntime

    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


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
