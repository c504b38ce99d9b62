"""Types of all values of a model, for inputs where it is cut: as declared and inferred, else as a run gives them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.reduction.edits import graphs_of
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.options import RunOptions

SMALL = 64
"""Elements of integers up to which a value that a run gave is kept: shapes, axes, indices."""


def value_types(path: Path) -> onnx.GraphProto:
    """Give a graph whose `value_info` are the known types, and whose initializers are small integers of a run.

    Args:
        path: The model.
    """
    model = onnx.load(path)
    found: dict[str, onnx.ValueInfoProto] = {}
    constants: dict[str, onnx.TensorProto] = {}
    with contextlib.suppress(Exception):  # the checker of onnx raises whatever its C++ throws
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for graph in graphs_of(model):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.WhichOneof("value") and (_rank_known(info) or info.name not in found):
                found[info.name] = info
        for tensor in graph.initializer:
            found[tensor.name] = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
    with contextlib.suppress(MemoptcError):
        for name, array in _observed(model, path):
            if name not in found or not _rank_known(found[name]):
                dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
                found[name] = helper.make_tensor_value_info(name, dtype, list(array.shape))
            if array.dtype.kind in "ib" and array.size <= SMALL:
                constants[name] = numpy_helper.from_array(array, name)
    return onnx.GraphProto(name="types", value_info=found.values(), initializer=constants.values())


def _observed(model: onnx.ModelProto, path: Path) -> Iterator[tuple[str, np.ndarray]]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    given = {o.name for o in probe.graph.output}
    names = [o for node in probe.graph.node for o in node.output if o and o not in given]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    graph = read_onnx(path)
    infer_shapes(graph)
    original = Evaluator(str(path), RunOptions(optimize=False))
    feed = find_feeds(graph, original, count=1)[0].feed
    for name, value in Evaluator(probe, RunOptions(optimize=False)).run(feed).items():
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            yield name, value


def _rank_known(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.HasField("tensor_type")) and bool(info.type.tensor_type.HasField("shape"))
