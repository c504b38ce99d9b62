"""Weights in a data file beside the model: read where somebody looks, and given back when nobody does any more."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir

from memoptc.ir.core import Graph, Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.element_spelling import tensor_from_bytes
from memoptc.ir.files import open_plain
from memoptc.ir.tensors import MadeTensor, from_array, nbytes, tensor_type
from memoptc.ir.types import DType

_CHUNK = 1 << 22
"""Bytes read at once when a weight is copied or hashed."""

_ALIGNMENT = 16
"""Bytes that the start of what is mapped inside a model must be a multiple of: there nothing aligns it, and kernels may
rely on it."""

_LINE = 64
"""Bytes that the start of a moved constant is a multiple of: those of a cache line."""

_EAGER = 1 << 16
"""Weights up to this many bytes are read and kept; larger ones are mapped for as long as an array of them lives."""


class DataFile:
    """A data file, held open: what is read stays what it was when somebody replaces or deletes the file.

    Args:
        path: The file.
        hold: Keep it open. Otherwise it is opened for each read, and must still be the same then.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, *, hold: bool = True) -> None:
        self.path = path
        self.size = 0
        descriptor = open_plain(path)
        self._identity = self._identify(descriptor)
        self.size = os.fstat(descriptor).st_size
        self._held: int | None = None
        if hold:
            self._held = descriptor
            weakref.finalize(self, os.close, descriptor)
        else:
            os.close(descriptor)

    @staticmethod
    def _identify(descriptor: int) -> tuple[int, ...]:
        found = os.fstat(descriptor)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _open(self) -> int:
        if self._held is not None:
            if self._identify(self._held) != self._identity:
                raise InputError(f"{self.path} was written anew since it was read.", hint="Read the model again.")
            return self._held
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as e:
            raise InputError(f"{self.path} cannot be read any more: {e.strerror}.", hint="Read the model again.") from e
        if self._identify(descriptor) != self._identity:
            os.close(descriptor)
            raise InputError(f"{self.path} has changed since the model was read.", hint="Read the model again.")
        return descriptor

    def _close(self, descriptor: int) -> None:
        if descriptor != self._held:
            os.close(descriptor)

    def chunks(self, offset: int, length: int) -> Iterator[bytes]:
        """Give a part of the file piece by piece.

        Raises:
            InputError: the file ends before that, or has changed.
        """
        descriptor = self._open()
        try:
            end = offset + length
            while offset < end:
                piece = os.pread(descriptor, min(_CHUNK, end - offset), offset)
                if not piece:
                    raise InputError(f"{self.path} is shorter than it was.", hint="Read the model again.")
                yield piece
                offset += len(piece)
        finally:
            self._close(descriptor)

    def read(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        """Give a part of the file as an array of its own."""
        found = np.empty(length, np.uint8)
        at = 0
        for piece in self.chunks(offset, length):
            found[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return found

    def map(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        """Map a part of the file, at least one byte; the mapping lives as long as the array and its views."""
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        descriptor = self._open()
        try:
            raw = mmap.mmap(descriptor, offset - start + length, access=mmap.ACCESS_READ, offset=start)
        finally:
            self._close(descriptor)
        return np.frombuffer(raw, np.uint8, length, offset - start)


def is_external(tensor: Tensor) -> bool:
    """True if a weight lies in a file beside its model."""
    return isinstance(tensor, onnx_ir.ExternalTensor) and not (isinstance(tensor, MappedTensor) and tensor.inline)


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of weights as a model's files hold them: what several share, a tensor or a part of a data file, once."""
    stored: dict[object, int] = {}
    for tensor in tensors:
        key: object = id(tensor)
        if isinstance(tensor, onnx_ir.ExternalTensor):
            key = tensor.path, tensor.offset, tensor.length
        stored[key] = nbytes(tensor)
    return sum(stored.values())


class MappedTensor(onnx_ir.ExternalTensor):
    """A weight in a `DataFile`. Nothing is read before it is asked for, and nothing large is kept.

    Args:
        file: The data file.
        external: Names the part of it, element type and shape.
        inline: The file is the model itself.
    """

    def __init__(self, file: DataFile, external: onnx_ir.ExternalTensor, *, inline: bool = False) -> None:
        super().__init__(
            external.location,
            external.offset,
            external.length,
            external.dtype,
            shape=external.shape,
            name=external.name,
            doc_string=external.doc_string,
            metadata_props=dict(external.metadata_props),
            base_dir=external.base_dir,
        )
        self._file = file
        self.inline = inline
        self._small: npt.NDArray[Any] | None = None
        self._mapped: weakref.ref[npt.NDArray[Any]] | None = None

    def numpy(self) -> npt.NDArray[Any]:
        """Give the content, read-only; arrays of large weights are mappings that end with their last view."""
        if self._small is not None:
            return self._small
        array = self._mapped() if self._mapped is not None else None
        if array is None:
            size = int(self.nbytes)
            small = size <= _EAGER
            aligned = not self.inline or (self.offset or 0) % _ALIGNMENT == 0
            content = (
                self._file.map(self.offset or 0, size)
                if aligned and not small
                else self._file.read(self.offset or 0, size)
            )
            array = tensor_from_bytes(tensor_type(self), content).numpy()
            if small:
                self._small = array
            else:
                self._mapped = weakref.ref(array)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self.numpy()
        if dtype is not None and dtype != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def tobytes(self) -> bytes:
        """Give the content as it is stored."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Give the content as it is stored, a few megabytes at a time."""
        return self._file.chunks(self.offset or 0, int(self.nbytes))

    def tofile(self, file: BinaryIO) -> None:
        """Write the content as it is stored."""
        for piece in self.chunks():
            file.write(piece)

    def copied(self) -> Tensor:
        """Give the same weight in memory."""
        return tensor_from_bytes(tensor_type(self), self._file.read(self.offset or 0, int(self.nbytes)))

    def reshaped(self, shape: Sequence[int]) -> MappedTensor:
        """Give the same part of the file as a tensor of another shape."""
        external = onnx_ir.ExternalTensor(
            self.location,
            self.offset,
            self.length,
            self.dtype,
            shape=onnx_ir.Shape(shape),
            name=self.name,
            base_dir=self.base_dir,
        )
        return MappedTensor(self._file, external, inline=self.inline)

    def part(self, offset: int, size: int) -> MappedTensor:
        """Give bytes of the file that the weight lies in.

        Raises:
            ValueError: the file has no such bytes.
        """
        if offset < 0 or offset + size > self._file.size:
            raise ValueError(f"bytes {offset} to {offset + size} lie outside of {self.location!r:.200}")
        external = onnx_ir.ExternalTensor(
            self.location,
            offset,
            size,
            onnx_ir.DataType.UINT8,
            shape=onnx_ir.Shape([size]),
            name="part",
            base_dir=self.base_dir,
        )
        return MappedTensor(self._file, external)

    def release(self) -> None:
        """Forget what was read; arrays that others hold stay as they are."""
        self._small = self._mapped = None


def reshaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Give a constant's elements in another shape; what is mapped stays mapped."""
    if isinstance(tensor, MappedTensor):
        return tensor.reshaped(shape)
    return from_array(tensor.numpy().reshape(shape), tensor.name or "", DType(tensor.dtype))


def detach(graph: Graph) -> None:
    """Read the weights that a graph has left inside its model's file, so that it may be changed."""
    known: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, MappedTensor) or not tensor.inline:
            return tensor
        return known[id(tensor)] if id(tensor) in known else known.setdefault(id(tensor), tensor.copied())

    graph.defaults = {value: copied(tensor) for value, tensor in graph.defaults.items()}
    for op in graph.walk("const"):
        tensor = op.attrs["value"]
        if copied(tensor) is not tensor:
            op.set_attr("value", copied(tensor))


def is_mapped(tensor: Tensor) -> bool:
    """True if a constant's content lies in a file that is mapped, or is read when somebody asks."""
    return isinstance(tensor, onnx_ir.ExternalTensor) or _mapping(tensor) is not None


def move_to_file(tensors: Collection[MadeTensor], folder: Path) -> None:
    """Move the content of constants from memory into one file without a name, mapped for as long as any of them lives.

    Args:
        tensors: The constants; each must have an array in memory.
        folder: Where the file is made.

    Raises:
        OSError: it cannot be written; the constants are as they were.
    """
    places = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.numpy())
            file.write(bytes(-file.tell() % _LINE))
            places.append((tensor, file.tell(), array.nbytes, array.dtype, tensor.numpy().shape))
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for tensor, start, size, dtype, shape in places:
        tensor.move(np.frombuffer(mapping, np.uint8, size, start).view(dtype).reshape(shape))


def release(tensor: Tensor) -> None:
    """Give back the memory in which a constant's content lies, as far as it can be read again from its file."""
    if isinstance(tensor, MappedTensor):
        tensor.release()
    else:
        mapping = _mapping(tensor)
        if mapping is not None and hasattr(mapping, "madvise"):
            # Views of a mapped file: their pages come back from the file when somebody looks again.
            mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(tensor: Tensor) -> mmap.mmap | None:
    """The mapped file that a constant's array is a view of."""
    base: Any = tensor.raw if isinstance(tensor, onnx_ir.Tensor) else None
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None
