"""Parts of `.mir` text's ops: attribute values, tensors, types. The parser builds on this."""

# ruff: noqa: D102 (methods named after grammar rules: the grammar says what they are)

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
from google.protobuf.message import DecodeError
from lark import Token, Transformer

from memoptc.ir import element_spelling, spelling
from memoptc.ir.core import AttrRef, EmptyList, Graph, Tensor
from memoptc.ir.diagnostics import SourceError
from memoptc.ir.spelling import unquote
from memoptc.ir.types import (
    DType,
    MapType,
    OpaqueType,
    OptionalType,
    SequenceType,
    SparseTensorType,
    TensorType,
    Type,
)
from memoptc.ir.weights import take

T = TypeVar("T")
_ELIDED = "this tensor's content was left out when the text was printed"
_KINDS: dict[type, str] = {int: "a whole number", str: "a string", bytes: "bytes in base 64", tuple: "a list"}
_ELIDED_HINT = 'Print the graph with weights="inline" (memoptc opt --full), or write it with write_mir (-o FILE.mir).'


class Entry(NamedTuple):
    """`key=value`, the value not yet read."""

    key: Token
    value: Any


class Dense(NamedTuple):
    """`dense(type, content, facts)`."""

    place: Token
    type: Type | None
    content: Any
    facts: Sequence[Entry]


class Splat(NamedTuple):
    """`splat(number)`."""

    number: Token


class Rand(NamedTuple):
    """`rand(seed)`: random elements, the same ones everywhere."""

    number: Token


