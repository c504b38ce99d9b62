"""ONNX out: `Graph` to protobuf, to a file, with weights beside it where they are large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from memoptc.ir import forms, ops, protos
from memoptc.ir.core import Function, Graph, Op, Tensor, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Dim, Sym
from memoptc.ir.facts import OBSERVED, UNSTATED
from memoptc.ir.files import staged, written_files
from memoptc.ir.forms import WritingForm
from memoptc.ir.mapped import is_external
from memoptc.ir.onnx_data import DataSink, ExternalData
from memoptc.ir.onnx_names import Names
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType, Type, as_tensor

INLINE_LIMIT = 1_500_000_000
"""Weights above this go beside the model: one protobuf message holds at most 2 GB, structure included."""

EXTERNAL_THRESHOLD = 1024
"""Smaller tensors stay inline; onnxruntime needs shapes and the like at load time anyway."""

AS_IT_WAS = WritingForm()
"""A plain graph, its weights where they lay in the original."""


class _Writer:
    def __init__(self, graph: Graph, external: DataSink | None, threshold: int) -> None:
        self.graph = graph
        self.external = external
        self.threshold = threshold
        self.names = Names()
        self.written: dict[Op, onnx.TensorProto] = {}
        self.nameless = nameless_symbols(graph)

    def model(self) -> onnx.ModelProto:
        info = self.graph.info
        proto = onnx.ModelProto(ir_version=info.ir_version)
        for field, text in (
            ("producer_name", info.producer_name),
            ("producer_version", info.producer_version),
            ("domain", info.domain),
            ("doc_string", info.doc),
        ):
            if text:
                setattr(proto, field, text)
        if info.model_version:
            proto.model_version = info.model_version
        _opsets(info.opset_imports, proto.opset_import)
        protos.write_props(info.metadata, proto.metadata_props)
        for field, parts in info.opaque.items():
            for part in parts:
                getattr(proto, field).add().ParseFromString(part)
        self.names.assign(self.graph)
        self._write_in_order()
        self._graph(self.graph, proto.graph)
        for function in info.functions.values():
            self._function(function, proto.functions.add())
        return proto

    def _write_in_order(self) -> None:
        """Write large weights in the order in which a run first reads them: front to end."""
        if self.external is None:
            return
        for op in self.graph.walk():
            for value in op.operands:
                weight = value.op
                if weight is not None and weight.is_const and weight not in self.written:
                    tensor = weight.attrs["value"]
                    if self._is_large(tensor):
                        self.written[weight] = self.external.write(self.names.of[value], tensor)

    def _is_large(self, tensor: Tensor) -> bool:
        return tensor.dtype != DType.STRING and nbytes(tensor) >= self.threshold

    def _graph(self, graph: Graph, proto: onnx.GraphProto) -> None:
        proto.name = graph.name or "graph"
        if graph.doc:
            proto.doc_string = graph.doc
        protos.write_props(_written(graph.metadata), proto.metadata_props)
        inferred = _leaves_types_open(graph)
        for value in graph.inputs:
            type_ = value.type if graph is self.graph else self._shown(_stated(value))
            self._value(value, proto.input.add(), type_)
            if value in graph.defaults:
                self._tensor(self.names.of[value], graph.defaults[value], proto.initializer.add())
        legacy = graph.parent is None and graph.root.model is not None and graph.info.ir_version < 4
        returned = set(graph.outputs)
        for op in graph.ops:
            if op.is_const:
                self._tensor(self.names.of[op.result], op.attrs["value"], proto.initializer.add(), op.result)
                if legacy:
                    self._value(op.result, proto.input.add(), op.result.type)
                continue
            if op.op_type == "sparse_const":
                proto.sparse_initializer.add().CopyFrom(op.attrs["value"])
                proto.sparse_initializer[-1].values.name = self.names.of[op.result]
                continue
            if op.op_type == "absent":
                continue
            self._node(op, proto.node.add())
            for result in op.results:
                ranked = result.metadata.get(UNSTATED) == "extents"
                stated = self.graph.info.states_types and result.type is not None and not _is_untyped(result)
                described = bool(result.doc or result.metadata.keys() - {OBSERVED})
                if not result.omitted and ((stated and not inferred) or described) and result not in returned:
                    type_ = _ranked(result) if ranked else None if inferred else self._shown(result.type)
                    self._value(result, proto.value_info.add(), type_)
        self._tail(graph, proto)

    def _tail(self, graph: Graph, proto: onnx.GraphProto) -> None:
        for source, name in self.names.identities[graph]:
            proto.node.add(op_type="Identity", name=f"Identity_{name}", input=[source], output=[name])
        for info, name in zip(graph.outputs_info, self.names.outputs[graph], strict=True):
            written = proto.output.add(name=name)
            if info.type is not None:
                protos.write_type(info.type if graph is self.graph else self._shown(info.type), written.type)
            if info.doc:
                written.doc_string = info.doc
            protos.write_props(info.metadata, written.metadata_props)
        for value in (*graph.inputs, *(result for op in graph.ops for result in op.results)):
            _quantization_note(value, self.names.of.get(value, ""), proto)

    def _shown(self, type_: Type | None) -> Type | None:
        """Type to write for a value that is neither input nor output of the model."""
        tensor = as_tensor(type_)
        if not self.nameless or tensor is None or tensor.shape is None:
            return type_
        shape = tuple(d if is_named(d, self.nameless) else None for d in tensor.shape)
        return type_ if shape == tensor.shape else replace(tensor, shape=shape)

    def _value(self, value: Value, proto: onnx.ValueInfoProto, type_: Type | None) -> None:
        proto.name = self.names.of[value]
        if type_ is not None:
            protos.write_type(type_, proto.type)
        if value.doc and not (value.op is not None and value.op.is_const):
            proto.doc_string = value.doc
        plain = _written(value.metadata)
        if not (value.op is not None and value.op.is_const):
            protos.write_props(plain, proto.metadata_props)

    def _tensor(self, name: str, tensor: Tensor, proto: onnx.TensorProto, value: Value | None = None) -> None:
        if self.external is not None and self._is_large(tensor):
            early = self.written.get(value.op) if value is not None and value.op is not None else None
            proto.CopyFrom(early if early is not None else self.external.write(name, tensor))
        else:
            protos.write_tensor(tensor, proto)
            proto.name = name
        if value is not None:
            proto.ClearField("doc_string")
            if value.doc:
                proto.doc_string = value.doc
            del proto.metadata_props[:]
            plain = _written(value.metadata)
            protos.write_props(plain, proto.metadata_props)

    def _node(self, op: Op, proto: onnx.NodeProto) -> None:
        proto.op_type = op.op_type
        if op.name:
            proto.name = op.name
        if op.domain:
            proto.domain = op.domain
        if op.overload:
            proto.overload = op.overload
        if op.doc:
            proto.doc_string = op.doc
        protos.write_props(op.metadata, proto.metadata_props)
        proto.input.extend("" if v.is_absent else self.names.of[v] for v in op.operands)
        proto.output.extend("" if r.omitted else self.names.of[r] for r in op.results)
        for name, value in op.attrs.items():
            protos.write_attr(name, _as_declared(op, name, value), proto.attribute.add())
        for key, region in op.regions.items():
            name, _, index = key.partition("#")
            if index:
                attr = next((a for a in proto.attribute if a.name == name), None) or proto.attribute.add(
                    name=name, type=protos.Attr.GRAPHS
                )
                self._graph(region, attr.graphs.add())
            else:
                self._graph(region, proto.attribute.add(name=name, type=protos.Attr.GRAPH).g)

    def _function(self, function: Function, proto: onnx.FunctionProto) -> None:
        proto.domain, proto.name = function.domain, function.name
        if function.overload:
            proto.overload = function.overload
        if function.doc:
            proto.doc_string = function.doc
        protos.write_props(function.metadata, proto.metadata_props)
        _opsets(function.opset_imports, proto.opset_import)
        body = function.body
        self.names.assign(body)
        proto.input.extend(self.names.of[v] for v in body.inputs)
        for name, default in function.attrs.items():
            if default is None:
                proto.attribute.append(name)
            else:
                protos.write_attr(name, default, proto.attribute_proto.add())
        for op in body.ops:
            if op.is_const:
                raise InputError(f"Function {function.name!r} holds a weight; ONNX functions cannot.")
            if op.op_type != "absent":
                self._node(op, proto.node.add())
                for result in op.results:
                    if result.type is not None and not result.omitted and hasattr(proto, "value_info"):
                        self._value(result, proto.value_info.add(), result.type)
        for source, name in self.names.identities[body]:
            proto.node.add(op_type="Identity", input=[source], output=[name])
        proto.output.extend(self.names.outputs[body])


def nameless_symbols(graph: Graph) -> frozenset[str]:
    """Symbols that the inputs do not spell: said of inner values, onnxruntime would report them of outputs."""
    return frozenset(name for value in graph.inputs for name in _spelled_otherwise(value.type))


def is_named(dim: Dim, nameless: frozenset[str]) -> bool:
    """True if a file states this extent of an inner value: a number, or a symbol that can be told from others."""
    if isinstance(dim, Sym):
        return bool(dim.spelling) if dim.spelling is not None else not dim.free & nameless
    return dim is not None


def _spelled_otherwise(type_: Type | None) -> Iterator[str]:
    tensor = as_tensor(type_)
    for dim in (tensor.shape or ()) if tensor is not None else ():
        if isinstance(dim, Sym) and dim.name is not None and dim.spelling is not None:
            yield dim.name


def _stated(value: Value) -> Type | None:
    """Type of a body's input as a file may state it: what the original said, the rest being inferred."""
    unstated = value.metadata.get(UNSTATED)
    if unstated == "type":
        return None
    tensor = value.tensor_type
    return value.type if tensor is None or not unstated else replace(tensor, shape=None)


