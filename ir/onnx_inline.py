"""Large weights inside an ONNX file, read as those beside one are: from the file, when somebody looks.

A protobuf message is read whole, and holds each weight in memory for as long as it lives. So the file is walked first,
field by field, and parsed without the content of large weights, which say instead where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError

from memoptc.ir.mapped import DataFile

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 9, 13, 14
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5

LEAST = 1 << 16
"""Bytes of weights from which on they are left in the file."""


class _Malformed(Exception):
    """Protobuf that this walk cannot read; the real parser of protobuf then says what is wrong with it."""


def without_weights(file: DataFile, location: str) -> bytes | None:
    """Give a serialised model in which large weights of the top graph are parts of its own file.

    Args:
        file: The model's file.
        location: What such weights call it.

    Returns:
        The model; `None` where no weight is large, or the walk does not know the file's form.
    """
    if file.size <= LEAST:
        return None
    try:
        data: memoryview = file.map(0, file.size).data
        graphs = [f for f in _fields(data, 0, len(data)) if f[0] == _MODEL_GRAPH and f[1] == _BYTES]
        if len(graphs) != 1:
            return None
        _, _, start, content, end = graphs[0]
        graph = _graph(data, content, end, location)
    except (_Malformed, OSError):  # or a file system without mappings
        return None
    if graph is None:
        return None
    parts: list[bytes | memoryview] = [data[:start], _field(_MODEL_GRAPH, graph), data[end:]]
    return b"".join(parts)


def _graph(data: memoryview, start: int, end: int, location: str) -> bytes | None:
    parts: list[bytes | memoryview] = []
    kept = start  # what lies before it is in `parts`
    for number, kind, begin, content, stop in _fields(data, start, end):
        if number == _GRAPH_INITIALIZER and kind == _BYTES and stop - content > LEAST:
            tensor = _tensor(data, content, stop, location)
            if tensor is not None:
                parts += [data[kept:begin], _field(_GRAPH_INITIALIZER, tensor)]
                kept = stop
    return b"".join([*parts, data[kept:end]]) if parts else None


def _tensor(data: memoryview, start: int, end: int, location: str) -> bytes | None:
    """A weight without its content; `None` where that is small, or not one run of bytes."""
    fields = list(_fields(data, start, end))
    raw = [f for f in fields if f[0] == _TENSOR_RAW and f[1] == _BYTES]
    if len(raw) != 1 or any(f[0] in (_TENSOR_EXTERNAL, _TENSOR_LOCATION) for f in fields):
        return None
    _, _, begin, content, stop = raw[0]
    if stop - content <= LEAST:
        return None
    found = onnx.TensorProto()
    try:
        found.ParseFromString(b"".join([data[start:begin], data[stop:end]]))
    except DecodeError:
        raise _Malformed from None
    found.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", content), ("length", stop - content)):
        found.external_data.add(key=key, value=str(value))
    serialized: bytes = found.SerializeToString()
    return serialized


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Give number, kind, start, start of the content and end of each field of a message."""
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            content, (_, at) = at, _varint(data, at, end)
        elif kind == _BYTES:
            size, content = _varint(data, at, end)
            at = content + size
        elif kind in (_EIGHT, _FOUR):
            content, at = at, at + (8 if kind == _EIGHT else 4)
        else:
            raise _Malformed
        if at > end:
            raise _Malformed
        yield number, kind, start, content, at


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Give a number of variable length, and where what follows it starts."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Malformed


def _field(number: int, content: bytes) -> bytes:
    size, left = bytearray(), len(content)
    while left >= 0x80:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return bytes([number << 3 | _BYTES]) + bytes(size) + content
