"""Weights of a model that lie in files of their own, and names of its inputs, listed without the onnx package.

The file is walked as a protobuf message; only names, shapes and places are looked at.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import data_file, linked_folder
from memoptc.ir.packed_notes import PACKED_NOTE, PACKED_PART

_GRAPH, _NODE, _INITIALIZER, _INPUT, _PORT = 7, 1, 5, 11, 1
_FUNCTION, _FUNCTION_NODE, _ATTRIBUTE, _TENSORS, _GRAPHS = 25, 7, 5, (5, 10), (6, 11)
_SPARSE, _SPARSE_ATTRIBUTES, _SPARSE_PARTS = 15, (22, 23), (1, 2)
_DIMS, _TYPE, _NAME, _EXTERNAL, _LOCATION = 1, 2, 8, 13, 14
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_BITS_OF = {2: (25, 26), 4: (21, 22, 23), 8: (2, 3, 9, 17, 18, 19, 20, 24), 16: (4, 5, 10, 16), 32: (1, 6, 12)}
_BITS_OF |= {6: (27, 28), 64: (7, 11, 13, 14), 128: (15,)}
_BITS = {element: bits for bits, elements in _BITS_OF.items() for element in elements}
"""Bits of an element, by its type as it is numbered in ONNX."""


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
        InputError: the file is no model, or names a file outside of its folder.
    """
    return _listed(model, inside=False)


def all_external_weights(model: str | os.PathLike[str]) -> list[ExternalWeight]:
    """List those of branches, constants and functions, too, and what was packed of weights ahead.

    A part of a file that is used twice comes twice.

    Raises:
        InputError: the file is no model, or names a file outside of its folder.
    """
    return _listed(model, inside=True)


def data_files(model: str | os.PathLike[str]) -> dict[str, Path]:
    """Give the files that a model's tensors lie in, wherever in it these are: how each is named, and where it is.

    Raises:
        InputError: the file is no model, or names one outside of its folder.
    """
    path = os.path.abspath(os.fspath(model))
    with _mapped(path) as data:
        bodies = ((f, s) for f, s in _fields(data, (0, len(data))) if f in (_GRAPH, _FUNCTION))
        tensors = (tensor for field, span in bodies for tensor in _tensors(data, span, field, inside=True))
        named = {entries.get("location", "") for tensor in tensors if (entries := _entries(data, tensor))}
        return {location: _inside(path, location) for location in sorted(named)}


def _listed(model: str | os.PathLike[str], *, inside: bool) -> list[ExternalWeight]:
    path = os.path.abspath(os.fspath(model))
    with _mapped(path) as data:
        found = []
        where = cache(partial(_inside, path))
        for field, span in _fields(data, (0, len(data))):
            if field == _GRAPH or (field == _FUNCTION and inside):
                weights = (_external(data, t, where) for t in _tensors(data, span, field, inside))
                each = (w for weight in weights for w in (weight if inside else weight[:1]))
                found += [replace(w, repeated=field == _FUNCTION) for w in each]
        return found


@contextmanager
def _mapped(path: str) -> Iterator[mmap.mmap]:
    """Map a model; what is wrong with it is said of it."""
    try:
        with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, ValueError, IndexError, RecursionError) as error:
        raise InputError(f"{path} is no ONNX model: {error}.", hint="Write it again.") from None


def _inside(model: str, location: str) -> Path:
    folder = Path(os.path.dirname(model))
    found = data_file(folder, location, linked_folder(Path(model)))
    if found is None:
        raise InputError(
            f"{os.path.basename(model)}: a weight lies in {location!r:.200}, outside the model's folder.",
            hint="Move the data beside the model and save it with a relative path.",
        )
    return found


def input_names(model: str | os.PathLike[str]) -> list[str]:
    """Give the names of a model's inputs, in the order of the file.

    Raises:
        InputError: the file is not there, or no model.
    """
    path = os.path.abspath(os.fspath(model))
    with _mapped(path) as data:
        graphs = [span for field, span in _fields(data, (0, len(data))) if field == _GRAPH]
        ports = (span for graph in graphs for field, span in _fields(data, graph) if field == _INPUT)
        return [data[a:b].decode() for span in ports for field, (a, b) in _fields(data, span) if field == _PORT]


Span = tuple[int, int]


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift >= 70:
            raise ValueError(f"byte {at} goes on with a number that is too long")


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
        elif field == _SPARSE and kind == _GRAPH and inside:
            yield from _sparse(data, span)
        elif field == nodes and inside:
            for number, attribute in _fields(data, span):
                for what, part in _fields(data, attribute) if number == _ATTRIBUTE else ():
                    if what in _TENSORS:
                        yield part
                    elif what in _SPARSE_ATTRIBUTES:
                        yield from _sparse(data, part)
                    elif what in _GRAPHS:
                        yield from _tensors(data, part, _GRAPH, inside)


def _sparse(data: mmap.mmap, span: Span) -> Iterator[Span]:
    """Values and indices of a sparse tensor."""
    return (part for field, part in _fields(data, span) if field in _SPARSE_PARTS)


def _numbers(data: mmap.mmap, span: Span) -> list[int]:
    found, (at, end) = [], span
    while at < end:
        value, at = _varint(data, at)
        found.append(value)
    return found


def _entries(data: mmap.mmap, span: Span) -> dict[str, str]:
    """What a tensor that lies in another file says of its place; nothing of others."""
    entries: dict[str, str] = {}
    external = False
    for field, part in _fields(data, span):
        if field == _LOCATION:
            external = _numbers(data, part) == [1]
        elif field == _EXTERNAL:
            key, value = (data[a:b].decode() for _, (a, b) in _fields(data, part))
            entries[key] = value
    return entries if external else {}


def _external(data: mmap.mmap, span: Span, where: Callable[[str], Path]) -> list[ExternalWeight]:
    """A weight that lies in another file, and behind it what was packed of it ahead; nothing for others."""
    entries = _entries(data, span)
    if "location" not in entries:
        return []
    dims: list[int] = []
    element, name = 0, ""
    for field, part in _fields(data, span):
        if field == _DIMS:
            dims += _numbers(data, part)
        elif field == _TYPE:
            (element,) = _numbers(data, part)
        elif field == _NAME:
            name = data[part[0] : part[1]].decode()
    file = os.fspath(where(entries["location"]))
    length = entries.get("length") or (math.prod(dims) * _BITS.get(element, 0) + 7) // 8  # which ONNX leaves to us
    weight = ExternalWeight(name, element, tuple(dims), file, int(entries.get("offset") or 0), int(length))
    notes = (value for key, value in entries.items() if key.startswith(PACKED_NOTE))
    parts = (part for note in notes for part in PACKED_PART.findall(note))
    return [weight, *(replace(weight, offset=int(at), length=int(size)) for at, size in parts)]
