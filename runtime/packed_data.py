"""Files of weights that onnxruntime packed ahead: every part at an aligned offset.

onnxruntime before 1.32 appends what its kernels packed right behind the weight, at whatever offset that is. Some
kernels (MatMulNBits in 8 bits, and with `accuracy_level` 4 in 4 bits) find the parts of a packed weight by rounding
addresses up to 32 or 64 bytes. Packing saw an aligned buffer; mapped at an odd offset the same bytes are read from
the wrong addresses, and products come out as noise or NaN without any error. With each part at a multiple of
`ALIGNMENT`, the mapped address (a page's plus the offset) is as aligned as the buffer was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx

from memoptc.ir.packed_notes import PACKED_NOTE, PACKED_PART

ALIGNMENT = 64
"""Bytes: the largest that kernels round addresses to, and the one of onnxruntime's own allocations."""

_PIECE = 1 << 20


def align_parts(model: onnx.ModelProto, data: Path) -> bool:
    """Write the file beside a model anew with each weight and packed part aligned; say whether that changed it.

    Args:
        model: A model without the content of its external weights; its entries are changed.
        data: The file that all of them lie in.
    """
    tensors = [t for t in _initializers(model.graph) if t.data_location == onnx.TensorProto.EXTERNAL]
    spans = sorted({span for tensor in tensors for span in _spans(tensor)})
    if all(start % ALIGNMENT == 0 for start, _ in spans):
        return False
    moved: dict[tuple[int, int], int] = {}
    written = data.with_name(f"{data.name}.aligned")
    with data.open("rb") as source, written.open("wb") as target:
        for start, size in spans:
            target.write(b"\0" * (-target.tell() % ALIGNMENT))
            moved[start, size] = target.tell()
            _copy(source, target, start, size)
    written.replace(data)
    for tensor in tensors:
        _move(tensor, moved)
    return True


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _initializers(inner)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _spans(tensor: onnx.TensorProto) -> Iterator[tuple[int, int]]:
    """Offset and bytes of a weight, and of what was packed of it."""
    entries = _entries(tensor)
    yield int(entries.get("offset", 0)), int(entries["length"])
    for key, value in entries.items():
        if key.startswith(PACKED_NOTE):
            for start, size in PACKED_PART.findall(value):
                yield int(start), int(size)


def _move(tensor: onnx.TensorProto, moved: dict[tuple[int, int], int]) -> None:
    entries = _entries(tensor)
    own = moved[int(entries.get("offset", 0)), int(entries["length"])]
    for entry in tensor.external_data:
        if entry.key == "offset":
            entry.value = str(own)
        elif entry.key.startswith(PACKED_NOTE):
            entry.value = PACKED_PART.sub(lambda m: f"|{moved[int(m[1]), int(m[2])]};{m[2]};", entry.value)
    if "offset" not in entries:
        tensor.external_data.add(key="offset", value=str(own))


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    source.seek(start)
    while size:
        piece = source.read(min(size, _PIECE))
        if not piece:
            raise EOFError(f"{source.name} ends {size} bytes before a weight does")
        target.write(piece)
        size -= len(piece)
