"""Weights of a model that lie in files of their own, and names of its inputs, listed without the onnx package.

The file is walked as a protobuf message; only names, shapes and places are looked at.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from memoptc.ir.diagnostics import InputError
from memoptc.ir.packed_notes import PACKED_NOTE, PACKED_PART

_GRAPH, _NODE, _INITIALIZER, _INPUT, _PORT = 7, 1, 5, 11, 1
_FUNCTION, _FUNCTION_NODE, _ATTRIBUTE, _TENSORS, _GRAPHS = 25, 7, 5, (5, 10), (6, 11)
_DIMS, _TYPE, _NAME, _EXTERNAL = 1, 2, 8, 13
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


@dataclass(frozen=True)
class ExternalWeight:
    """An initializer of the main graph whose bytes lie in another file.

    Args:
        name: Its name.
        element: Element type, numbered as in ONNX.
        dims: Extents.
        file: Path.
        offset: First byte.
        length: Bytes.
        repeated: It lies in a function of the model, and is there once for each call.
    """

    name: str
    element: int
    dims: tuple[int, ...]
    file: str
    offset: int
    length: int
    repeated: bool = False


def external_weights(model: str | os.PathLike[str]) -> list[ExternalWeight]:
    """List them, in the order of the file.

    Raises:
        InputError: the file is no model.
    """
    return _listed(model, inside=False)


def all_external_weights(model: str | os.PathLike[str]) -> list[ExternalWeight]:
    """List those of branches, constants and functions, too, and what was packed of weights ahead.

    A part of a file that is used twice comes twice.

    Raises:
        InputError: the file is no model.
    """
    return _listed(model, inside=True)


def _listed(model: str | os.PathLike[str], *, inside: bool) -> list[ExternalWeight]:
    path = os.path.abspath(os.fspath(model))
    try:
        with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = []
            for field, span in _fields(data, (0, len(data))):
                if field == _GRAPH or (field == _FUNCTION and inside):
                    weights = (_external(data, t, os.path.dirname(path)) for t in _tensors(data, span, field, inside))
                    each = (w for weight in weights for w in (weight if inside else weight[:1]))
                    found += [replace(w, repeated=field == _FUNCTION) for w in each]
            return found
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no ONNX model: {error}.") from None


def input_names(model: str | os.PathLike[str]) -> list[str]:
    """Give the names of a model's inputs, in the order of the file.

    Raises:
        InputError: the file is not there, or no model.
    """
    path = os.path.abspath(os.fspath(model))
    try:
        with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = [span for field, span in _fields(data, (0, len(data))) if field == _GRAPH]
            ports = (span for graph in graphs for field, span in _fields(data, graph) if field == _INPUT)
            return [data[a:b].decode() for span in ports for field, (a, b) in _fields(data, span) if field == _PORT]
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path} is no ONNX model: {error}.", hint="Write it again.") from None


Span = tuple[int, int]


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, Span]]:
    """Fields of a message and where their bytes lie; a number lies between its first and its last byte."""
    at, end = span
    while at < end:
        key, at = _varint(data, at)
        kind, start = key & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif kind in (_EIGHT, _FOUR):
            at += 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"byte {at} begins no field")
        if at > end:
            raise ValueError("it ends early")
        yield key >> 3, (start, at)


def _tensors(data: mmap.mmap, body: Span, kind: int, inside: bool) -> Iterator[Span]:
    """Initializers of a graph; with `inside`, tensors of a graph's or function's nodes and of their graphs, too."""
    nodes = _NODE if kind == _GRAPH else _FUNCTION_NODE
    for field, span in _fields(data, body):
        if field == _INITIALIZER and kind == _GRAPH:
            yield span
        elif field == nodes and inside:
            for number, attribute in _fields(data, span):
                for what, part in _fields(data, attribute) if number == _ATTRIBUTE else ():
                    if what in _TENSORS:
                        yield part
                    elif what in _GRAPHS:
                        yield from _tensors(data, part, _GRAPH, inside)


def _numbers(data: mmap.mmap, span: Span) -> list[int]:
    found, (at, end) = [], span
    while at < end:
        value, at = _varint(data, at)
        found.append(value)
    return found


def _external(data: mmap.mmap, span: Span, folder: str) -> list[ExternalWeight]:
    """A weight that lies in another file, and behind it what was packed of it ahead; nothing for others."""
    dims: list[int] = []
    element, name = 0, ""
    entries: dict[str, str] = {}
    for field, part in _fields(data, span):
        if field == _DIMS:
            dims += _numbers(data, part)
        elif field == _TYPE:
            (element,) = _numbers(data, part)
        elif field == _NAME:
            name = data[part[0] : part[1]].decode()
        elif field == _EXTERNAL:
            key, value = (data[a:b].decode() for _, (a, b) in _fields(data, part))
            entries[key] = value
    if "location" not in entries or "length" not in entries:
        return []
    file = os.path.join(folder, entries["location"])
    weight = ExternalWeight(name, element, tuple(dims), file, int(entries.get("offset", 0)), int(entries["length"]))
    notes = (value for key, value in entries.items() if key.startswith(PACKED_NOTE))
    parts = (part for note in notes for part in PACKED_PART.findall(note))
    return [weight, *(replace(weight, offset=int(at), length=int(size)) for at, size in parts)]
