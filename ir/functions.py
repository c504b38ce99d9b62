"""Calls of a model's own functions, and their bodies in place of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx.inliner

from memoptc.ir.core import Graph, Tensor
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.onnx_write import proto_with_weights
from memoptc.ir.tensors import tensor_type
from memoptc.ir.types import DType


def inlined(graph: Graph) -> Graph:
    """Give a copy of a top graph with the bodies of its model's functions where they are called, types not inferred.

    ONNX's own inliner makes it. Functions that it leaves, of another opset than the model say, stay. Weights are
    neither copied nor read: those that are mapped stay so.

    Args:
        graph: A top graph of a model that has functions.

    Raises:
        MemoptcError: what the inliner makes of it is no valid model.
    """
    aside = _WeightsAside()
    proto = _with_defaults(proto_with_weights(graph, aside, threshold=0))
    copy = read_onnx(onnx.inliner.inline_local_functions(proto))
    for op in copy.walk("const"):
        tensor = aside.of(op.attrs["value"])
        op.set_attr("value", tensor)
        op.result.type = tensor_type(tensor)
    copy.defaults = {value: aside.of(tensor) for value, tensor in copy.defaults.items()}
    return copy


class _WeightsAside:
    """Keeps the weights of a model, and gives empty tensors in place of them, whose second extent is a number."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def write(self, name: str, tensor: Tensor) -> onnx.TensorProto:
        """Give what stands for a weight."""
        self._tensors.append(tensor)
        return onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=(0, len(self._tensors) - 1))

    def of(self, stand_in: Tensor) -> Tensor:
        """Give the weight again; text, which the writer leaves where it is, is itself."""
        return stand_in if stand_in.dtype == DType.STRING else self._tensors[int(stand_in.shape.numpy()[1])]


def as_loaded(graph: Graph) -> Graph:
    """Give a graph as onnxruntime sees it once loaded, without calls of functions; itself where it has none.

    Shapes are inferred in what is given. A graph whose functions cannot be inlined is given as it is. To be used as an
    analysis: `graph.analysis(as_loaded)`.
    """
    if graph.model is None or not graph.model.functions:
        return graph
    try:
        copy = inlined(graph)
    except MemoptcError:
        return graph
    infer_shapes(copy)
    return copy


def _with_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name, in every call of a function, the attributes that it leaves to their defaults: the inliner forgets those."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        _name_defaults(nodes, functions)
    return model


def _name_defaults(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
) -> None:
    for node in nodes:
        called = functions.get((node.domain, node.op_type, node.overload))
        if called is not None:
            stated = {attr.name for attr in node.attribute}
            node.attribute.extend(attr for attr in called.attribute_proto if attr.name not in stated)
        for attr in node.attribute:
            for inner in (attr.g, *attr.graphs):
                _name_defaults(inner.node, functions)
