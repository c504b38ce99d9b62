"""The interface of a model, which callers rely on: names, types, documentation, metadata of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from memoptc.ir import protos
from memoptc.ir.core import Graph
from memoptc.ir.types import Type

_NO_PART = ("memoptc.", "quantization_annotation.")
"""Metadata that passes leave on values for each other, or that stands elsewhere in the file."""


@dataclass(frozen=True)
class Port:
    """An input or output as the file states it.

    Args:
        name: Its name.
        type: Its type, serialised: element type, and every extent by number, by symbol, or unknown.
        doc: Its doc string.
        metadata: Its metadata, sorted.
        replaceable: Whether it is an input that has a default.
    """

    name: str
    type: bytes
    doc: str
    metadata: tuple[tuple[str, str], ...]
    replaceable: bool = False


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def difference(self, other: Interface) -> str:
        """Say how another one differs; `""` when it does not."""
        for side, mine, theirs in (("input", self.inputs, other.inputs), ("output", self.outputs, other.outputs)):
            names, found = [p.name for p in mine], [p.name for p in theirs]
            if names != found:
                return f"the {side}s are {', '.join(found) or 'none'} instead of {', '.join(names) or 'none'}"
            for a, b in zip(mine, theirs, strict=True):
                if a.type != b.type:
                    return f"{side} {a.name!r} is {_spelled(b.type)} instead of {_spelled(a.type)}"
                if a != b:
                    fields = ("doc", "metadata", "replaceable")
                    what = next(f for f in fields if getattr(a, f) != getattr(b, f))
                    return f"{what} of {side} {a.name!r} is {getattr(b, what)!r} instead of {getattr(a, what)!r}"
        return ""


def interface_of(graph: Graph) -> Interface:
    """Give the interface of a top graph."""
    inputs = (_port(v.name, v.type, v.doc, v.metadata, v in graph.defaults) for v in graph.inputs)
    outputs = (_port(o.name, o.type, o.doc, o.metadata) for o in graph.outputs_info)
    return Interface(tuple(inputs), tuple(outputs))


def _port(name: str, type: Type | None, doc: str, metadata: Mapping[str, str], replaceable: bool = False) -> Port:
    written = onnx.TypeProto()
    if type is not None:
        protos.write_type(type, written)
    kept = tuple(sorted((k, v) for k, v in metadata.items() if not k.startswith(_NO_PART)))
    return Port(name, written.SerializeToString(deterministic=True), doc, kept, replaceable)


def _spelled(serialised: bytes) -> str:
    proto = onnx.TypeProto()
    proto.ParseFromString(serialised)
    if proto.WhichOneof("value") != "tensor_type":
        return proto.WhichOneof("value") or "untyped"
    tensor = proto.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{dtype}[*]"
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    return f"{dtype}[{', '.join(dims)}]"
