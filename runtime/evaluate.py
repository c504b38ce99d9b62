"""Running a model in onnxruntime: one session, any value kind in and out, errors in one clear sentence."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort

from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.ir.dims import Dim, Sym
from memoptc.ir.types import DType, MapType, OptionalType, SequenceType, SparseTensorType, TensorType, Type, as_tensor
from memoptc.runtime.options import FOLDER_KEY, STOCK, Feed, RunOptions, clean_message, way_out

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"
"""A model: path of a file, serialised bytes, or a protobuf. Only a path can hold more than 2 GB."""

PROTOBUF_LIMIT = (1 << 31) - 1

_ORT_DTYPES = {
    "float": DType.FLOAT, "double": DType.DOUBLE, "float16": DType.FLOAT16, "bfloat16": DType.BFLOAT16,
    "int8": DType.INT8, "int16": DType.INT16, "int32": DType.INT32, "int64": DType.INT64,
    "uint8": DType.UINT8, "uint16": DType.UINT16, "uint32": DType.UINT32, "uint64": DType.UINT64,
    "bool": DType.BOOL, "string": DType.STRING, "complex64": DType.COMPLEX64, "complex128": DType.COMPLEX128,
    "float8e4m3fn": DType.FLOAT8E4M3FN, "float8e4m3fnuz": DType.FLOAT8E4M3FNUZ,
    "float8e5m2": DType.FLOAT8E5M2, "float8e5m2fnuz": DType.FLOAT8E5M2FNUZ,
    "int4": DType.INT4, "uint4": DType.UINT4, "float4e2m1": DType.FLOAT4E2M1,
}  # fmt: skip

# Element types onnxruntime's own numpy conversion does not know: they pass as raw bytes of an OrtValue.
_LOOK = 0.1
"""Seconds between two looks at the time that a run has taken, where it may take only so much."""
_RAW = frozenset(
    {
        DType.BFLOAT16, DType.FLOAT8E4M3FN, DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2, DType.FLOAT8E5M2FNUZ,
        DType.INT4, DType.UINT4, DType.FLOAT4E2M1,
    }
)  # fmt: skip


class Evaluator:
    """One model loaded into onnxruntime on the CPU.

    Args:
        model: The model; external data is looked for beside the file, or in `folder` for bytes and protobufs.
        options: How to run it.
        folder: Where external data lies when `model` is not a path.
        label: What error messages call the model; the file name when not given.
        blame: Class of the errors raised when onnxruntime refuses the model or a run: `InputError` for a
            user's model, `InternalError` for one that memoptc wrote.

    Raises:
        MemoptcError: of class `blame`, when onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: ModelSource,
        options: RunOptions = STOCK,
        *,
        folder: str | os.PathLike[str] | None = None,
        label: str = "",
        blame: type[MemoptcError] = InputError,
    ) -> None:
        self.options = options
        self.blame = blame
        self.folder = None if folder is None else str(folder)
        self._model = model
        path = os.fspath(model) if isinstance(model, str | os.PathLike) else ""
        self.label = label or (Path(path).name if path else "the model")
        native = options.session_options()
        if folder is not None:
            native.add_session_config_entry(FOLDER_KEY, str(folder))
        if path and not Path(path).is_file():
            raise blame(f"{path}: no such file.")
        source = path if isinstance(model, str | os.PathLike) else _serialized(model)
        try:
            self._session = _load(source, native, options)
        except Exception as error:
            try:
                if folder is None or isinstance(source, str):
                    raise error
                # before onnxruntime knew the folder's key, it followed absolute places
                self._session = _load(_with_absolute_places(source, Path(folder)), native, options)
            except Exception:
                what = f"{self.label}: onnxruntime cannot load it: {clean_message(error)}."
                raise blame(what, hint=way_out(error)) from error
        self.inputs = {arg.name: port_type(arg.type, arg.shape) for arg in self._session.get_inputs()}
        self.outputs = {arg.name: port_type(arg.type, arg.shape) for arg in self._session.get_outputs()}
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = 4

    @property
    def session(self) -> ort.InferenceSession:
        """onnxruntime's own session, for what `run` does not do."""
        return self._session

    def on_disk(self, folder: Path) -> str:
        """Give the path of the model; one that came in memory is written into `folder`."""
        if isinstance(self._model, str | os.PathLike):
            return os.path.abspath(os.fspath(self._model))
        path = folder / "model.onnx"
        path.write_bytes(_serialized(self._model))
        return str(path)

    def run(self, feed: Feed, outputs: Sequence[str] | None = None, *, cpu_seconds: float = math.inf) -> dict[str, Any]:
        """Run once.

        Args:
            feed: A value per input; inputs with a default may be left out.
            outputs: Names of the outputs wanted; all when not given.
            cpu_seconds: Time of processors, of this process, after which the run is ended behind the node it is at.

        Returns:
            Output name -> numpy array, list (sequence), dict (map) or `None` (empty optional).

        Raises:
            MemoptcError: of class `blame`, naming the node that failed, or as the run took too long.
        """
        names = list(outputs) if outputs is not None else list(self.outputs)
        until = time.process_time() + cpu_seconds
        try:
            with self._ended_after(cpu_seconds):
                if any(_is_raw(self.outputs.get(name)) for name in names):
                    values = self._run_raw(feed, names)
                else:
                    native = {name: self._native(name, value) for name, value in feed.items()}
                    values = self._session.run(names, native, self._run_options)
        except MemoptcError:
            raise
        except Exception as error:
            if time.process_time() > until:
                raise self.blame(f"{self.label}: a run of it takes more than {cpu_seconds:g} s.") from None
            raise self.blame(f"{self.label}: onnxruntime cannot run it: {clean_message(error)}.") from error
        return dict(zip(names, values, strict=True))

    @contextlib.contextmanager
    def _ended_after(self, cpu_seconds: float) -> Iterator[None]:
        """Ask onnxruntime to end what runs inside when it has taken so much time."""
        if cpu_seconds == math.inf:
            yield
            return
        ended, until = threading.Event(), time.process_time() + cpu_seconds

        def watch() -> None:
            while not ended.wait(_LOOK):
                if time.process_time() > until:
                    self._run_options.terminate = True

        watching = threading.Thread(target=watch, name="memoptc-run-watch", daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()
            self._run_options.terminate = False

    def _native(self, name: str, value: Any) -> Any:
        type_ = self.inputs.get(name)
        if _is_raw(type_) and isinstance(value, np.ndarray):
            return self._ort_value(name, value)
        return value

    def _ort_value(self, name: str, value: Any) -> Any:
        type_ = as_tensor(self.inputs.get(name))
        if type_ is None or not isinstance(value, np.ndarray):
            raise self.blame(
                f"{self.label}: input {name!r} is not a tensor, and an output has an element type that numpy "
                "does not know; onnxruntime's Python interface cannot pass both."
            )
        if type_.dtype in _RAW:
            if type_.dtype.bitwidth < 8:
                raise self.blame(f"{self.label}: onnxruntime's Python interface takes no 4-bit input {name!r}.")
            raw = np.asarray(value, order="C").view(np.uint16 if value.itemsize == 2 else np.uint8)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, int(type_.dtype))
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C"))

    def _run_raw(self, feed: Feed, names: list[str]) -> list[Any]:
        native = {name: self._ort_value(name, value) for name, value in feed.items()}
        values = self._session.run_with_ort_values(names, native, self._run_options)
        return [_from_ort_value(value) for value in values]


