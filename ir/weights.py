"""Tensors kept beside a `.mir` text: in an `.npz` of ours or of numpy's, or in the model file they came from."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir

from memoptc.ir.archives import UNREADABLE, npy_header
from memoptc.ir.core import Tensor
from memoptc.ir.diagnostics import InputError
from memoptc.ir.element_spelling import tensor_bytes, tensor_from_bytes
from memoptc.ir.mapped import release
from memoptc.ir.spelling import type_text
from memoptc.ir.tensors import from_array, tensor_type
from memoptc.ir.types import DType, TensorType

_EAGER = 1 << 20
"""Tensors up to this many bytes are read at once; larger ones are mapped when somebody looks."""

_NATIVE = frozenset("?bhilqBHILQefdFD")


def take(held: Any, type_: TensorType, name: str) -> Tensor:
    """Give something found in a weights file, or handed over by a caller, as a tensor of a stated type.

    Args:
        held: An `onnx_ir` tensor, an array, or a vector of raw bytes for element types that numpy lacks.
        type_: The type it must have.
        name: Name for the tensor.

    Raises:
        ValueError: it has another type.
    """
    if not isinstance(held, np.ndarray | _Member):
        if hasattr(held, "tofile") and tensor_type(held) == type_:
            tensor: Tensor = held
            return tensor
        held = np.asarray(held) if not hasattr(held, "tofile") else held
    if isinstance(held, np.ndarray):
        if type_.dtype == DType.STRING and held.dtype.kind in "SUO":
            return from_array(held.reshape(_static(type_)), name)
        if held.dtype == type_.dtype.numpy() and held.shape == type_.shape:
            return from_array(held, name, type_.dtype)
        if held.dtype == np.uint8 and held.ndim == 1:
            return tensor_from_bytes(type_, np.ascontiguousarray(held), name)
        raise ValueError(f"it is {held.dtype}{list(held.shape)} where {type_text(type_)} is stated")
    if isinstance(held, _Member):
        return held.tensor(type_, name)
    raise ValueError(f"it is {type_text(tensor_type(held))} where {type_text(type_)} is stated")


def _static(type_: TensorType) -> tuple[int, ...]:
    shape = type_.static_shape
    if shape is None:
        raise ValueError("a tensor's extents are numbers")
    return shape


class _Member:
    """One array of an `.npz`, stored uncompressed and in C order: its bytes lie in the file as they are."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> None:
        self.path, self.dtype, self.shape, self.offset = path, dtype, shape, offset
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def _raw(self) -> npt.NDArray[np.uint8]:
        if not self.nbytes:
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", self.offset, (self.nbytes,))

    def tensor(self, type_: TensorType, name: str) -> Tensor:
        raw_bytes = self.dtype == np.uint8 and len(self.shape) == 1
        same = self.shape == type_.shape and type_.dtype != DType.STRING and self.dtype == type_.dtype.numpy()
        if not same and not (raw_bytes and (type_.dtype == DType.STRING or type_.nbytes == self.nbytes)):
            raise ValueError(f"it is {self.dtype}{list(self.shape)} where {type_text(type_)} is stated")
        if type_.dtype == DType.STRING or self.nbytes <= _EAGER:
            return tensor_from_bytes(type_, self._raw().tobytes(), name)
        return onnx_ir.LazyTensor(
            lambda: tensor_from_bytes(type_, self._raw(), name),
            type_.dtype,
            onnx_ir.Shape(_static(type_)),
            name=name or None,
        )


class Npz(Mapping[str, Any]):
    """The arrays of an `.npz`, those stored uncompressed mapped and not read.

    Raises:
        InputError: the file is missing or no `.npz`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
                self._held = {
                    info.filename.removesuffix(".npy"): _open(info, archive, file, path) for info in archive.infolist()
                }
        except FileNotFoundError:
            raise InputError(f"{path}: no such file.", hint="It holds the weights that the text refers to.") from None
        except UNREADABLE as e:
            raise InputError(f"{path} is not a readable .npz file: {e}.") from None

    def __getitem__(self, name: str) -> Any:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def _open(info: zipfile.ZipInfo, archive: zipfile.ZipFile, file: BinaryIO, path: Path) -> Any:
    with archive.open(info) as stream:
        shape, fortran, dtype = npy_header(stream)  # type: ignore[arg-type]
        header = stream.tell()
    if header + prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"the array {info.filename!r} is cut short")
    plain = not fortran and dtype.char in _NATIVE and dtype.newbyteorder("<") == dtype
    if info.compress_type == zipfile.ZIP_STORED and plain:
        # The local header's name and extra field may differ in length from the directory's.
        file.seek(info.header_offset + 26)
        name_and_extra = file.read(4)
        start = 30 + int.from_bytes(name_and_extra[:2], "little") + int.from_bytes(name_and_extra[2:], "little")
        place = info.header_offset + start + header
        if place + prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError(f"the array {info.filename!r} is cut short")
        return _Member(path, dtype, shape, place)
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors uncompressed, one in memory at a time; those that numpy has no type for as raw bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in tensors.items():
            # A fixed date: the same graph gives the same file.
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            native = tensor.dtype != DType.STRING and DType(tensor.dtype).numpy().char in _NATIVE
            array = tensor.numpy() if native else np.frombuffer(tensor_bytes(tensor), np.uint8)
            with archive.open(info, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
            release(tensor)


def onnx_weights(path: Path) -> dict[str, Tensor]:
    """Give a model file's weights by name, leaving out names that stand for several.

    Raises:
        InputError: the file is missing or no ONNX model.
    """
    from memoptc.ir.onnx_io import read_onnx

    graph = read_onnx(path)
    found: dict[str, Tensor] = {value.name: tensor for value, tensor in graph.defaults.items()}
    several: set[str] = set()
    for op in graph.walk("const", "Constant"):
        name = op.result.name
        several |= {name} & found.keys()
        if "value" in op.attrs:
            found[name] = op.attrs["value"]
    return {name: tensor for name, tensor in found.items() if name not in several}


def open_weights(path: Path) -> Mapping[str, Any]:
    """Open a weights file by its kind.

    Raises:
        InputError: it is missing or damaged.
    """
    return onnx_weights(path) if path.suffix == ".onnx" else Npz(path)
