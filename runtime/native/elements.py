"""Element types in onnxruntime's numbering: its spelling of each, and the numpy dtype.

The numbers are those of `ONNXTensorElementDataType` in onnxruntime_c_api.h, and of `onnx.TensorProto.DataType`. Types
that numpy does not know come from ml_dtypes, which is imported when one is met.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

STRING = 8

NAMES = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", STRING: "string", 9: "bool",
    10: "float16", 11: "double", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1",
}  # fmt: skip
"""Number -> onnxruntime's spelling, as in `tensor(float)`."""

_NUMPY = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", STRING: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
}  # fmt: skip
_ML_DTYPES = {
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz",
    21: "uint4", 22: "int4", 23: "float4_e2m1fn",
}  # fmt: skip
_NUMBERS = {name: number for number, name in (_NUMPY | _ML_DTYPES).items()}

SUB_BYTE = frozenset({21, 22, 23})
"""Types of which two elements share a byte."""

_WHOLE_BYTES = frozenset(f"tensor({name})" for number, name in NAMES.items() if number not in SUB_BYTE)


def has_whole_bytes(type_: str) -> bool:
    """True for the type of a tensor, as onnxruntime spells it, whose elements have addresses, or are text."""
    return type_ in _WHOLE_BYTES


@functools.cache
def numpy_dtype(number: int) -> np.dtype[Any]:
    """Give the numpy dtype of an element type; raises `KeyError` for a number without one."""
    if number in _NUMPY:
        return np.dtype(_NUMPY[number])
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[number]))
    return dtype


@functools.cache
def element_bytes(type_: str) -> int:
    """Give the bytes of an element of a tensor whose type onnxruntime spells so; 0 where that is not known."""
    number = next((n for n, name in NAMES.items() if type_ == f"tensor({name})"), None)
    return 0 if number is None or number in SUB_BYTE else numpy_dtype(number).itemsize


def number_of(dtype: np.dtype[Any]) -> int:
    """Give the element type of a numpy dtype that is no text; raises `KeyError` when there is none."""
    return _NUMBERS[dtype.name]