def _ranked(value: Value) -> Type | None:
    """Its type without extents."""
    tensor = value.tensor_type
    return None if tensor is None else replace(tensor, shape=(None,) * (value.rank or 0))


def _leaves_types_open(graph: Graph) -> bool:
    """True if a region, or one around it, leaves types open, or has inputs whose types the file leaves open."""
    while graph.parent is not None:
        if UNSTATED in graph.metadata or any(UNSTATED in value.metadata for value in graph.inputs):
            return True
        outer = graph.parent.graph
        if outer is None:
            return False
        graph = outer
    return False


def _is_untyped(value: Value) -> bool:
    return value.dtype == DType.UNDEFINED


def _as_declared(op: Op, name: str, value: Any) -> Any:
    """Whole numbers written for an attribute that ONNX declares as floats are floats."""
    found = ops.schema_of(op)
    if found is None or name not in found.attributes:
        return value
    kind, types = found.attributes[name].type, onnx.defs.OpSchema.AttrType
    if kind == types.FLOAT and isinstance(value, int):
        return float(value)
    if kind == types.FLOATS and isinstance(value, tuple):
        return tuple(float(v) for v in value)
    return value


def _written(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata for the file: quantization annotations have entries of their own, others are notes of ours."""
    own = (OBSERVED, UNSTATED)
    return {k: v for k, v in metadata.items() if not k.startswith("quantization_annotation.") and k not in own}


def _quantization_note(value: Value, name: str, proto: onnx.GraphProto) -> None:
    prefix = "quantization_annotation."
    entries = {k.removeprefix(prefix): v for k, v in value.metadata.items() if k.startswith(prefix)}
    if entries:
        note = proto.quantization_annotation.add(tensor_name=name)
        for key, text in entries.items():
            note.quant_parameter_tensor_names.add(key=key, value=text)


def _opsets(imports: dict[str, int], target: Any) -> None:
    for domain, version in imports.items():
        target.add(domain=domain, version=version)


def weight_tensors(graph: Graph) -> Iterable[Tensor]:
    """Every weight of a model, each `const` once."""
    for op in graph.walk("const"):
        yield op.attrs["value"]


def to_proto(graph: Graph, form: WritingForm = AS_IT_WAS) -> onnx.ModelProto:
    """Give the model as one protobuf, weights inline.

    Args:
        graph: The model.
        form: Whether it runs inside a branch.

    Raises:
        InputError: the weights are too large for one protobuf message.
    """
    total = sum(nbytes(t) for t in weight_tensors(graph))
    if total > INLINE_LIMIT:
        raise InputError(
            f"The model's weights ({total / 1e9:.1f} GB) do not fit into one protobuf message.",
            hint="Write it to a file instead.",
        )
    return _to_proto(graph, form, None, EXTERNAL_THRESHOLD)


def _to_proto(graph: Graph, form: WritingForm, data: ExternalData | None, threshold: int) -> onnx.ModelProto:
    if form.name == "plain":
        return _Writer(graph, data, threshold).model()
    wrapped = forms.wrap(graph, captured=form.name == "captured", shapeless=form.name == "shapeless")
    proto = _Writer(wrapped, data, threshold).model()
    proto.metadata_props.add(key=forms.KEY, value=form.name)
    return proto


def proto_with_weights(graph: Graph, data: DataSink, threshold: int) -> onnx.ModelProto:
    """Give a model as a plain graph whose weights of `threshold` bytes or more go where the sink puts them."""
    return _Writer(graph, data, threshold).model()


def write_onnx(graph: Graph, path: str | Path, form: WritingForm = AS_IT_WAS) -> list[Path]:
    """Write a model whole or not at all.

    Args:
        graph: The model.
        path: Where to; with external weights, `PATH.data` is written beside it.
        form: Inside a branch or plain, weights inline or beside the model.

    Returns:
        The files written.

    Raises:
        InputError: the place cannot be written or the disk is full.
    """
    path = Path(path)
    with staged(path) as inner:
        files = write_into(graph, inner, form)
    return written_files(path, files)


def write_into(
    graph: Graph, path: Path, form: WritingForm = AS_IT_WAS, *, threshold: int = EXTERNAL_THRESHOLD
) -> list[Path]:
    """Write a model straight to `path` (use `write_onnx` unless `path` lies in a staging folder)."""
    tensors = list(weight_tensors(graph))
    external = form.external
    if external is None:
        external = any(is_external(t) for t in tensors)
        external = external or sum(nbytes(t) for t in tensors) > INLINE_LIMIT
    data = ExternalData(path.with_name(f"{path.name}.data"), tensors) if external else None
    try:
        proto = _to_proto(graph, form, data, threshold)
    finally:
        if data is not None:
            data.close()
    path.write_bytes(proto.SerializeToString(deterministic=True))
    if data is None:
        return [path]
    if data.offset == 0:
        data.path.unlink()
        return [path]
    return [data.path, path]
