"""What a caller may hand in: a path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx

PROTOBUF_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class Source:
    """The untouched model: as a graph, and as a file that onnxruntime can load (the control).

    Args:
        graph: The model, read.
        path: A file with the original, never written by memoptc's own passes or writer.
        kind: What the caller handed in: `path`, `onnx`, `onnx_ir` or `onnx_graphsurgeon`.
        file_bytes: Bytes of the file with its external data.
    """

    graph: Graph
    path: Path
    kind: str
    file_bytes: int


def load(model: Any, folder: Path) -> Source:
    """Read a model; one that is in memory is also saved into `folder`, by its own library.

    Args:
        model: Path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`.
        folder: An existing folder for temporary files.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        graph = read_onnx(path)
        return Source(graph, path, "path", _bytes_on_disk(graph, path))
    path = folder / "original.onnx"
    if isinstance(model, onnx.ModelProto):
        kind = "onnx"
        _save_proto(model, path)
    elif isinstance(model, onnx_ir.Model):
        kind = "onnx_ir"
        onnx_ir.save(model, path, external_data="original.onnx.data", size_threshold_bytes=1 << 20)
    else:
        kind = "onnx_graphsurgeon"
        _save_proto(_export_graphsurgeon(model), path)
    graph = read_onnx(path)
    graph.info.source_path = ""
    return Source(graph, path, kind, _bytes_on_disk(graph, path))


def _save_proto(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() <= PROTOBUF_LIMIT:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=f"{path.name}.data")


def _export_graphsurgeon(model: Any) -> onnx.ModelProto:
    import onnx_graphsurgeon

    if not isinstance(model, onnx_graphsurgeon.Graph):
        raise InputError(
            f"A {type(model).__module__}.{type(model).__name__} is no model.",
            hint="Pass a path, an onnx.ModelProto, an onnx_ir.Model or an onnx_graphsurgeon.Graph.",
        )
    exported: onnx.ModelProto = onnx_graphsurgeon.export_onnx(model)
    return exported


def _bytes_on_disk(graph: Graph, path: Path) -> int:
    """Bytes of the model file, and of each external data file once."""
    files = {path.resolve()}
    for op in graph.walk("const"):
        tensor = op.attrs["value"]
        if isinstance(tensor, onnx_ir.ExternalTensor):
            files.add(Path(tensor.path).resolve())
    return sum(f.stat().st_size for f in files)
