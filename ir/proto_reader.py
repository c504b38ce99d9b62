"""Reads the protobuf of a model into the graph of the IR, and says where it breaks a rule of ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from memoptc.ir import forms, protos
from memoptc.ir.core import Function, Graph, Loc, ModelInfo, Op, Output, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.facts import UNSTATED
from memoptc.ir.form_names import FORMS
from memoptc.ir.mapped import DataFile
from memoptc.ir.onnx_order import Scope, broken_rule, called, in_order
from memoptc.ir.onnx_weights import WeightReader
from memoptc.ir.protos import DimReader
from memoptc.ir.schema_rules import node_fault, region_fault
from memoptc.ir.tensors import tensor_type
from memoptc.ir.types import DType, SparseTensorType, Type, as_tensor, is_shapeless

OPAQUE = ("training_info", "configuration")


class ProtoReader:
    """Reader of one model: its weights are found in `folder`, or in the model's own file where that is given."""

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        label: str,
        own: DataFile | None = None,
        link_target: Path | None = None,
    ) -> None:
        self.model = model
        self.label = label
        spelled = (d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim)
        self.dims = DimReader(filter(None, spelled))
        self._weights = WeightReader(folder, label, own, link_target)

    def read(self, digest: str) -> Graph:
        """Read the model, whose file has the SHA-256 `digest`.

        Raises:
            InputError: it breaks a rule of ONNX; the message names the node or value.
        """
        with warnings.catch_warnings():
            # Weights may lie beside the file a second time, in a kernel's own layout: onnxruntime writes and reads it.
            warnings.filterwarnings("ignore", "Ignoring unknown external data key", UserWarning)
            return self._read(digest)

    def _read(self, digest: str) -> Graph:
        model = self.model
        info = ModelInfo(
            ir_version=model.ir_version,
            opset_imports=self._imports(model.opset_import),
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            domain=model.domain,
            model_version=model.model_version,
            doc=model.doc_string,
            metadata=protos.read_props(model.metadata_props),
            source_sha256=digest,
            states_types=bool(model.graph.value_info),
        )
        self._check_text("the model", model.producer_name, model.producer_version, model.domain, model.doc_string)
        self._check_versions(info)
        self.opset = info.opset_imports.get("")
        known = {f.name for f in model.DESCRIPTOR.fields}
        for name in OPAQUE:
            if name in known and len(getattr(model, name)):
                info.opaque[name] = tuple(m.SerializeToString() for m in getattr(model, name))
        functions = {(f.domain, f.name, getattr(f, "overload", "")) for f in model.functions}
        self.domains = set(info.opset_imports) | {domain for domain, _, _ in functions}
        graph = Graph(model.graph.name, info)
        self._graph(model.graph, graph, Scope())
        for function in model.functions:
            read = self._function(function)
            key = (read.domain, read.name, read.overload)
            if key in info.functions:
                raise broken_rule(self.label, f"function {read.name!r} of domain {read.domain!r} is defined twice")
            info.functions[key] = read
        for body in (graph, *(f.body for f in info.functions.values())) if info.functions else ():
            self._check_calls(body, info)
        self._undo_writing_form(graph)
        return graph

    def _check_calls(self, graph: Graph, info: ModelInfo) -> None:
        for op in graph.walk():
            function = info.functions.get((op.domain, op.op_type, op.overload))
            if function is not None:
                body = function.body
                if len(op.operands) > len(body.inputs) or len(op.results) > len(body.outputs):
                    raise broken_rule(
                        self.label, f"node {op.name!r} hands more values to function {op.op_type!r} than it takes"
                    )

    def _undo_writing_form(self, graph: Graph) -> None:
        """Undo the form that memoptc wrote the file in; `graph.info.form` remembers it."""
        name = graph.info.metadata.pop(forms.KEY, "")
        marked = name in FORMS or any(op.is_a("SequenceEmpty") and op.name == forms.MARKER for op in graph.ops)
        if marked and forms.unwrap(graph):
            graph.info.form = name or "branch"

    def _imports(self, opsets: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in opsets:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            found[domain] = max(entry.version, found.get(domain, 0))
        return found

    def _check_versions(self, info: ModelInfo) -> None:
        newest = onnx.defs.onnx_opset_version()
        version = info.opset_imports.get("")
        if version is None and info.ir_version < 3:
            version = info.opset_imports[""] = 1
        if version is not None and not 1 <= version <= newest:
            raise InputError(
                f"{self.label} uses opset {version}; the installed onnx {onnx.__version__} knows 1 to {newest}.",
                hint="Upgrade onnx and onnxruntime, or export the model with an older opset.",
            )
        if info.ir_version > onnx.IR_VERSION:
            raise InputError(
                f"{self.label} has IR version {info.ir_version}; the installed onnx knows up to {onnx.IR_VERSION}.",
                hint="Upgrade onnx and onnxruntime, or export the model again.",
            )

    # -- graphs ---------------------------------------------------------------------------------------

    def _graph(self, proto: onnx.GraphProto, graph: Graph, scope: Scope) -> None:
        self._check_text("the graph", proto.name, proto.doc_string)
        for info in (*proto.input, *proto.output, *proto.value_info):
            self._check_text("a value", info.name, info.doc_string)
        for tensor in proto.initializer:
            self._check_text("a weight", tensor.name, tensor.doc_string)
        graph.doc = proto.doc_string
        graph.metadata = protos.read_props(proto.metadata_props)
        constants = {t.name: t for t in proto.initializer}
        for info in proto.input:
            if info.name in scope:
                raise broken_rule(self.label, f"two inputs are called {info.name!r}")
            if info.name in constants and self.model.ir_version < 4:
                continue
            value = graph.add_input(info.name, self._type(info, fresh=True))
            self._describe(value, info)
            if graph.model is None:
                value.metadata.update(_unstated(value.type))
            scope[info.name] = value
        for tensor in proto.initializer:
            self._initializer(tensor, graph, scope)
        for sparse in proto.sparse_initializer:
            self._sparse_initializer(sparse, graph, scope)
        for node in in_order(proto.node, scope, proto.name, self.label):
            graph.append(self._node(node, graph, scope))
        self._facts(proto, scope)
        self._outputs(proto.output, graph, scope)

    def _initializer(self, proto: onnx.TensorProto, graph: Graph, scope: Scope) -> None:
        tensor = self._weights.read(proto)
        held = scope.get(proto.name)
        if held is not None:
            if not held.is_input or held in graph.defaults:
                raise broken_rule(self.label, f"two weights are called {proto.name!r}")
            graph.defaults[held] = tensor
            return
        op = Op("const", (), (tensor_type(tensor),), {"value": tensor}, result_names=(proto.name,))
        self._describe_tensor(op.result, proto)
        scope[proto.name] = graph.append(op).result

    def _describe_tensor(self, value: Value, proto: onnx.TensorProto) -> None:
        value.doc = proto.doc_string
        value.metadata = protos.read_props(proto.metadata_props) if hasattr(proto, "metadata_props") else {}

    def _sparse_initializer(self, proto: onnx.SparseTensorProto, graph: Graph, scope: Scope) -> None:
        name = proto.values.name
        if name in scope:
            raise broken_rule(self.label, f"two weights are called {name!r}")
        type_ = SparseTensorType(DType(proto.values.data_type), tuple(proto.dims))
        op = Op("sparse_const", (), (type_,), {"value": proto}, result_names=(name,))
        scope[name] = graph.append(op).result

    def _outputs(self, infos: Sequence[onnx.ValueInfoProto], graph: Graph, scope: Scope) -> None:
        values, outputs = [], []
        for info in infos:
            value = scope.find(info.name)
            if value is None:
                raise broken_rule(self.label, f"output {info.name!r} of graph {graph.name!r} is never computed")
            declared = self._type(info, fresh=True)
            if value.type is None:
                value.type = self._type(info)
            values.append(value)
            outputs.append(Output(info.name, declared, info.doc_string, self._props(info)))
        graph.set_outputs(values, outputs)

    def _facts(self, proto: onnx.GraphProto, scope: Scope) -> None:
        """Put what `value_info` and `quantization_annotation` say onto the values."""
        for info in proto.value_info:
            value = scope.get(info.name)
            if value is not None and not value.is_input:
                if value.type is None:
                    value.type = self._type(info)
                self._describe(value, info)
        for note in proto.quantization_annotation:
            value = scope.get(note.tensor_name)
            if value is not None:
                for entry in note.quant_parameter_tensor_names:
                    value.metadata[f"quantization_annotation.{entry.key}"] = entry.value

    def _describe(self, value: Value, info: onnx.ValueInfoProto) -> None:
        value.doc = info.doc_string
        value.metadata.update(self._props(info))

    @staticmethod
    def _props(info: onnx.ValueInfoProto) -> dict[str, str]:
        return protos.read_props(info.metadata_props) if hasattr(info, "metadata_props") else {}

    def _type(self, info: onnx.ValueInfoProto, *, fresh: bool = False) -> Type | None:
        return protos.read_type(info.type, self.dims, info.name, fresh=fresh)

    # -- nodes ----------------------------------------------------------------------------------------

    def _node(self, node: onnx.NodeProto, graph: Graph, scope: Scope) -> Op:
        self._check_text("a node", node.op_type, node.domain, node.name, node.doc_string, *node.input, *node.output)
        self._check_text("an attribute", *(a.name for a in node.attribute), *(a.ref_attr_name for a in node.attribute))
        if not node.op_type:
            raise broken_rule(self.label, f"{called(node)} names no operator")
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in self.domains:
            raise InputError(
                f"{self.label}: {called(node)} is of domain {domain or 'ai.onnx'!r}, whose opset version the "
                "model does not state.",
                hint="Export the model again with an opset import for that domain.",
            )
        given = {a.name for a in node.attribute}
        if len(given) < len(node.attribute):
            raise broken_rule(self.label, f"{called(node)} has two attributes of one name")
        if not domain and (fault := node_fault(node.op_type, self.opset, len(node.input), len(node.output), given)):
            raise broken_rule(self.label, f"{called(node)} {fault}")
        operands = []
        for name in node.input:
            value = scope.find(name) if name else graph.absent()
            if value is None:
                raise broken_rule(self.label, f"{called(node)} uses {name!r}, which nothing defines")
            operands.append(value)
        attrs: dict[str, Any] = {}
        regions: dict[str, Graph] = {}
        op = Op(
            node.op_type,
            operands,
            (None,) * len(node.output),
            domain=domain,
            result_names=tuple(node.output),
            name=node.name,
            loc=Loc((node.name or (node.output[0] if node.output else node.op_type),)),
            overload=getattr(node, "overload", ""),
        )
        for attr in node.attribute:
            if attr.type == protos.Attr.GRAPH and not attr.ref_attr_name:
                regions[attr.name] = self._region(attr.g, scope)
            elif attr.type == protos.Attr.GRAPHS and attr.graphs and not attr.ref_attr_name:
                for index, g in enumerate(attr.graphs):
                    regions[f"{attr.name}#{index}"] = self._region(g, scope)
            else:
                attrs[attr.name] = protos.read_attr(attr, self._weights.read, self.dims)
        for name, value_ in attrs.items():
            op.set_attr(name, value_)
        for name, region in regions.items():
            op.set_region(name, region)
        if fault := region_fault(op, self.opset):
            raise broken_rule(self.label, f"{called(node)}: {fault}")
        op.doc = node.doc_string
        op.metadata = protos.read_props(node.metadata_props) if hasattr(node, "metadata_props") else {}
        for result in op.results:
            if result.name:
                scope[result.name] = result
            else:
                result.omitted = True
        return op

    def _region(self, proto: onnx.GraphProto, scope: Scope) -> Graph:
        region = Graph(proto.name)
        self._graph(proto, region, Scope(scope))
        return region

    def _function(self, proto: onnx.FunctionProto) -> Function:
        self._check_text("a function", proto.name, proto.domain, *proto.input, *proto.output, *proto.attribute)
        outer, opset = self.domains, self.opset
        self.domains = self.domains | set(self._imports(proto.opset_import))
        self.opset = self._imports(proto.opset_import).get("", opset)
        body = Graph(proto.name)
        scope = Scope()
        for name in proto.input:
            scope[name] = body.add_input(name)
        for node in in_order(proto.node, scope, proto.name, self.label):
            body.append(self._node(node, body, scope))
        for info in getattr(proto, "value_info", ()):
            value = scope.get(info.name)
            if value is not None:
                value.type = self._type(info)
        values = [scope.find(name) for name in proto.output]
        for name, found in zip(proto.output, values, strict=True):
            if found is None:
                raise broken_rule(self.label, f"output {name!r} of function {proto.name!r} is never computed")
        body.set_outputs([v for v in values if v is not None], [Output(n) for n in proto.output])
        attrs: dict[str, Any] = dict.fromkeys(proto.attribute)
        attrs |= {
            a.name: protos.read_attr(a, self._weights.read, self.dims) for a in getattr(proto, "attribute_proto", ())
        }
        self.domains, self.opset = outer, opset
        return Function(
            proto.domain,
            proto.name,
            getattr(proto, "overload", ""),
            body,
            attrs,
            self._imports(proto.opset_import),
            proto.doc_string,
            protos.read_props(getattr(proto, "metadata_props", ())),
        )

    def _check_text(self, what: str, *texts: str) -> None:
        """Protobuf gives bytes for texts that are not UTF-8."""
        for text in texts:
            if not isinstance(text, str):
                raise broken_rule(self.label, f"{what} has a name or text that is not UTF-8: {text!r:.60}")


def _unstated(type_: Type | None) -> dict[str, str]:
    """Note of the part of a body input's type that the file leaves open."""
    tensor = as_tensor(type_)
    if type_ is None or (tensor is not None and tensor.dtype == DType.UNDEFINED):
        return {UNSTATED: "type"}
    return {UNSTATED: "shape"} if is_shapeless(type_) else {}
