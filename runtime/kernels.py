"""Capabilities of the installed onnxruntime, found by asking it: one node, loaded and run on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import onnxruntime

from memoptc.ir.files import TemporaryFolder
from memoptc.ir.types import DType
from memoptc.runtime.options import RunOptions

_DOMAIN = "com.microsoft"
_IR_VERSION, _OPSET = 10, 21
_STRING = onnx.TensorProto.STRING

Arrays = Mapping[str, npt.NDArray[Any]]


def run_node(node: onnx.NodeProto, feed: Arrays, weights: Arrays, result: DType) -> npt.NDArray[Any] | None:
    """Run one node.

    Args:
        node: The node; its inputs are names of `feed` and `weights`.
        feed: Inputs, of numpy's own element types.
        weights: Constants.
        result: Element type of the node's first result.

    Returns:
        Its first result; `None` when onnxruntime refuses to load or to run it.
    """
    inputs = [_port(name, array) for name, array in feed.items()]
    output = onnx.helper.make_tensor_value_info(node.output[0], int(result), None)
    constants = [onnx_ir.to_proto(onnx_ir.tensor(array, name=name)) for name, array in weights.items()]
    graph = onnx.helper.make_graph([node], "probe", inputs, [output], constants)
    try:
        session = onnxruntime.InferenceSession(
            _model(graph), RunOptions().session_options(), providers=["CPUExecutionProvider"]
        )
        found: npt.NDArray[Any] = session.run(None, dict(feed))[0]
    except Exception:  # onnxruntime has many classes of errors, and each of them means no
        return None
    return found


@cache
def multiplies_codes(bits: int) -> bool:
    """True if MatMulNBits has a kernel for codes of this many bits."""
    block, rows = 32, 4
    codes = np.full((rows, 1, block * bits // 8), 0xFF, np.uint8)
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain=_DOMAIN, K=block, N=rows, bits=bits, block_size=block
    )
    weights: Arrays = {"w": codes, "s": np.ones((rows, 1), np.float32)}
    found = run_node(node, {"x": np.ones((1, block), np.float32)}, weights, DType.FLOAT)
    return found is not None and bool(np.allclose(found, block * (2 ** (bits - 1) - 1)))


@cache
def gathers_codes(bits: int) -> bool:
    """True if GatherBlockQuantized has a kernel for codes of this many bits in bytes."""
    block, rows = 32, 4
    node = onnx.helper.make_node(
        "GatherBlockQuantized", ["w", "i", "s"], ["y"], domain=_DOMAIN,
        gather_axis=0, quantize_axis=1, block_size=block, bits=bits,
    )  # fmt: skip
    codes = np.full((rows, block * bits // 8), 0xFF, np.uint8)
    weights: Arrays = {"w": codes, "s": np.ones((rows, 1), np.float32)}
    found = run_node(node, {"i": np.array([1], np.int64)}, weights, DType.FLOAT)
    return found is not None and found.shape == (1, block) and bool(np.all(found == 2 ** (bits - 1) - 1))


@cache
def gathers_float8() -> bool:
    """True if GatherBlockQuantized has a kernel for float8 (E4M3FN) with one scale per block."""
    block, rows = 32, 4
    node = onnx.helper.make_node(
        "GatherBlockQuantized", ["w", "i", "s"], ["y"], domain=_DOMAIN,
        gather_axis=0, quantize_axis=1, block_size=block,
    )  # fmt: skip
    codes = np.full((rows, block), 1.5, DType.FLOAT8E4M3FN.numpy())
    weights: Arrays = {"w": codes, "s": np.full((rows, 1), 2.0, np.float32)}
    found = run_node(node, {"i": np.array([1], np.int64)}, weights, DType.FLOAT)
    return found is not None and found.shape == (1, block) and bool(np.all(found == 3.0))


@cache
def saturates() -> bool:
    """True if sums of uint8 * int8 products overflow 16 bits on this machine, as on x86 without VNNI."""
    # Enough rows for any kernel to work in its widest registers.
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    weights: Arrays = {"w": np.full((64, 64), 127, np.int8)}
    found = run_node(node, {"x": np.full((64, 64), 255, np.uint8)}, weights, DType.INT32)
    return found is not None and not bool(np.all(found == 64 * 127 * 255))


@dataclass(frozen=True)
class Loaded:
    """A model as onnxruntime holds it once loaded, before kernels lay weights out their own way.

    Args:
        casts: Casts in it.
        weight_bytes: Bytes of its weights.
    """

    casts: int
    weight_bytes: int


def loaded(path: str | Path) -> Loaded | None:
    """Let onnxruntime load a model and fold its constants; `None` when it refuses, or cannot write what it has."""
    with TemporaryFolder() as folder:
        written = Path(folder) / "optimized.onnx"
        options = RunOptions().session_options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(written)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception:
            return None
        graph = onnx.load(written, load_external_data=False).graph
        size = sum(DType(t.data_type).itemsize * math.prod(t.dims) for t in graph.initializer if t.data_type != _STRING)
        return Loaded(sum(n.op_type == "Cast" for n in graph.node), int(size))


def _port(name: str, array: npt.NDArray[Any]) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape)


def _model(graph: onnx.GraphProto) -> bytes:
    imports = [onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(_DOMAIN, 1)]
    content: bytes = onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION).SerializeToString()
    return content
