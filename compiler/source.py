"""Sources of a compile: a path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.types import as_tensor
from memoptc.last_logits import KEY, keep_last_of

PROTOBUF_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class Source:
    """The untouched model: as a graph, and as a file that onnxruntime can load.

    Args:
        graph: The model, read.
        path: A file with the original, never written by memoptc's own passes or writer.
        kind: What the caller handed in: `path`, `bytes`, `onnx`, `onnx_ir` or `onnx_graphsurgeon`.
        file_bytes: Bytes of the file with its external data.
        control: A file with the original as it was prepared for the passes, written as `path` was: what results are
            compared with. See `with_control`.
    """

    graph: Graph
    path: Path
    kind: str
    file_bytes: int
    control: Path


def load(model: Any, folder: Path) -> Source:
    """Read a model; one that is in memory is also saved into `folder`, by its own library.

    Args:
        model: Path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`.
        folder: An existing folder for temporary files.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        graph = read_onnx(path, lazy=True)
        return Source(graph, path, "path", _bytes_on_disk(graph, path), path)
    path = folder / "original.onnx"
    if isinstance(model, onnx.ModelProto):
        kind = "onnx"
        _save_proto(model, path)
    elif isinstance(model, bytes | bytearray | memoryview):
        kind = "bytes"
        path.write_bytes(model)
    elif isinstance(model, onnx_ir.Model):
        kind = "onnx_ir"
        onnx_ir.save(model, path, external_data="original.onnx.data", size_threshold_bytes=1 << 20)
    else:
        kind = "onnx_graphsurgeon"
        _save_proto(_export_graphsurgeon(model), path)
    graph = read_onnx(path)
    graph.info.source_path = ""
    return Source(graph, path, kind, _bytes_on_disk(graph, path), path)


def with_control(source: Source, prepared: Graph, folder: Path) -> Source:
    """Give a source whose control has the inputs of what the passes start from.

    Weights that a caller could replace run in other kernels than constants, which may move the last bits; so may
    extents that are known. A proof of what the passes did has both the same on both sides. Outputs that were asked for
    the last step alone hold that in the control, too.

    Args:
        source: The original.
        prepared: Its graph with weights made constants, and extents frozen.
        folder: An existing folder for temporary files.
    """
    types = {v.name: v.type for v in prepared.inputs} | {o.name: o.type for o in prepared.outputs_info}
    fixed = {v.name for v in source.graph.defaults} - {v.name for v in prepared.inputs}
    before = {v.name: v.type for v in source.graph.inputs}
    last = prepared.info.metadata.get(KEY, "").split() if KEY not in source.graph.info.metadata else []
    if not fixed and not last and all(before[v.name] == v.type for v in prepared.inputs):
        return source
    model = onnx.load(source.path, load_external_data=False)
    kept = [i for i in model.graph.input if i.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for info in (*model.graph.input, *model.graph.output):
        type_ = as_tensor(types.get(info.name))
        dims = None if type_ is None else type_.shape
        for written, dim in zip(info.type.tensor_type.shape.dim, dims or (), strict=False):
            if isinstance(dim, int) and written.WhichOneof("value") == "dim_param":
                written.dim_value = dim
    if last:
        keep_last_of(model, last)
    path = folder / "control" / "original.onnx"
    path.parent.mkdir()
    for name, file in named_files(source.graph, source.path).items():
        if file.resolve() == source.path.resolve():
            continue  # what lies in the model's own file
        copy = path.parent / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), copy)
        except OSError:
            shutil.copyfile(file, copy)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return replace(source, control=path)


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
            hint="Pass a path, bytes, an onnx.ModelProto, an onnx_ir.Model or an onnx_graphsurgeon.Graph.",
        )
    exported: onnx.ModelProto = onnx_graphsurgeon.export_onnx(model)
    return exported


def _bytes_on_disk(graph: Graph, path: Path) -> int:
    """Bytes of the model file, and of each external data file once."""
    return sum(f.stat().st_size for f in files_of(graph, path))


def files_of(graph: Graph, path: Path) -> list[Path]:
    """The files of a model as it was read: its own, then those of external data."""
    return list(dict.fromkeys([path.resolve(), *(Path(t.path).resolve() for t in _external(graph))]))


def named_files(graph: Graph, path: Path) -> dict[str, Path]:
    """The files of a model by the names that it has for them, from its folder on; each may be a link to another."""
    external = {Path(os.path.relpath(t.path, path.parent)).as_posix(): Path(t.path) for t in _external(graph)}
    return {path.name: path} | external


def _external(graph: Graph) -> list[onnx_ir.ExternalTensor]:
    held = [*graph.defaults.values(), *(op.attrs["value"] for op in graph.walk("const"))]
    return [t for t in held if isinstance(t, onnx_ir.ExternalTensor)]
