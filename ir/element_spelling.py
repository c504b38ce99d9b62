"""Printing and parsing of tensor elements, as text and as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from memoptc.ir.core import Tensor
from memoptc.ir.spelling import DTYPE_TEXT, IS_INT, bytes_text, quote, type_text
from memoptc.ir.types import DType, TensorType

_LISTED = {
    DType.BOOL, DType.INT4, DType.UINT4, DType.INT8, DType.UINT8, DType.INT16, DType.UINT16, DType.INT32,
    DType.UINT32, DType.INT64, DType.UINT64, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT, DType.DOUBLE,
    DType.FLOAT8E4M3FN, DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2, DType.FLOAT8E5M2FNUZ, DType.FLOAT4E2M1,
}  # fmt: skip
"""Element types whose numbers are spelled out; strings are, too; all others are written as bytes."""


def elements_text(tensor: Tensor, limit: int) -> str | None:
    """Spell a tensor's elements, or give `None` when they are many or cannot be spelled exactly.

    A rank-0 tensor is one bare element, any other a list in row-major order, `splat(x)` when more than
    `limit` elements are all the same.
    """
    dtype, size = DType(tensor.dtype), tensor.size
    if dtype == DType.STRING:
        if size > limit:
            return None
        items = [_string_text(s) for s in string_items(tensor)]
        return items[0] if not tensor.shape.numpy() else f"[{', '.join(items)}]"
    if dtype not in _LISTED or size > 65536:
        return None
    array = tensor.numpy().reshape(-1)
    if size > limit:
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(size, -1)
        if not (raw == raw[0]).all():
            return None
        text = _exact(array[:1], dtype)
        return None if text is None else f"splat({text})"
    text = _exact(array, dtype)
    return text if text is None or not tensor.shape.numpy() else f"[{text}]"


def _exact(array: npt.NDArray[Any], dtype: DType) -> str | None:
    if dtype.is_integer() or dtype == DType.BOOL:
        return ",".join(map(str, array.astype(np.uint64 if dtype == DType.UINT64 else np.int64).tolist()))
    numbers = array.tolist() if dtype == DType.DOUBLE else array.astype(np.float32)
    text = ",".join(map(str, numbers))
    # NaNs that carry a sign or payload would come back as plain ones.
    return text if array_of(text, dtype).tobytes() == array.tobytes() else None


def array_of(text: str, dtype: DType) -> npt.NDArray[Any]:
    """Read comma-separated numbers as a vector.

    Raises:
        ValueError: a number does not fit the element type.
    """
    parts = text.split(",") if text.strip() else []
    if dtype.is_integer() or dtype == DType.BOOL:
        numbers = [_integer(p, dtype) for p in parts]
        low, high = (0, 1) if dtype == DType.BOOL else (int(dtype.min), int(dtype.max))
        for number in numbers:
            if not low <= number <= high:
                raise ValueError(f"{number} does not fit {DTYPE_TEXT[dtype]}")
        wide = np.asarray(numbers, np.uint64 if dtype == DType.UINT64 else np.int64)
        return wide.astype(dtype.numpy())
    with np.errstate(over="ignore"):
        return np.asarray([float(p) for p in parts], np.float64).astype(dtype.numpy())


def _integer(text: str, dtype: DType) -> int:
    if not IS_INT.fullmatch(text.strip()):
        raise ValueError(f"{text.strip()} does not fit {DTYPE_TEXT[dtype]}")
    return int(text)


def string_items(tensor: Tensor) -> list[bytes]:
    """Give the elements of a string tensor in row-major order."""
    items = np.asarray(tensor.numpy(), object).reshape(-1).tolist()
    return [s.encode() if isinstance(s, str) else bytes(s) for s in items]


def _string_text(item: bytes) -> str:
    try:
        return quote(item.decode("utf-8"))
    except UnicodeDecodeError:
        return bytes_text(item)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Give a tensor's content as ONNX stores it; strings each with its length (8 bytes, little-endian) before."""
    if tensor.dtype == DType.STRING:
        return b"".join(len(s).to_bytes(8, "little") + s for s in string_items(tensor))
    return tensor.tobytes()


def tensor_from_bytes(type_: TensorType, content: bytes | npt.NDArray[np.uint8], name: str = "") -> Tensor:
    """Read what `tensor_bytes` wrote; the content is not copied.

    Raises:
        ValueError: the number of bytes does not fit the type, or its shape is not static.
    """
    shape = type_.static_shape
    if shape is None:
        raise ValueError("a tensor's extents are numbers")
    if type_.dtype == DType.STRING:
        return _string_tensor(shape, bytes(content), name)
    need = type_.nbytes
    if need != len(content):
        raise ValueError(f"{type_text(type_)} holds {need} bytes, not {len(content)}")
    raw = np.frombuffer(content, np.uint8)
    if type_.dtype.bitwidth < 8:
        return onnx_ir.PackedTensor(raw, type_.dtype, shape=shape, name=name or None)
    array = raw.view(type_.dtype.numpy()).reshape(shape)
    return onnx_ir.Tensor(array, dtype=type_.dtype, name=name or None)


def _string_tensor(shape: tuple[int, ...], content: bytes, name: str) -> Tensor:
    items, at = [], 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        items.append(content[at + 8 : at + 8 + size])
        at += 8 + size
    if at != len(content) or len(items) != int(np.prod(shape, dtype=np.int64)):
        raise ValueError("the strings do not fit the type")
    return onnx_ir.StringTensor(items, shape=onnx_ir.Shape(shape), name=name or None)