class ValueReader(Transformer[Token, Graph]):
    """Reads values. Each method that takes `children` belongs to the grammar rule of its name."""

    text: str
    file: str
    first_line: int
    sources: list[Mapping[str, Any]]

    def error(self, place: Token, what: str, hint: str = "", offset: int = 0) -> SourceError:
        """Give an error that points `offset` characters into a token."""
        line, col = place.line or 1, (place.column or 1) + offset
        return SourceError(what, self.text, line, col, file=self.file, first_line=self.first_line, hint=hint)

    # -- attribute values -----------------------------------------------------------------------------

    def table(self, children: list[Any]) -> list[Entry]:
        entries = [c for c in children if c is not None]
        seen: set[str] = set()
        for key, _ in entries:
            if (name := text_of(key)) in seen:
                raise self.error(key, f"{name!r} is given twice")
            seen.add(name)
        return entries

    def entry(self, children: list[Any]) -> Entry:
        return Entry(*children)

    def items(self, children: list[Any]) -> list[Any]:
        return children

    def ref(self, children: list[Any]) -> AttrRef:
        name, kind = children
        return AttrRef(text_of(name), self._kind(kind))

    def empty(self, children: list[Any]) -> EmptyList:
        return EmptyList(self._kind(children[0]))

    def _kind(self, token: Token) -> str:
        if token not in onnx.AttributeProto.AttributeType.keys():
            raise self.error(token, f"there is no attribute type {str(token)!r}", "There are INT, FLOATS, GRAPH, ...")
        return str(token)

    def splat(self, children: list[Any]) -> Splat:
        return Splat(children[0])

    def rand(self, children: list[Any]) -> Rand:
        return Rand(children[0])

    def dense(self, children: list[Any]) -> Dense:
        place, type_, content, *facts = children
        return Dense(place, type_, content, facts)

    def sparse_value(self, children: list[Any]) -> onnx.SparseTensorProto:
        proto = onnx.SparseTensorProto()
        try:
            proto.ParseFromString(self.raw_bytes(children[0]))
        except DecodeError:
            raise self.error(children[0], "these bytes are no sparse tensor") from None
        return proto

    def attrs_of(self, entries: Sequence[Entry], *, none: bool = False) -> dict[str, Any]:
        attrs = {text_of(key): self.value_of(key, raw) for key, raw in entries}
        if not none and None in attrs.values():
            key = next(k for k, _ in entries if attrs[text_of(k)] is None)
            raise self.error(key, "an attribute is not an unknown type")
        return attrs

    def const_attrs_of(self, entries: Sequence[Entry], types: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
        attrs = {}
        for key, raw in entries:
            if key == "value" and len(types) == 1:
                attrs["value"] = self.content_of(key, raw, types[0][0], names[0])
            else:
                attrs[text_of(key)] = self.value_of(key, raw)
        return attrs

    def value_of(self, place: Token, raw: Any) -> Any:
        """Give an attribute's value."""
        if isinstance(raw, Token):
            match raw.type:
                case "NUMBER":
                    return self._checked(raw, spelling.number_of)
                case "STRING":
                    return self.string(raw)
                case "NUMBERS":
                    return self._checked(raw, spelling.numbers_of)
                case "BYTES":
                    return self.raw_bytes(raw)
                case "ELIDED":
                    raise self.error(raw, _ELIDED, _ELIDED_HINT)
            raise self.error(raw, "a tensor that is no weight states its type: dense(f32[2,3], @name)")
        if isinstance(raw, list):
            if raw and isinstance(raw[0], Entry):
                raise self.error(place, "an attribute holds no table")
            return tuple(self.value_of(place, r) for r in raw)
        if isinstance(raw, Splat | Rand):
            raise self.error(raw.number, "a tensor that is no weight states its type: dense(f32[2,3], splat(0))")
        return self.content_of(place, raw, None, "") if isinstance(raw, Dense) else raw

    # -- tensors --------------------------------------------------------------------------------------

    def content_of(self, place: Token, raw: Any, type_: Type | None, name: str) -> Tensor:
        """Give a tensor, of the type that stands beside it unless it states one itself."""
        if isinstance(raw, Dense):
            tensor = self.content_of(raw.place, raw.content, raw.type, name)
            for key, fact in raw.facts:
                self._tensor_fact(tensor, key, fact)
            return tensor
        at = raw if isinstance(raw, Token) else raw.number if isinstance(raw, Splat | Rand) else place
        if isinstance(raw, Token) and raw.type == "ELIDED":
            raise self.error(raw, _ELIDED, _ELIDED_HINT)
        if not isinstance(type_, TensorType) or type_.static_shape is None or type_.dtype == DType.UNDEFINED:
            stated = "no type is stated" if type_ is None else f"{spelling.type_text(type_)} is stated"
            raise self.error(at, f"a tensor needs a type with known extents, but {stated}")
        try:
            return self._tensor(at, raw, type_, name)
        except (ValueError, OverflowError, MemoryError) as e:
            raise self.error(at, str(e)) from None

    def _tensor(self, place: Token, raw: Any, type_: TensorType, name: str) -> Tensor:
        shape = type_.static_shape or ()
        size = int(np.prod(shape, dtype=np.int64))
        if isinstance(raw, Token) and raw.type == "SYMBOL":
            return take(self._find(raw), type_, name)
        if isinstance(raw, Token) and raw.type == "BYTES":
            return element_spelling.tensor_from_bytes(type_, self.raw_bytes(raw), name)
        if type_.dtype == DType.STRING:
            parts = raw if isinstance(raw, list) else [raw]
            if not all(isinstance(p, Token) and p.type in ("STRING", "BYTES") for p in parts):
                raise ValueError(f"these are no elements of {spelling.type_text(type_)}")
            items = [self.raw_bytes(p) if p.type == "BYTES" else self.string(p).encode() for p in parts]
            _check_count(len(items), size, type_)
            return onnx_ir.StringTensor(items, shape=onnx_ir.Shape(shape), name=name or None)
        if isinstance(raw, Splat):
            array = np.full(shape, element_spelling.array_of(str(raw.number), type_.dtype)[0])
        elif isinstance(raw, Rand):
            array = random_elements(str(raw.number), size, type_.dtype).reshape(shape)
        elif (isinstance(raw, Token) and raw.type in ("NUMBER", "NUMBERS")) or raw == []:
            text = str(raw)[1:-1] if isinstance(raw, list) or raw.type == "NUMBERS" else str(raw)
            array = element_spelling.array_of(text, type_.dtype)
            _check_count(array.size, size, type_)
            array = array.reshape(shape)
        else:
            raise ValueError(f"these are no elements of {spelling.type_text(type_)}")
        return onnx_ir.Tensor(array, dtype=type_.dtype, name=name or None)

    def _find(self, token: Token) -> Any:
        name = symbol_of(token)
        for source in self.sources:
            if name in source:
                return source[name]
        if not self.sources:
            raise self.error(token, f"no file of weights is named that could hold {token}", 'Add: weights "FILE.npz"')
        raise self.error(token, f"the weights hold no {token}")

    def _tensor_fact(self, tensor: Tensor, key: Token, raw: Any) -> None:
        if key == "name":
            tensor.name = self.expect(key, raw, str)
        elif key == "doc":
            tensor.doc_string = self.expect(key, raw, str)
        elif key == "meta":
            tensor.metadata_props.update(self.table_of(key, raw, str))
        else:
            raise self.error(key, f"a tensor has no {str(key)!r}")

    # -- types ----------------------------------------------------------------------------------------

    def unknown(self, children: list[Any]) -> None:
        return None

    def tensor(self, children: list[Any]) -> TensorType:
        (token,) = children
        try:
            return spelling.tensor_type_of(str(token))
        except spelling.Misspelt as e:
            raise self.error(token, str(e), offset=e.offset) from None

    def denoted(self, children: list[Any]) -> Type:
        type_, first, *axes = children
        names = tuple(self.string(a) for a in axes)
        if names and not isinstance(type_, TensorType):
            raise self.error(axes[0], "only a tensor's axes have a meaning")
        extra = {"axis_denotations": names} if names else {}
        return replace(type_, denotation=self.string(first), **extra)  # type: ignore[no-any-return]

    def sparse_type(self, children: list[Any]) -> SparseTensorType:
        (dense,) = children
        return SparseTensorType(dense.dtype, dense.shape)

    def seq(self, children: list[Any]) -> SequenceType:
        return SequenceType(children[0])

    def optional(self, children: list[Any]) -> OptionalType:
        return OptionalType(children[0])

    def map(self, children: list[Any]) -> MapType:
        key, value = children
        if key not in spelling.DTYPE_OF:
            raise self.error(key, f"there is no element type {str(key)!r}")
        return MapType(spelling.DTYPE_OF[key], value)

    def opaque(self, children: list[Any]) -> OpaqueType:
        domain, name = children
        return OpaqueType(self.string(domain), self.string(name))

    # -- tokens ---------------------------------------------------------------------------------------

    def _checked(self, token: Token, read: Callable[[str], T]) -> T:
        try:
            return read(str(token))
        except ValueError as e:
            raise self.error(token, f"{token} is no whole number" if read is int else str(e)) from None

    def string(self, token: Token) -> str:
        return self._checked(token, unquote)

    def raw_bytes(self, token: Token) -> bytes:
        return self._checked(token, spelling.bytes_of)

    def integer(self, token: Token) -> int:
        return self._checked(token, int)

    def expect(self, key: Token, raw: Any, kind: type[T]) -> T:
        value = self.value_of(key, raw)
        if not isinstance(value, kind):
            raise self.error(key, f"{text_of(key)} is {_KINDS[kind]}")
        return value

    def table_of(self, key: Token, raw: Any, kind: type[T]) -> dict[str, T]:
        if not isinstance(raw, list) or not all(isinstance(r, Entry) for r in raw):
            raise self.error(key, f"{text_of(key)} is a table: {{key=value, ...}}")
        return {text_of(k): self.expect(k, v, kind) for k, v in raw}


def text_of(key: Token) -> str:
    """Give what a NAME or STRING says."""
    return unquote(key) if key.startswith('"') else str(key)


def symbol_of(token: Token | None) -> str:
    """Give the name that `@name` says."""
    if token is None:
        return ""
    return unquote(token[1:]) if token.startswith('@"') else token[1:]


def value_name_of(token: Token) -> tuple[str, int]:
    """Give the name and number that `%name#number` says."""
    if token.startswith('%"'):
        end = token.rindex('"') + 1
        return unquote(token[1:end]), int(token[end + 1 :] or 0)
    name, _, number = token[1:].partition("#")
    return name, int(number or 0)


def value_key(token: Token) -> str:
    """Give the one canonical spelling of a value's name, however the text quotes it."""
    return spelling.value_name(*value_name_of(token)) if '"' in token else token


def random_elements(seed: str, count: int, dtype: DType) -> npt.NDArray[Any]:
    """Give `rand(seed)`: multiples of 1/64 in [-1, 1), which every float type holds; integers from -8 or 0 to 7.

    Raises:
        ValueError: the seed is no whole number.
    """
    if not seed.isdecimal():
        raise ValueError("a seed is a whole number")
    draw = random.Random(int(seed)).random  # the generator whose numbers Python promises to keep
    if dtype == DType.BOOL:
        numbers: list[float] = [int(2 * draw()) for _ in range(count)]
    elif dtype.is_integer():
        high = min(8, 1 << (dtype.bitwidth - dtype.is_signed()))
        low = -high if dtype.is_signed() else 0
        numbers = [low + int((high - low) * draw()) for _ in range(count)]
    else:
        numbers = [(int(128 * draw()) - 64) / 64 for _ in range(count)]
    return np.asarray(numbers).astype(dtype.numpy())


def _check_count(count: int, size: int, type_: TensorType) -> None:
    if count != size:
        raise ValueError(f"{spelling.type_text(type_)} has {size} elements, but {count} are given")
