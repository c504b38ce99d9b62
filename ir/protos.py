"""Small conversions between ONNX protobufs and our facts: types, dimensions, attributes."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import onnx
import onnx_ir
from onnx_ir import serde

from memoptc.ir.core import AttrRef, EmptyList, Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import Dim, KnownDim, Sym, substitute
from memoptc.ir.types import (
    DType,
    MapType,
    OpaqueType,
    OptionalType,
    SequenceType,
    Shape,
    SparseTensorType,
    TensorType,
    Type,
    as_tensor,
)

Attr = onnx.AttributeProto
_PLACEHOLDER = re.compile(r"\?|None|-1|\*|unk|unknown|dynamic|")
_LISTS = {Attr.FLOATS, Attr.INTS, Attr.STRINGS, Attr.TENSORS, Attr.TYPE_PROTOS, Attr.SPARSE_TENSORS}


class DimReader:
    """Reads dimensions of one model; the same spelling is the same symbol, placeholders never are.

    Args:
        spelled: Spellings that the model has, so that no name is made up that is one of them.

    Exporters write `?`, `None` or nothing for any dimension they do not know, so two of them say nothing
    about each other; on an input each becomes a symbol of its own, elsewhere it is unknown.
    """

    def __init__(self, spelled: Iterable[str] = ()) -> None:
        self._known: dict[str, Dim] = {}
        self._names: set[str] = set(spelled)
        self._made_up: dict[str, KnownDim] = {}
        """Names that were made up for spellings that are none -> what they stand for where the model spells them."""

    def read(self, proto: onnx.TensorShapeProto.Dimension, owner: str, axis: int, *, fresh: bool) -> Dim:
        """Give the dimension of axis `axis` of value `owner`; `fresh`: a placeholder becomes a symbol."""
        kind = proto.WhichOneof("value")
        if kind == "dim_value" and proto.dim_value >= 0:
            return int(proto.dim_value)
        spelling = proto.dim_param if kind == "dim_param" else ""
        if _PLACEHOLDER.fullmatch(spelling):
            return Sym(self._unique(f"{owner}_d{axis}"), spelling) if fresh else None
        if spelling not in self._known:
            self._known[spelling] = self._parse(spelling)
        return self._known[spelling]

    def _parse(self, spelling: str) -> Dim:
        try:
            dim = parse_dim(spelling)
        except ValueError:
            return Sym(self._unique(spelling), spelling)
        if isinstance(dim, Sym):
            for name in sorted(dim.free & self._made_up.keys()):
                if self._made_up[name] == Sym(name):
                    self._made_up[name] = Sym(self._unique(name), name)
            renamed = substitute(dim, self._made_up)
            if renamed != dim:
                return renamed.spelled(spelling) if isinstance(renamed, Sym) else renamed
            self._names |= dim.free
            return dim if str(dim) == spelling else dim.spelled(spelling)
        return Sym(self._unique(f"d_{spelling}"), spelling)

    def _unique(self, hint: str) -> str:
        base = re.sub(r"\W", "_", hint)
        base = f"d_{base}" if not base[:1].isalpha() or keyword.iskeyword(base) else base
        name, n = base, 1
        while name in self._names:
            name, n = f"{base}_{n}", n + 1
        self._names.add(name)
        self._made_up[name] = Sym(name)
        return name


def read_type(proto: onnx.TypeProto, dims: DimReader, owner: str, *, fresh: bool = False) -> Type | None:
    """Read a type; `None` when the protobuf states none."""
    kind, denotation = proto.WhichOneof("value"), proto.denotation
    if kind == "tensor_type":
        shape, axes = _read_shape(proto.tensor_type, dims, owner, fresh)
        return TensorType(_dtype(proto.tensor_type.elem_type, owner), shape, denotation, axes)
    if kind == "sparse_tensor_type":
        shape, _ = _read_shape(proto.sparse_tensor_type, dims, owner, fresh)
        return SparseTensorType(_dtype(proto.sparse_tensor_type.elem_type, owner), shape, denotation)
    if kind == "sequence_type":
        return SequenceType(read_type(proto.sequence_type.elem_type, dims, owner, fresh=fresh), denotation)
    if kind == "optional_type":
        return OptionalType(read_type(proto.optional_type.elem_type, dims, owner, fresh=fresh), denotation)
    if kind == "map_type":
        key = _dtype(proto.map_type.key_type, owner)
        return MapType(key, read_type(proto.map_type.value_type, dims, owner, fresh=fresh), denotation)
    if kind == "opaque_type":
        return OpaqueType(proto.opaque_type.domain, proto.opaque_type.name, denotation)
    return None


def _dtype(number: int, owner: str) -> DType:
    try:
        return DType(number)
    except ValueError:
        raise InputError(
            f"Value {owner!r} has element type {number}, which this version of ONNX does not know.",
            hint="Upgrade onnx and onnx-ir, or export the model again.",
        ) from None


def _read_shape(proto: Any, dims: DimReader, owner: str, fresh: bool) -> tuple[Shape | None, tuple[str, ...]]:
    if not proto.HasField("shape"):
        return None, ()
    shape = tuple(dims.read(d, owner, i, fresh=fresh) for i, d in enumerate(proto.shape.dim))
    axes = tuple(d.denotation for d in proto.shape.dim)
    return shape, axes if any(axes) else ()


def write_type(type_: Type | None, proto: onnx.TypeProto) -> None:
    """Write a type into an empty protobuf; nothing for an unknown one."""
    if type_ is None:
        return
    if type_.denotation:
        proto.denotation = type_.denotation
    if isinstance(type_, TensorType | SparseTensorType):
        tensor = as_tensor(type_)
        target = proto.sparse_tensor_type if tensor is None else proto.tensor_type
        target.elem_type = int(type_.dtype)
        if type_.shape is not None:
            axes = () if tensor is None else tensor.axis_denotations
            target.shape.SetInParent()
            for index, dim in enumerate(type_.shape):
                written = target.shape.dim.add()
                _write_dim(dim, written)
                if index < len(axes) and axes[index]:
                    written.denotation = axes[index]
    elif isinstance(type_, SequenceType):
        proto.sequence_type.SetInParent()
        proto.sequence_type.elem_type.SetInParent()
        write_type(type_.elem, proto.sequence_type.elem_type)
    elif isinstance(type_, OptionalType):
        proto.optional_type.SetInParent()
        proto.optional_type.elem_type.SetInParent()
        write_type(type_.elem, proto.optional_type.elem_type)
    elif isinstance(type_, MapType):
        proto.map_type.key_type = int(type_.key)
        proto.map_type.value_type.SetInParent()
        write_type(type_.value, proto.map_type.value_type)
    else:
        proto.opaque_type.domain, proto.opaque_type.name = type_.domain, type_.name


def _write_dim(dim: Dim, proto: onnx.TensorShapeProto.Dimension) -> None:
    if isinstance(dim, int):
        proto.dim_value = dim
    elif dim is not None:
        spelling = str(dim) if dim.spelling is None else dim.spelling
        if spelling:
            proto.dim_param = spelling


def kind_name(kind: int) -> str:
    """Give an attribute type's name, such as `INTS`."""
    name: str = Attr.AttributeType.Name(kind)
    return name


