"""Constants: thin helpers over onnx_ir's tensors, which stay memory-mapped until somebody looks inside."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import onnx_ir

from memoptc.ir.facts import Tensor
from memoptc.ir.types import DType, TensorType


def tensor_type(tensor: Tensor) -> TensorType:
    """Give the type of a constant without reading its content."""
    return TensorType(DType(tensor.dtype), tuple(tensor.shape.numpy()))


class MadeTensor(onnx_ir.Tensor[npt.NDArray[np.generic]]):
    """A constant that was computed, not read: its content may be moved from memory into a file."""

    def move(self, content: npt.NDArray[np.generic]) -> None:
        """Take the same content in another place, which it is not copied from."""
        self._raw = content


def from_array(array: npt.ArrayLike, name: str = "", dtype: DType | None = None) -> Tensor:
    """Make a constant from an array.

    Args:
        array: Content; numpy or ml_dtypes element types, `str`/`bytes` objects for strings.
        name: Name of the tensor.
        dtype: Element type, needed where numpy has none of its own (4-bit and smaller).
    """
    content = np.asarray(array)
    if dtype == DType.STRING or content.dtype.kind in "SUO":
        flat = [s.encode() if isinstance(s, str) else bytes(s) for s in content.ravel().tolist()]
        return onnx_ir.StringTensor(flat, shape=onnx_ir.Shape(content.shape), name=name or None)
    if not content.flags.c_contiguous:
        content = content.copy(order="C")
    return MadeTensor(content, dtype=dtype, name=name or None)


def nbytes(tensor: Tensor) -> int:
    """Bytes of the content as ONNX stores it (strings: their characters)."""
    return int(tensor.nbytes)


def content_digest(tensor: Tensor) -> bytes:
    """Give a digest of element type, shape and content; equal constants have equal digests.

    The content is read once; what lies in a file, a few megabytes at a time.
    """
    digest = hashlib.blake2b(f"{DType(tensor.dtype).name}{tuple(tensor.shape)}".encode(), digest_size=16)
    if tensor.dtype == DType.STRING:
        for item in np.asarray(tensor.numpy()).ravel().tolist():
            data = item.encode() if isinstance(item, str) else bytes(item)
            digest.update(len(data).to_bytes(8, "little") + data)
    else:
        for piece in tensor.chunks() if hasattr(tensor, "chunks") else (tensor.tobytes(),):
            digest.update(piece)
    return digest.digest()


def same_content(a: Tensor, b: Tensor) -> bool:
    """True if two constants have the same element type, shape and bytes (NaNs compared by their bits)."""
    if a is b:
        return True
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    return content_digest(a) == content_digest(b)


def scalar(tensor: Tensor | None) -> float | int | bool | None:
    """Give the one element of a constant with exactly one, else `None`."""
    if tensor is None or tensor.size != 1 or tensor.dtype == DType.STRING:
        return None
    item: float | int | bool = tensor.numpy().reshape(-1)[0].item()
    return item


def ints(tensor: Tensor | None) -> tuple[int, ...] | None:
    """Give the elements of a small integer constant (a shape, axes, ...), else `None`."""
    if tensor is None or not DType(tensor.dtype).is_integer() or tensor.size > 4096:
        return None
    return tuple(int(v) for v in tensor.numpy().reshape(-1))