def _load(source: str | bytes, native: ort.SessionOptions, options: RunOptions) -> ort.InferenceSession:
    return ort.InferenceSession(
        source,
        native,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(options.disabled_optimizers) or None,
    )


def _with_absolute_places(model: bytes, folder: Path) -> bytes:
    proto = onnx.load_from_string(model)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(folder.absolute() / entry.value)
    data: bytes = proto.SerializeToString()
    return data


def port_type(text: str, shape: Sequence[int | str | None] | None = None) -> Type | None:
    """Read onnxruntime's spelling of a type, such as `seq(tensor(float))`.

    Args:
        text: The spelling.
        shape: Extents of a tensor as onnxruntime gives them. An empty list means a scalar or an unknown rank:
            onnxruntime does not tell these apart, so the shape is then unknown.
    """
    match = re.fullmatch(r"(\w+)\((.*)\)", text.strip())
    if match is None:
        return None
    kind, inner = match.groups()
    if kind in ("tensor", "sparse_tensor"):
        dtype = _ORT_DTYPES.get(inner, DType.UNDEFINED)
        dims: tuple[Dim, ...] | None = tuple(_dim(d) for d in shape) if shape else None
        return TensorType(dtype, dims) if kind == "tensor" else SparseTensorType(dtype, dims)
    if kind == "seq":
        return SequenceType(port_type(inner))
    if kind == "optional":
        return OptionalType(port_type(inner, shape))
    if kind == "map":
        key, _, value = inner.partition(",")
        return MapType(_ORT_DTYPES.get(key.strip(), DType.UNDEFINED), port_type(value))
    return None


def _dim(dim: int | str | None) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return Sym(dim) if dim else None


def _is_raw(type_: Type | None) -> bool:
    tensor = as_tensor(type_)
    return tensor is not None and tensor.dtype in _RAW


def _from_ort_value(value: Any) -> Any:
    if not value.is_tensor() or value.element_type() not in {int(d) for d in _RAW}:
        return value.numpy()
    dtype, shape = DType(value.element_type()), tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    nbytes = (count * dtype.bitwidth + 7) // 8
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), nbytes), np.uint8)
    if dtype.bitwidth == 4:  # two per byte, low half first
        raw = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[:count]
        if dtype == DType.INT4:
            raw = ((raw ^ 8).astype(np.int8) - 8).astype(np.int8)
            return raw.astype(dtype.numpy()).reshape(shape)
        if dtype == DType.UINT4:
            return raw.astype(dtype.numpy()).reshape(shape)
    return raw.view(dtype.numpy()).reshape(shape)


def _serialized(model: bytes | onnx.ModelProto) -> bytes:
    if isinstance(model, bytes):
        return model
    try:
        data: bytes = model.SerializeToString()
    except ValueError as error:
        raise InputError(
            "The model is larger than 2 GB, the limit of one protobuf message.",
            hint="Save it with external data and pass the path.",
        ) from error
    if len(data) > PROTOBUF_LIMIT:
        raise InputError(
            "The model is larger than 2 GB, the limit of one protobuf message.",
            hint="Save it with external data and pass the path.",
        )
    return data