def _text(content: bytes) -> str | bytes:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content


def read_attr(proto: onnx.AttributeProto, tensor: Callable[[onnx.TensorProto], Tensor], dims: DimReader) -> Any:
    """Read an attribute that is no graph.

    Args:
        proto: The attribute.
        tensor: How to read a tensor.
        dims: Reader of dimensions inside types.
    """
    kind = proto.type or _guess_kind(proto)
    if proto.ref_attr_name:
        return AttrRef(proto.ref_attr_name, kind_name(kind))
    match kind:
        case Attr.FLOAT:
            return proto.f
        case Attr.INT:
            return proto.i
        case Attr.STRING:
            return _text(proto.s)
        case Attr.TENSOR:
            return tensor(proto.t)
        case Attr.SPARSE_TENSOR:
            return proto.sparse_tensor
        case Attr.TYPE_PROTO:
            return read_type(proto.tp, dims, proto.name)
        case Attr.FLOATS:
            values: tuple[Any, ...] = tuple(proto.floats)
        case Attr.INTS:
            values = tuple(proto.ints)
        case Attr.STRINGS:
            texts = [_text(s) for s in proto.strings]
            same = all(isinstance(t, str) for t in texts)
            values = tuple(texts) if same else tuple(proto.strings)
        case Attr.GRAPHS:  # none of them; others are regions
            values = ()
        case Attr.TENSORS:
            values = tuple(tensor(t) for t in proto.tensors)
        case Attr.SPARSE_TENSORS:
            values = tuple(proto.sparse_tensors)
        case Attr.TYPE_PROTOS:
            values = tuple(read_type(t, dims, proto.name) for t in proto.type_protos)
        case _:
            raise InputError(f"Attribute {proto.name!r} has no type that ONNX knows ({kind}).")
    return values if values else EmptyList(kind_name(kind))


def _guess_kind(proto: onnx.AttributeProto) -> int:
    """Attributes of IR version 1 models carry no type; the filled field tells it."""
    fields = {"f": Attr.FLOAT, "i": Attr.INT, "s": Attr.STRING, "t": Attr.TENSOR, "g": Attr.GRAPH}
    for field, kind in fields.items():
        if proto.HasField(field):
            return int(kind)
    lists = {"floats": Attr.FLOATS, "ints": Attr.INTS, "strings": Attr.STRINGS, "tensors": Attr.TENSORS}
    return next((int(kind) for field, kind in lists.items() if getattr(proto, field)), int(Attr.UNDEFINED))


