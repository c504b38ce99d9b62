"""Several models over one file of weights, equal ones in it once: encoder and decoder, fine-tuned heads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.external_data_helper
import onnx_ir
from onnx_ir import serde

from memoptc.ir.core import Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder
from memoptc.ir.onnx_data import ExternalData
from memoptc.ir.onnx_write import EXTERNAL_THRESHOLD
from memoptc.ir.tensors import nbytes

WEIGHTS = "weights.data"
"""The file that the models of a folder share."""

_UNREADABLE = (OSError, ValueError, onnx.checker.ValidationError)


@dataclass(frozen=True)
class Merged:
    """Files of merged models.

    Args:
        models: The models' new files.
        weights: The file that they share.
        bytes_before: Of the weights that lie in it, each model's by itself.
        bytes_after: Of the file.
    """

    models: tuple[Path, ...]
    weights: Path
    bytes_before: int
    bytes_after: int


def merge_models(models: Sequence[Path], folder: Path) -> Merged:
    """Write models into a folder, their weights of 1 KiB or more into one file beside them, equal ones once.

    Nothing else of the models changes, so each runs as it did, in any onnxruntime. Weights start on pages of their own:
    processes and sessions that map the file share them. The folder appears when everything is in it.

    Args:
        models: Files with different names.
        folder: What to make.

    Raises:
        InputError: a model cannot be read, two have the same name, or the folder is there already.
    """
    names = [path.name for path in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two of the models are called {name}.", hint="Rename one: they get into one folder.")
    if folder.exists():
        raise InputError(f"{folder} is there already.", hint="Name a folder to make, or remove it.")
    protos = [_read(path) for path in models]
    weights = [(p, path.parent) for path, proto in zip(models, protos, strict=True) for p in _tensors(proto)]
    large = [(p, tensor) for p, place in weights if (tensor := _large(p, place)) is not None]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFolder("memoptc-merge-", folder.parent) as scratch:
        inner = Path(scratch) / folder.name
        inner.mkdir()
        data = ExternalData(inner / WEIGHTS, [tensor for _, tensor in large])
        try:
            for proto, tensor in large:
                proto.CopyFrom(_outside(proto, data.write(proto.name, tensor)))
        except OSError as error:
            raise InputError(f"{folder / WEIGHTS} cannot be written: {error}.") from error
        finally:
            data.close()
        for path, model in zip(models, protos, strict=True):
            (inner / path.name).write_bytes(model.SerializeToString(deterministic=True))
            contract = path.with_name(f"{path.stem}.session.json")
            if contract.exists():
                (inner / contract.name).write_bytes(contract.read_bytes())
        os.rename(inner, folder)
    return Merged(
        tuple(folder / name for name in names),
        folder / WEIGHTS,
        sum(nbytes(tensor) for _, tensor in large),
        data.offset,
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base
        raise InputError(f"{path} cannot be read as an ONNX model: {error}.", hint="Name an .onnx file.") from error


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All weights, and what else of a model lies in files beside it: its new folder has none of these."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from filter(onnx.external_data_helper.uses_external_data, (sparse.values, sparse.indices))
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Weights of branches and bodies, and tensors of attributes that lie in files."""
    for node in nodes:
        for attribute in node.attribute:
            held = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            for sparse in [
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ]:
                held += [sparse.values, sparse.indices]
            yield from filter(onnx.external_data_helper.uses_external_data, held)
            for inside in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _of_graph(inside)


def _large(proto: onnx.TensorProto, folder: Path) -> Tensor | None:
    """A weight that goes into the file; `None` where it stays in its model."""
    if proto.data_type == onnx.TensorProto.STRING:
        return None
    try:
        tensor: Tensor = serde.deserialize_tensor(proto, base_path=folder)
        if isinstance(tensor, onnx_ir.ExternalTensor):
            tensor.numpy()  # a file that is missing or short shows here
    except _UNREADABLE as error:
        raise InputError(f"The weight {proto.name!r} cannot be read: {error}.") from error
    return tensor if isinstance(tensor, onnx_ir.ExternalTensor) or nbytes(tensor) >= EXTERNAL_THRESHOLD else None


def _outside(proto: onnx.TensorProto, written: onnx.TensorProto) -> onnx.TensorProto:
    """The same tensor, name and notes kept, with its content elsewhere."""
    written.doc_string = proto.doc_string
    written.metadata_props.extend(proto.metadata_props)
    return written
