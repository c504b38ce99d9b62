"""Several models over one file of weights, equal ones in it once: encoder and decoder, fine-tuned heads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir

from memoptc.ir.core import Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder, linked_folder
from memoptc.ir.mapped import MappedTensor
from memoptc.ir.onnx_data import ExternalData
from memoptc.ir.onnx_weights import WeightReader, tensors_of
from memoptc.ir.onnx_write import EXTERNAL_THRESHOLD
from memoptc.ir.packed_notes import PACKED_NOTE, PACKED_PART
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
        bytes_before: Of the weights that lie in it and what was packed of them ahead, each model's by itself.
        bytes_after: Of the file.
    """

    models: tuple[Path, ...]
    weights: Path
    bytes_before: int
    bytes_after: int


def merge_models(models: Sequence[Path], folder: Path) -> Merged:
    """Write models into a folder, their weights of 1 KiB or more into one file beside them, equal ones once.

    Nothing else of the models changes, so each runs as it did, in any onnxruntime; what was packed ahead of weights
    comes along. Weights start on pages of their own:
    processes and sessions that map the file share them. The folder appears when everything is in it.

    Args:
        models: Files with different names.
        folder: What to make.

    Raises:
        InputError: a model cannot be read, two have the same name or one that of the file of weights, or the folder is
            there already.
    """
    names = [path.name for path in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two of the models are called {name}.", hint="Rename one: they get into one folder.")
    if WEIGHTS in names:
        raise InputError(f"A model is called {WEIGHTS}, as the file of all weights is.", hint="Rename it.")
    if folder.exists():
        raise InputError(f"{folder} is there already.", hint="Name a folder to make, or remove it.")
    protos = [_read(path) for path in models]
    readers = [WeightReader(path.parent, path.name, link_target=linked_folder(path)) for path in models]
    weights = [(p, reader) for reader, proto in zip(readers, protos, strict=True) for p in tensors_of(proto)]
    large = [(p, tensor, _packed(p, tensor)) for p, reader in weights if (tensor := _large(p, reader)) is not None]
    everything = [tensor for _, weight, packed in large for tensor in (weight, *packed.values())]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFolder("memoptc-merge-", folder.parent) as scratch:
        inner = Path(scratch) / folder.name
        inner.mkdir()
        data = ExternalData(inner / WEIGHTS, everything)
        try:
            for proto, tensor, packed in large:
                written = data.write(proto.name, tensor)
                proto.CopyFrom(_outside(proto, written, {at: _offset(data, part) for at, part in packed.items()}))
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
        sum(map(nbytes, everything)),
        data.offset,
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base
        raise InputError(f"{path} cannot be read as an ONNX model: {error}.", hint="Name an .onnx file.") from error


@contextmanager
def _readable(proto: onnx.TensorProto) -> Iterator[None]:
    """Name the weight where its content is missing or damaged."""
    try:
        yield
    except _UNREADABLE as error:
        raise InputError(f"The weight {proto.name!r} cannot be read: {error}.") from error


def _large(proto: onnx.TensorProto, reader: WeightReader) -> Tensor | None:
    """A weight that goes into the file; `None` where it stays in its model."""
    if proto.data_type == onnx.TensorProto.STRING:
        return None
    with _readable(proto), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Ignoring unknown external data key", UserWarning)  # what was packed ahead
        tensor = reader.read(proto)
    return tensor if isinstance(tensor, onnx_ir.ExternalTensor) or nbytes(tensor) >= EXTERNAL_THRESHOLD else None


_Place = tuple[str, str]
"""Offset and bytes of a part in the file that a weight comes from, as its entries have them."""


def _packed(proto: onnx.TensorProto, weight: Tensor) -> dict[_Place, Tensor]:
    """Packed copies that onnxruntime's kernels made of a weight, as noted in its entries."""
    notes = [entry.value for entry in proto.external_data if entry.key.startswith(PACKED_NOTE)]
    places = [place for note in notes for place in PACKED_PART.findall(note)]
    if not isinstance(weight, MappedTensor):
        return {}
    with _readable(proto):
        return {(at, size): weight.part(int(at), int(size)) for at, size in places}


def _offset(data: ExternalData, part: Tensor) -> int:
    """Write a packed part; gives where it lies."""
    return next(int(entry.value) for entry in data.write("", part).external_data if entry.key == "offset")


def _outside(proto: onnx.TensorProto, written: onnx.TensorProto, moved: Mapping[_Place, int]) -> onnx.TensorProto:
    """The same tensor, name and notes kept, with its content elsewhere."""
    written.doc_string = proto.doc_string
    written.metadata_props.extend(proto.metadata_props)
    for entry in proto.external_data:
        if entry.key.startswith(PACKED_NOTE):
            note = PACKED_PART.sub(lambda m: f"|{moved[m[1], m[2]]};{m[2]};", entry.value)
            written.external_data.add(key=entry.key, value=note)
    return written
