"""Models of one folder that share their weights: each content lies on disk once, whatever models name it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import onnx

from memoptc.ir.core import Graph, Tensor
from memoptc.ir.mapped import release
from memoptc.ir.onnx_data import PAGE, write_aligned
from memoptc.ir.onnx_write import EXTERNAL_THRESHOLD, proto_with_weights
from memoptc.ir.tensors import content_digest, nbytes


class Place(NamedTuple):
    """Location of a content.

    Args:
        file: Name of the data file.
        offset: Bytes before it.
        checksum: Digest of element type, shape and content, as hexadecimal digits.
    """

    file: str
    offset: int
    checksum: str


class WeightPool:
    """Writes many models that have most weights in common, as a search does that tries one after the other.

    A data file is never changed once a model may have mapped it: each model that brings new weights brings a file of
    its own for them, and refers to the files of earlier ones for the rest.

    Args:
        parent: An existing folder; the pool makes one of its own inside.
    """

    def __init__(self, parent: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pool-", dir=parent))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, True)
        self.written = 0
        """Bytes of weights written so far."""
        self._files = 0
        self._places: dict[bytes, Place] = {}
        self._known: dict[int, tuple[weakref.ref[Any], Place]] = {}

    def write(self, graph: Graph, name: str) -> Path:
        """Write a model under a file name in the pool's folder, replacing an earlier one; small weights lie inside."""
        path = self.folder / name
        batch = _Batch(self, f"weights{self._files}.data")
        try:
            proto = proto_with_weights(graph, batch, EXTERNAL_THRESHOLD)
        finally:
            batch.close()
        self._files += batch.offset > 0
        self.written += batch.offset
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return path

    def digest(self, graph: Graph) -> str:
        """Digest of a model that was written here: equal for equal models, wherever their weights lie."""
        proto = proto_with_weights(graph, _Checksums(self), EXTERNAL_THRESHOLD)
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()

    def remove(self) -> None:
        """Delete the folder with all models and weights, as happens at the latest when the pool goes."""
        self._remove()

    def place(self, tensor: Tensor, batch: _Batch | None) -> Place:
        """Find a content in the files: by the object that holds it, or by its digest, else at the end of a new one."""
        holder = _holder(tensor)
        known = self._known.get(id(holder))
        if known is not None and known[0]() is holder:
            return known[1]
        digest = content_digest(tensor)
        if digest not in self._places:
            assert batch is not None, "the model was not written here"
            self._places[digest] = Place(batch.name, batch.append(tensor), digest.hex())
        self._known[id(holder)] = (weakref.ref(holder), self._places[digest])
        return self._places[digest]


def _holder(tensor: Tensor) -> Any:
    """The object that a content belongs to: graphs wrap the same array in a tensor of their own each."""
    raw = getattr(tensor, "raw", None)
    return raw if isinstance(raw, np.ndarray) and raw.shape == tuple(tensor.shape.numpy()) else tensor


class _Checksums:
    """Digests of a model's weights in place of them: equal content is equal, wherever it lies."""

    def __init__(self, pool: WeightPool) -> None:
        self._pool = pool

    def write(self, name: str, tensor: Tensor) -> onnx.TensorProto:
        return onnx.TensorProto(name=name, doc_string=self._pool.place(tensor, None).checksum)


class _Batch:
    """The weights of one model: places of those that are known, a new file for the others."""

    def __init__(self, pool: WeightPool, name: str) -> None:
        self._pool, self.name = pool, name
        self._file: BinaryIO | None = None
        self.offset = 0

    def write(self, name: str, tensor: Tensor) -> onnx.TensorProto:
        place = self._pool.place(tensor, self)
        proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        proto.data_location = onnx.TensorProto.EXTERNAL
        entries = (("location", place.file), ("offset", place.offset), ("length", nbytes(tensor)))
        for key, value in (*entries, ("checksum", place.checksum)):
            proto.external_data.add(key=key, value=str(value))
        release(tensor)
        return proto

    def append(self, tensor: Tensor) -> int:
        """Give the offset of a content that is written now."""
        if self._file is None:
            self._file = open(self._pool.folder / self.name, "wb")
        offset = write_aligned(self._file, tensor, self.offset, PAGE)
        self.offset = offset + nbytes(tensor)
        return offset

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
