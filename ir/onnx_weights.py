"""Weights of an ONNX file, inline and beside it, checked against their type and shape without being read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx.external_data_helper
import onnx_ir
from onnx_ir import serde

from memoptc.ir.core import Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import data_file
from memoptc.ir.mapped import DataFile, MappedTensor
from memoptc.ir.onnx_order import broken_rule
from memoptc.ir.protos import element_count_fault
from memoptc.ir.types import DType

_HELD_OPEN = 32
"""Data files of one model that are held open; exporters that write one file per weight have thousands."""


class WeightReader:
    """Reads the tensors of one model.

    Args:
        folder: Where its data files lie.
        label: The model's name, for messages.
        own: The model's own file, where weights lie in it that were left there.
        link_target: Folder of the file that the model's name is a link to, if it is one: links of data files may lead
            there, too, as in caches of downloads.
    """

    def __init__(self, folder: Path, label: str, own: DataFile | None = None, link_target: Path | None = None) -> None:
        self.folder, self.label, self.own, self.link_target = folder, label, own, link_target
        self._data_files: dict[str, DataFile] = {}

    def read(self, proto: onnx.TensorProto) -> Tensor:
        """Give a tensor; the content of one beside the model is read when somebody looks.

        Raises:
            InputError: sizes and entries do not fit, or the data file is missing, truncated or outside the folder.
        """
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            file = self._check_external(proto)
            external = serde.deserialize_tensor(proto, str(self.folder))
            assert isinstance(external, onnx_ir.ExternalTensor)
            return MappedTensor(file, external, inline=file is self.own)
        self._check_size(proto)
        return serde.deserialize_tensor(proto, str(self.folder))

    def _check_type(self, proto: onnx.TensorProto) -> DType:
        try:
            dtype = DType(proto.data_type)
        except ValueError:
            dtype = DType.UNDEFINED
        if dtype == DType.UNDEFINED:
            raise broken_rule(self.label, f"weight {proto.name!r} has element type {proto.data_type}, which ONNX lacks")
        if any(d < 0 for d in proto.dims):
            raise broken_rule(self.label, f"weight {proto.name!r} has a negative extent")
        return dtype

    def _check_size(self, proto: onnx.TensorProto) -> None:
        dtype = self._check_type(proto)
        if not proto.HasField("raw_data"):
            if fault := element_count_fault(proto, dtype):
                what = f"weight {proto.name!r} of type {dtype.name} and shape {list(proto.dims)} {fault}"
                raise broken_rule(self.label, what)
        else:
            need = _bytes_of(proto, dtype)
            if len(proto.raw_data) != need:
                raise broken_rule(
                    self.label,
                    f"weight {proto.name!r} of type {dtype.name} and shape {list(proto.dims)} needs {need} "
                    f"bytes but holds {len(proto.raw_data)}",
                )

    def _check_external(self, proto: onnx.TensorProto) -> DataFile:
        entries = {e.key: e.value for e in proto.external_data}
        location = entries.get("location", "")
        own = self.own is not None and location == self.own.path.name
        file = self.own if own and self.own is not None else self._data_file(proto, location)
        dtype = self._check_type(proto)
        need = _bytes_of(proto, dtype)
        try:
            offset, size = int(entries.get("offset") or 0), file.size
            length = int(entries.get("length") or need)
        except ValueError:
            what = f"weight {proto.name!r} has an offset or a length that is no number"
            raise broken_rule(self.label, what) from None
        if length != need:
            what = f"holds {length}" if own else f"its entry states {length}"
            kind = f"of type {dtype.name} and shape {list(proto.dims)}"
            raise broken_rule(self.label, f"weight {proto.name!r} {kind} needs {need} bytes but {what}")
        if offset < 0 or offset + length > size:
            raise InputError(
                f"{self.label}: the external data file {location!r} is truncated: weight {proto.name!r} needs "
                f"bytes {offset} to {offset + length}, the file has {size}.",
                hint="Download or copy the file again.",
            )
        return file

    def _data_file(self, proto: onnx.TensorProto, location: str) -> DataFile:
        path = data_file(self.folder, location, self.link_target)
        if path is None:
            raise InputError(
                f"{self.label}: weight {proto.name!r} lies in {location!r:.200}, outside the model's folder.",
                hint="Move the data beside the model and save it with a relative path.",
            )
        if location not in self._data_files:
            try:
                self._data_files[location] = DataFile(path, hold=len(self._data_files) < _HELD_OPEN)
            except OSError:
                raise InputError(
                    f"{self.label}: the external data file {location!r:.200} of weight {proto.name!r} is missing, or "
                    "no plain file.",
                    hint=f"Put it into {self.folder or '.'} beside the model.",
                ) from None
        return self._data_files[location]


def _bytes_of(proto: onnx.TensorProto, dtype: DType) -> int:
    elements = 1
    for extent in proto.dims:
        elements *= extent
    return (elements * dtype.bitwidth + 7) // 8 if dtype != DType.STRING else 0


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Give all weights of a model, and what else of it lies in files beside it."""
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
