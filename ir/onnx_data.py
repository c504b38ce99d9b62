"""The data file beside an ONNX model: large weights, page-aligned, equal ones once."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import onnx

from memoptc.ir.core import Tensor
from memoptc.ir.mapped import release
from memoptc.ir.tensors import content_digest, nbytes
from memoptc.ir.types import DType

PAGE = 4096
PIECE = 64 << 10
"""Bytes that are written at once."""


class ExternalData:
    """Writes weights into one data file, in the order in which they come, equal bytes once.

    Args:
        path: The file.
        tensors: All that may come; contents are only compared where sizes are equal.
    """

    def __init__(self, path: Path, tensors: Iterable[Tensor]) -> None:
        self.path = path
        self.offset = 0
        self._file = _InPieces(open(path, "wb", buffering=0))
        sizes = Counter(nbytes(t) for t in tensors if t.dtype != DType.STRING)
        self._shared_sizes = {size for size, count in sizes.items() if count > 1}
        self._offsets: dict[tuple[int, bytes], int] = {}

    def write(self, name: str, tensor: Tensor) -> onnx.TensorProto:
        """Append a weight, and give the tensor that refers to it."""
        size = nbytes(tensor)
        key = (size, content_digest(tensor)) if size in self._shared_sizes else None
        offset = None if key is None else self._offsets.get(key)
        if offset is None:
            offset = self._append(tensor, size)
            if key is not None:
                self._offsets[key] = offset
        proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key_, value in (("location", self.path.name), ("offset", offset), ("length", size)):
            proto.external_data.add(key=key_, value=str(value))
        release(tensor)
        return proto

    def _append(self, tensor: Tensor, size: int) -> int:
        # Whole pages, so that each large weight is mapped, and evicted, by itself.
        step = PAGE if size >= PAGE else 64
        offset = write_aligned(self._file, tensor, self.offset, step)
        self.offset = offset + size
        return offset

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _InPieces(io.RawIOBase):
    """Writes to a file in small pieces.

    The page cache keeps what is written in one go in blocks of megabytes, and who maps the file then and touches one
    row of a table gets a whole block: 112 MB instead of 8 for 128 rows of an embedding of 113.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._to = file

    def write(self, content: Any) -> int:
        """Write all of it."""
        with memoryview(content) as view, view.cast("B") as rest:
            done = 0
            while done < len(rest):
                done += self._to.write(rest[done : done + PIECE]) or 0
            return done

    def close(self) -> None:
        """Close the file."""
        self._to.close()
        super().close()


class DataSink(Protocol):
    """Takes in large weights, and says where each lies."""

    def write(self, name: str, tensor: Tensor) -> onnx.TensorProto:
        """Give a tensor of this name whose content lies outside of the model."""


def write_aligned(file: Any, tensor: Tensor, end: int, step: int) -> int:
    """Append a tensor's bytes to a file, behind zeros up to the next multiple of a step.

    Args:
        file: Open for writing, in binary.
        tensor: What is written.
        end: Where the file ends.
        step: What the offset is a multiple of.

    Returns:
        The offset at which the tensor begins.
    """
    padding = -end % step
    file.write(b"\0" * padding)
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    return end + padding
