"""To and from other libraries' graphs: onnx_ir, onnx_graphsurgeon."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx_ir import serde

from memoptc.ir import protos
from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.dims import LONGEST_SHAPE, Dim
from memoptc.ir.mapped import MappedTensor
from memoptc.ir.onnx_write import to_proto
from memoptc.ir.types import (
    DType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
)

_MARK = "memoptc.shared_tensor"


def to_onnx_ir(graph: Graph) -> onnx_ir.Model:
    """Give the model as `onnx_ir.Model`; larger weights are shared, not copied."""
    copy = graph.clone()
    held: list[Tensor] = []
    for op in copy.walk("const"):
        tensor = op.attrs["value"]
        if tensor.dtype != DType.STRING and tensor.nbytes > 1024:
            # An empty stand-in of the same type; its marker is the place in `held`.
            op.set_attr("value", onnx_ir.Tensor(np.zeros(0, np.uint8), name="stand-in"))
            op.result.metadata[_MARK] = str(len(held))
            # Its file may be a temporary one, so a saved model must not refer to it.
            if isinstance(tensor, MappedTensor):
                tensor = onnx_ir.Tensor(tensor.numpy(), DType(tensor.dtype), name=tensor.name)
            held.append(tensor)
    model = serde.deserialize_model(to_proto(copy))
    for inner in _graphs(model.graph):
        for value in inner.initializers.values():
            mark = value.const_value.metadata_props.pop(_MARK, None) if value.const_value is not None else None
            if mark is not None:
                tensor = held[int(mark)]
                value.const_value = tensor
                value.shape = onnx_ir.Shape(tensor.shape.numpy())
                value.type = onnx_ir.TensorType(tensor.dtype)
    return model


def _graphs(graph: onnx_ir.Graph) -> Iterable[onnx_ir.Graph]:
    yield graph
    yield from graph.subgraphs()


def to_graphsurgeon(graph: Graph) -> Any:
    """Give the model as `onnx_graphsurgeon.Graph`."""
    import onnx_graphsurgeon

    return onnx_graphsurgeon.import_onnx(to_proto(graph))


class OnnxIrMirror:
    """An `onnx_ir` model that mirrors a graph value by value, for shape inference; weights are shared.

    Args:
        graph: The graph to mirror. Only inputs and weights get types.
    """

    def __init__(self, graph: Graph) -> None:
        self.of: dict[Value, onnx_ir.Value] = {}
        imports = {k: v for k, v in graph.info.opset_imports.items()}
        self.model = onnx_ir.Model(self._graph(graph, imports), ir_version=max(graph.info.ir_version, 10))

    def _graph(self, graph: Graph, imports: dict[str, int] | None) -> onnx_ir.Graph:
        inputs = [self.value(v, typed=True) for v in graph.inputs]
        nodes: list[onnx_ir.Node] = []
        weights = []
        for op in graph.ops:
            if op.is_const:
                weights.append(self.value(op.result, typed=True))
            elif op.op_type not in ("absent", "sparse_const"):
                nodes.append(self.node(op))
            elif op.op_type == "sparse_const":
                inputs.append(self.value(op.result, typed=True))
        outputs = [self.value(v) if v.graph is graph else self._captured(v, nodes) for v in graph.outputs]
        return onnx_ir.Graph(
            inputs, outputs, nodes=nodes, initializers=weights, opset_imports=imports, name=graph.name or "g"
        )

    def _captured(self, value: Value, nodes: list[onnx_ir.Node]) -> onnx_ir.Value:
        """An outer value that a region returns: onnx_ir wants each graph to make its own outputs."""
        nodes.append(onnx_ir.Node("", "Identity", [self.value(value)]))
        return nodes[-1].outputs[0]

    def value(self, value: Value, *, typed: bool = False) -> onnx_ir.Value:
        """Give the mirror of a value, made on first sight."""
        if value not in self.of:
            mirror = onnx_ir.Value(name=f"v{len(self.of)}")
            if typed and value.type is not None:
                mirror.type = onnx_ir_type(value.type)
                mirror.shape = onnx_ir_shape(value.type)
            if value.tensor is not None:
                if value.tensor.shape.rank() != 1 or value.tensor.size <= LONGEST_SHAPE:
                    mirror.const_value = value.tensor
                mirror.shape = onnx_ir.Shape(value.tensor.shape.numpy())
                mirror.type = onnx_ir.TensorType(DType(value.tensor.dtype))
            self.of[value] = mirror
        return self.of[value]

    def node(self, op: Op) -> onnx_ir.Node:
        """Give the mirror of an op."""
        attrs = [a for name, v in op.attrs.items() if (a := _attribute(name, v)) is not None]
        for name, region in op.regions.items():
            if "#" not in name:
                attrs.append(onnx_ir.AttrGraph(name, self._graph(region, None)))
        return onnx_ir.Node(
            op.domain,
            op.op_type,
            [None if v.is_absent else self.value(v) for v in op.operands],
            attrs,
            outputs=[self.value(r) for r in op.results],
            overload=op.overload,
        )


class _TensorAttr(onnx_ir.Attr):
    """An attribute that holds a tensor, and does not ask each time whether it does, which takes half a millisecond."""

    def as_tensor(self) -> onnx_ir.TensorProtocol:
        """Give the tensor."""
        tensor: onnx_ir.TensorProtocol = self.value
        return tensor


def _attribute(name: str, value: Any) -> onnx_ir.Attr | None:
    if hasattr(value, "tobytes") and not isinstance(value, bytes | onnx.SparseTensorProto):
        return _TensorAttr(name, onnx_ir.AttributeType.TENSOR, value)
    proto = onnx.AttributeProto()
    protos.write_attr(name, value, proto)
    try:
        return serde.deserialize_attribute(proto)
    except Exception:
        # onnx_ir has no form for it (bytes that are no text, map types): inference does without.
        return None


def onnx_ir_type(type_: Type | None) -> onnx_ir.TypeProtocol | None:
    """Give a type as onnx_ir has it, without the shape; `None` where it has none."""
    match type_:
        case TensorType():
            return onnx_ir.TensorType(type_.dtype)
        case SparseTensorType():
            return onnx_ir.SparseTensorType(type_.dtype)
        case SequenceType() | OptionalType():
            inner = onnx_ir_type(type_.elem)
            if inner is None:
                return None
            return onnx_ir.SequenceType(inner) if isinstance(type_, SequenceType) else onnx_ir.OptionalType(inner)
        case _:
            return None


def onnx_ir_shape(type_: Type | None) -> onnx_ir.Shape | None:
    """Give the shape part of a type as onnx_ir has it."""
    while isinstance(type_, SequenceType | OptionalType):
        type_ = type_.elem
    if not isinstance(type_, TensorType | SparseTensorType) or type_.shape is None:
        return None
    return onnx_ir.Shape([_dim(d) for d in type_.shape])


def _dim(dim: Dim) -> int | str | None:
    return dim if isinstance(dim, int) or dim is None else str(dim)
