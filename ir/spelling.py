"""Spelling of the atoms of `.mir` text: names, strings, numbers, dimensions, types, tensor elements.

Printer and parser share this file, so that what one writes the other reads.
"""

from __future__ import annotations

import base64
import binascii
import json
import keyword
import re
import struct
from functools import lru_cache

import numpy as np

from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import Dim, KnownDim, Sym, substitute
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

# The grammar, text.lark, has the same patterns in its terminals VALUE, SYMBOL, OPKEY and NAME.
_VALUE = re.compile(r"(?:[\w.$-]|/(?!/)|::(?=\w)|:(?=\d))+")
_OPKEY = re.compile(r"(?:[A-Za-z_][\w.$-]*::)?[A-Za-z_][\w.$-]*")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")

_SPECIAL = {DType.BOOL: "bool", DType.STRING: "str", DType.UNDEFINED: "undefined"}
DTYPE_TEXT = {d: _SPECIAL.get(d, "") or d.short_name() for d in DType}
DTYPE_OF = {d.short_name(): d for d in DType} | {text: d for d, text in DTYPE_TEXT.items()}


_F32 = struct.Struct("<f")
_BITS = struct.Struct("<I")
_QUIET_NAN = 0x7FC00000


# -- strings and names --------------------------------------------------------------------------------


def quote(text: str) -> str:
    """Write a string in double quotes, on one line."""
    if text.isascii() and text.isprintable():
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return json.dumps(text, ensure_ascii=not text.isprintable())


def unquote(text: str) -> str:
    """Read what `quote` wrote.

    Raises:
        ValueError: it is not a string.
    """
    if "\\" not in text:
        return text[1:-1]
    decoded: str = json.loads(text, strict=False)
    return decoded


def value_name(name: str, number: int = 0) -> str:
    """Spell the `number`-th value called `name` among those visible at one place."""
    plain = f"%{name}" if _VALUE.fullmatch(name) else f"%{quote(name)}"
    return f"{plain}#{number}" if number else plain


def symbol_name(name: str) -> str:
    """Spell the name of a graph or of a tensor kept elsewhere."""
    return f"@{name}" if _VALUE.fullmatch(name) else f"@{quote(name)}"


def key_name(name: str) -> str:
    """Spell the name of an attribute, region, or output."""
    return name if _NAME.fullmatch(name) else quote(name)


def op_name(domain: str, op_type: str) -> str:
    """Spell an operator: `Conv`, `com.microsoft::FusedConv`, or quoted where either part is odd."""
    plain = f"{domain}::{op_type}" if domain else op_type
    if _OPKEY.fullmatch(plain) and ("::" in plain) == bool(domain):
        return plain
    return f"{quote(domain)}::{quote(op_type)}"


def bytes_text(content: bytes) -> str:
    """Spell bytes in base 64."""
    return f'b64"{base64.b64encode(content).decode()}"'


def bytes_of(text: str) -> bytes:
    """Read what `bytes_text` wrote.

    Raises:
        ValueError: it is not base 64.
    """
    try:
        return base64.b64decode(text[4:-1], validate=True)
    except binascii.Error as e:
        raise ValueError(f"this is not base 64: {str(e).lower()}") from None


# -- numbers ------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _finite_text(value: float) -> str:
    single = np.float32(value)
    text = str(single)
    # Reading goes through double precision; where rounding twice would miss, all digits are written.
    return text if float_of(text) == float(single) else repr(float(single))


def float_text(value: float) -> str:
    """Spell a float attribute, which ONNX holds in single precision: the shortest text that gives it again."""
    if value != value:
        (bits,) = _BITS.unpack(_F32.pack(value))
        return "nan" if bits == _QUIET_NAN else f"nan(0x{bits:08x})"
    if value == 0.0:
        return repr(value)
    with np.errstate(over="ignore"):
        return _finite_text(value)


def float_of(text: str) -> float:
    """Read a number as single precision."""
    if text.startswith("nan("):
        return float(_F32.unpack(_BITS.pack(int(text[4:-1], 16)))[0])
    try:
        return float(_F32.unpack(_F32.pack(float(text)))[0])
    except OverflowError:
        return float(text.partition("e")[0]) * float("inf")


IS_INT = re.compile(r"-?\d+")


def number_of(text: str) -> int | float:
    """Read a number: an integer of 64 bits when it is spelled like one, else single precision.

    Raises:
        ValueError: it is neither.
    """
    try:
        number = int(text) if IS_INT.fullmatch(text) else float_of(text)
    except (ValueError, struct.error):
        raise ValueError(f"{text} is no number") from None
    if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{text} does not fit i64")
    return number


def numbers_of(text: str) -> tuple[int | float, ...]:
    """Read `[1, 2.5, ...]`.

    Raises:
        ValueError: one of them is no number of `number_of`.
    """
    parts = [part.strip() for part in text[1:-1].split(",")]
    try:
        return tuple(np.array(list(map(int, parts)), np.int64).tolist())
    except (ValueError, OverflowError):
        return tuple(map(number_of, parts))


