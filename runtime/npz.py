"""Arrays on disk: feeds kept as `.npz` whatever their kinds, and large arrays read row by row."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.archives import UNREADABLE, npy_header
from memoptc.ir.diagnostics import InputError
from memoptc.ir.types import DType

KINDS = "__kinds__"
"""Member of an `.npz` that says which of its arrays make up which value, where a value is no plain array."""
_EXOTIC: dict[str, np.dtype[Any]] = {
    dtype.numpy().name: dtype.numpy()
    for dtype in (
        DType.BFLOAT16, DType.FLOAT8E4M3FN, DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2, DType.FLOAT8E5M2FNUZ,
        DType.INT4, DType.UINT4, DType.FLOAT4E2M1,
    )
}  # fmt: skip


def save_feed(path: Path, feed: Mapping[str, Any]) -> None:
    """Write named values as `.npz`.

    Plain arrays are stored under their names. Where a value is a sequence, a map, `None` or of an element
    type that numpy cannot store, a member `__kinds__` (JSON) says how to put it together again.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    kinds = {name: _take_apart(name, value, arrays) for name, value in feed.items()}
    if any(not isinstance(kind, str) or kind != name for name, kind in kinds.items()):
        arrays[KINDS] = np.frombuffer(json.dumps(kinds).encode(), np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def load_feed(path: Path) -> dict[str, Any]:
    """Read what `save_feed` wrote.

    Raises:
        InputError: the file is no `.npz`, holds Python objects, or what `__kinds__` says of its arrays does not fit
            them.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _native(file[name]) for name in file.files}
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        if zipfile.is_zipfile(path):
            with ArrayFile(path, ""):  # which says of what array it is
                pass
        raise InputError(
            f"{path} is no .npz file.", hint="Write one with numpy.savez(FILE, INPUT=array, ...)."
        ) from error
    kinds = arrays.pop(KINDS, None)
    if kinds is None:
        return arrays
    try:
        return {name: _put_together(kind, arrays) for name, kind in json.loads(kinds.tobytes()).items()}
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its member {KINDS!r} does not describe its arrays.") from error


def _native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give an array in this machine's byte order, which onnxruntime takes all arrays to be in."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _part(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """A name for a part of a value, which no value has."""
    return f"{KINDS}/{len(arrays)}"


def _take_apart(key: str, value: Any, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        keys, values = list(value.keys()), list(value.values())
        return {"map": [_take_apart(_part(arrays), v, arrays) for v in (keys, values)]}
    if isinstance(value, list | tuple):
        return {"list": [_take_apart(_part(arrays), item, arrays) for item in value]}
    array = _native(np.asarray(value))
    if array.dtype.name in _EXOTIC:
        arrays[key] = np.ascontiguousarray(array).view(np.uint16 if array.itemsize == 2 else np.uint8)
        return {"key": key, "dtype": array.dtype.name}
    if array.dtype.kind == "O":
        arrays[key] = array.astype(str)
        return {"key": key, "dtype": "string"}
    arrays[key] = array
    return key if isinstance(value, np.ndarray | np.generic) else {"key": key, "dtype": "python"}


def _put_together(kind: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    if kind is None:
        return None
    if isinstance(kind, str):
        return arrays[kind]
    if "map" in kind:
        keys, values = (_put_together(part, arrays) for part in kind["map"])
        return dict(zip(keys, values, strict=True))
    if "list" in kind:
        return [_put_together(item, arrays) for item in kind["list"]]
    array = arrays[kind["key"]]
    if kind["dtype"] == "python":
        return array.item()
    if kind["dtype"] == "string":
        return array.astype(object)
    return array.view(_EXOTIC[kind["dtype"]])


class ArrayFile:
    """The arrays of an `.npz` or `.npy`, their headers at once, their content row by row along axis 0."""

    def __init__(self, path: Path, only_input: str) -> None:
        self.path = path
        self.headers: dict[str, tuple[tuple[int, ...], np.dtype[Any], bool]] = {}
        self._zip: zipfile.ZipFile | None = None
        self._single = ""
        try:
            if path.suffix == ".npy":
                if not only_input:
                    raise InputError(
                        f"{path} holds one array, but the model has not exactly one input.",
                        hint="Give an .npz with one array per input name.",
                    )
                self._single = only_input
                self.headers[only_input] = self._read_header(only_input)
            else:
                self._zip = zipfile.ZipFile(path)
                for member in self._zip.namelist():
                    name = member.removesuffix(".npy")
                    self.headers[name] = self._read_header(name)
        except UNREADABLE as error:
            raise InputError(f"{path} is not a readable {path.suffix} file: {one_line(error)}.") from error

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def _stream(self, name: str) -> Any:
        if self._zip is None:
            return self.path.open("rb")
        archive, member = self._zip, self._member(name)
        return _guard(self.path, lambda: archive.open(member))

    def _member(self, name: str) -> str:
        assert self._zip is not None
        return f"{name}.npy" if f"{name}.npy" in self._zip.NameToInfo else name

    def _read_header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
        with self._stream(name) as stream:
            shape, dtype, fortran = _header(stream, self.path, name)
        held = self.path.stat().st_size if self._zip is None else self._zip.NameToInfo[self._member(name)].file_size
        if prod(shape) * dtype.itemsize > held:
            raise InputError(f"{self.path}: the array {name!r} is cut short.")
        return shape, dtype, fortran

    def whole(self, name: str) -> npt.NDArray[Any]:
        """Read one array."""
        with self._stream(name) as stream:
            array: npt.NDArray[Any] = _guard(self.path, lambda: np.lib.format.read_array(stream, allow_pickle=False))
            return array

    def rows(self, name: str, size: int) -> Iterator[npt.NDArray[Any]]:
        """Read pieces of `size` along axis 0, in order."""
        shape, dtype, fortran = self.headers[name]
        if fortran:
            array = self.whole(name)
            for start in range(0, shape[0], size):
                yield np.ascontiguousarray(array[start : start + size])
            return
        with self._stream(name) as stream:
            _header(stream, self.path, name)
            row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            for start in range(0, shape[0], size):
                count = min(size, shape[0] - start)
                data = _guard(self.path, lambda count=count: stream.read(count * row))  # type: ignore[misc]
                if len(data) != count * row:
                    raise InputError(f"{self.path}: the array {name!r} is cut short.")
                yield np.frombuffer(bytearray(data), dtype).reshape((count, *shape[1:]))


def _header(stream: Any, path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    shape, fortran, dtype = _guard(path, lambda: npy_header(stream))
    if dtype.hasobject:
        raise InputError(
            f"{path}: the array {name!r} holds Python objects.", hint="Save plain numeric or string arrays."
        )
    return shape, dtype, fortran


def _guard(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged: {one_line(error)}.") from error


def one_line(error: BaseException) -> str:
    """Give an exception's message as part of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