def write_attr(name: str, value: Any, proto: onnx.AttributeProto) -> None:
    """Write an attribute that is no graph into an empty protobuf.

    Raises:
        TypeError: ONNX has no attribute of that kind.
    """
    proto.name = name
    if isinstance(value, AttrRef):
        proto.ref_attr_name, proto.type = value.name, Attr.AttributeType.Value(value.kind)
    elif isinstance(value, EmptyList):
        proto.type = Attr.AttributeType.Value(value.kind)
    elif isinstance(value, bool | int):
        proto.type, proto.i = Attr.INT, int(value)
    elif isinstance(value, float):
        proto.type, proto.f = Attr.FLOAT, value
    elif isinstance(value, str | bytes):
        proto.type, proto.s = Attr.STRING, value.encode() if isinstance(value, str) else value
    elif isinstance(value, onnx.SparseTensorProto):
        proto.type = Attr.SPARSE_TENSOR
        proto.sparse_tensor.CopyFrom(value)
    elif isinstance(value, Type):
        proto.type = Attr.TYPE_PROTO
        proto.tp.SetInParent()
        write_type(value, proto.tp)
    elif isinstance(value, tuple):
        _write_list(value, proto)
    elif hasattr(value, "tobytes"):
        proto.type = Attr.TENSOR
        write_tensor(value, proto.t)
    else:
        raise TypeError(f"attribute {name!r}: ONNX has no attribute of type {type(value).__name__}")


def write_tensor(tensor: Tensor, proto: onnx.TensorProto) -> None:
    """Write a tensor into an empty protobuf, with its content wherever that lies."""
    if isinstance(tensor, onnx_ir.ExternalTensor):
        proto.data_type, proto.raw_data = int(tensor.dtype), tensor.tobytes()
        proto.dims.extend(tensor.shape.numpy())
        proto.name = tensor.name or ""
    else:
        serde.serialize_tensor_into(proto, tensor)


def _write_list(values: tuple[Any, ...], proto: onnx.AttributeProto) -> None:
    first = values[0]
    if all(isinstance(v, int) for v in values):
        proto.type = Attr.INTS
        proto.ints.extend(int(v) for v in values)
    elif all(isinstance(v, int | float) for v in values):
        proto.type = Attr.FLOATS
        proto.floats.extend(float(v) for v in values)
    elif all(isinstance(v, str | bytes) for v in values):
        proto.type = Attr.STRINGS
        proto.strings.extend(v.encode() if isinstance(v, str) else v for v in values)
    elif isinstance(first, onnx.SparseTensorProto):
        proto.type = Attr.SPARSE_TENSORS
        proto.sparse_tensors.extend(values)
    elif first is None or isinstance(first, Type):
        proto.type = Attr.TYPE_PROTOS
        for type_ in values:
            write_type(type_, proto.type_protos.add())
    elif hasattr(first, "tobytes"):
        proto.type = Attr.TENSORS
        for tensor in values:
            write_tensor(tensor, proto.tensors.add())
    else:
        raise TypeError(f"attribute {proto.name!r}: ONNX has no list of {type(first).__name__}")


_FIELDS = {
    "float_data": (DType.FLOAT, DType.COMPLEX64),
    "double_data": (DType.DOUBLE, DType.COMPLEX128),
    "int64_data": (DType.INT64,),
    "uint64_data": (DType.UINT32, DType.UINT64),
    "string_data": (DType.STRING,),
}
"""Where tensors without raw bytes have their elements; others in `int32_data`."""


def element_count_fault(proto: onnx.TensorProto, dtype: DType) -> str:
    """Say what is wrong with the elements of a tensor without raw bytes; `""` when nothing is."""
    field = next((name for name, dtypes in _FIELDS.items() if dtype in dtypes), "int32_data")
    elements = prod(proto.dims)
    need = 2 * elements if dtype in (DType.COMPLEX64, DType.COMPLEX128) else elements
    if dtype != DType.STRING and dtype.bitwidth < 8:
        need = -(-elements * dtype.bitwidth // 8)
    held = len(getattr(proto, field))
    if held != need:
        return f"needs {need} numbers in {field} but holds {held}"
    others = [name for name in (*_FIELDS, "int32_data") if name != field and len(getattr(proto, name))]
    return f"has elements in {others[0]}" if others else ""


def read_props(props: Any) -> dict[str, str]:
    """Read metadata properties.

    Raises:
        InputError: one is no text.
    """
    found = {p.key: p.value for p in props}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"Metadata {key!r:.60} is not UTF-8.", hint="Export the model again.")
    return found


def write_props(metadata: Mapping[str, str], props: Any) -> None:
    """Write metadata properties."""
    for key, value in metadata.items():
        entry = props.add()
        entry.key, entry.value = key, value
