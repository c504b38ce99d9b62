"""ONNX in: protobuf to `Graph`, with every fault of the file told in one sentence.

The structure is read off the protobuf directly, since onnx_ir's own reader has no map types and takes only
UTF-8 strings; tensors are onnx_ir's, external ones read when somebody looks.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import linked_folder, reading
from memoptc.ir.mapped import DataFile
from memoptc.ir.onnx_inline import without_weights
from memoptc.ir.proto_reader import ProtoReader


def read_onnx(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto, folder: str | Path = "", *, lazy: bool = False
) -> Graph:
    """Read a model.

    Args:
        source: A file, serialised bytes, or a protobuf (which the graph may go on referring to).
        folder: Where external data lies when `source` is no file.
        lazy: Large weights inside a file stay there until somebody looks, as those beside it do. It may be replaced or
            deleted meanwhile; looking at a weight of one that was written anew in its place raises an InputError.

    Returns:
        The top graph, its model's facts in `graph.model`.

    Raises:
        InputError: the file is missing, no ONNX model, truncated, or breaks a rule of ONNX; the message
            names the node or value.
    """
    if isinstance(source, onnx.ModelProto):
        digest = hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
        return ProtoReader(source, Path(folder), "the model").read(digest)
    if isinstance(source, bytes):
        proto = _parse(source, "the model")
        return ProtoReader(proto, Path(folder), "the model").read(hashlib.sha256(source).hexdigest())
    path = Path(source)
    graph = _read_lazily(path) if lazy else None
    if graph is None:
        data = _read_file(path)
        digest = hashlib.sha256(data).hexdigest()
        proto = _parse(data, str(path))
        del data
        graph = ProtoReader(proto, path.parent, path.name, link_target=linked_folder(path)).read(digest)
    graph.info.source_path = str(path)
    return graph


def _read_lazily(path: Path) -> Graph | None:
    """Read a model whose large weights stay in its file; `None` where it has none, or cannot be read so."""
    with reading(path, ".onnx"):
        file = DataFile(path) if path.is_file() else None
    data = None if file is None else without_weights(file, path.name)
    if file is None or data is None:
        return None
    digest = hashlib.sha256()
    for piece in file.chunks(0, file.size):
        digest.update(piece)
    return ProtoReader(_parse(data, str(path)), path.parent, path.name, file, linked_folder(path)).read(
        digest.hexdigest()
    )


def _read_file(path: Path) -> bytes:
    with reading(path, ".onnx"):
        data = path.read_bytes()
    if not data:
        raise InputError(f"{path} is empty.", hint="Export or download the model again.")
    return data


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise InputError(
            f"{label} is no ONNX model, or it is truncated.", hint="Export or download the model again."
        ) from None
    if not proto.HasField("graph") or not proto.ir_version:
        raise InputError(f"{label} is no ONNX model.", hint="memoptc reads .onnx files.")
    return proto


__all__ = ["read_onnx"]