# -- dimensions and types -----------------------------------------------------------------------------


@lru_cache(maxsize=16384)
def _expression_text(dim: Sym) -> str:
    odd = [n for n in sorted(dim.free) if not (n.isidentifier() and not keyword.iskeyword(n))]
    if not odd:
        return str(dim)
    stand_ins = {name: Sym(f"q{i}_odd_name") for i, name in enumerate(odd)}
    text = str(substitute(dim, stand_ins))
    for name in odd:
        text = text.replace(str(stand_ins[name]), quote(name))
    return text


def dim_text(dim: Dim) -> str:
    """Spell a dimension: `4`, `?`, `2*N+1`, or `N:"n"` where the model file spells it `n`."""
    if dim is None:
        return "?"
    if isinstance(dim, int):
        return str(dim)
    text = _expression_text(dim)
    return text if dim.spelling is None else f"{text}:{quote(dim.spelling)}"


_STRING = re.compile(r'"(?:[^"\\\n]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_SPELLED = re.compile(r'\s*(.*?)\s*(?::\s*("(?:[^"\\\n]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"))?\s*', re.S)


def dim_of(text: str) -> Dim:
    """Read what `dim_text` wrote.

    Raises:
        ValueError: it is no dimension.
    """
    text = text.strip()
    if text.isdecimal():
        return int(text)
    if text == "?":
        return None
    found = _SPELLED.fullmatch(text)
    expression, spelling = found.groups() if found else (text, None)
    odd: dict[str, KnownDim] = {}

    def stand_in(match: re.Match[str]) -> str:
        name = f"q{len(odd)}_odd_name"
        odd[name] = Sym(unquote(match[0]))
        return f"({name})"

    plain = _STRING.sub(stand_in, expression)
    try:
        dim = parse_dim(plain) if plain else None
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"not a dimension: {text!r}") from None
    if dim is None:
        raise ValueError("a dimension is missing")
    if isinstance(dim, int) and dim < 0:
        raise ValueError("an extent is not negative")
    if odd:
        dim = substitute(dim, odd)
    if spelling is None:
        return dim
    if isinstance(dim, int):
        raise ValueError("a number has no other spelling")
    return dim.spelled(unquote(spelling))


def type_text(type_: Type | None) -> str:
    """Spell a type: `f32[N,3]`, `f32[*]` of unknown rank, `seq<...>`, ..., `?` when nothing is known."""
    if type_ is None:
        return "?"
    axes: tuple[str, ...] = ()
    if isinstance(type_, TensorType):
        text, axes = _tensor_text(type_.dtype, type_.shape), type_.axis_denotations
    elif isinstance(type_, SparseTensorType):
        text = f"sparse<{_tensor_text(type_.dtype, type_.shape)}>"
    elif isinstance(type_, SequenceType):
        text = f"seq<{type_text(type_.elem)}>"
    elif isinstance(type_, OptionalType):
        text = f"optional<{type_text(type_.elem)}>"
    elif isinstance(type_, MapType):
        text = f"map<{DTYPE_TEXT[type_.key]}, {type_text(type_.value)}>"
    else:
        assert isinstance(type_, OpaqueType)
        text = f"opaque<{quote(type_.domain)}, {quote(type_.name)}>"
    if type_.denotation or axes:
        text += f" denotes({', '.join(quote(d) for d in (type_.denotation, *axes))})"
    return text


def _tensor_text(dtype: DType, shape: tuple[Dim, ...] | None) -> str:
    return f"{DTYPE_TEXT[dtype]}[{'*' if shape is None else ','.join(map(dim_text, shape))}]"


class Misspelt(ValueError):
    """A fault inside a token, `offset` characters after its start."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@lru_cache(maxsize=65536)
def tensor_type_of(text: str) -> TensorType:
    """Read `f32[N,3]`.

    Raises:
        Misspelt: an element type or dimension is none.
    """
    start = text.index("[")
    dtype = DTYPE_OF.get(text[:start])
    if dtype is None:
        raise Misspelt(f"there is no element type {text[:start]!r}", 0)
    inner = text[start + 1 : -1]
    if inner.strip() == "*":
        return TensorType(dtype, None)
    if not inner.strip():
        return TensorType(dtype, ())
    dims: list[Dim] = []
    offset = start + 1
    for part in _split(inner):
        try:
            dims.append(dim_of(part))
        except ValueError as e:
            raise Misspelt(str(e), offset + len(part) - len(part.lstrip())) from None
        offset += len(part) + 1
    return TensorType(dtype, tuple(dims))


def _split(text: str) -> list[str]:
    """Split at commas that are in no parentheses and no string."""
    if "(" not in text and '"' not in text:
        return text.split(",")
    parts, depth, begin, index = [], 0, 0, 0
    while index < len(text):
        char = text[index]
        if char == '"':
            found = _STRING.match(text, index)
            index = found.end() - 1 if found else index
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "," and not depth:
            parts.append(text[begin:index])
            begin = index + 1
        index += 1
    return [*parts, text[begin:]]


# -- tensor elements ----------------------------------------------------------------------------------
