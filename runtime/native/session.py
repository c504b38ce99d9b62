"""A session through the C interface, with an allocator of ours."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.errors import invalid_argument, of_code, too_large
from memoptc.runtime.native.allocator import TrackingAllocator
from memoptc.runtime.native.capi import OrtError, Pointer, Unavailable, api, encode_path
from memoptc.runtime.native.elements import NAMES, STRING, SUB_BYTE, number_of, numpy_dtype
from memoptc.runtime.native.layout import set_hidden
from memoptc.runtime.native.trace import Block, Script, Trace
from memoptc.runtime.options import FOLDER_KEY, STOCK, RunOptions, clean_message, registration

if TYPE_CHECKING:
    import numpy.typing as npt

    from memoptc.runtime.native.shared import Shared


@dataclass(frozen=True)
class Port:
    """An input or output, described as onnxruntime's Python package does.

    Args:
        name: Its name.
        type: Such as `tensor(float)`; empty for what is no tensor.
        shape: Extents: a number, the name of a symbolic dimension, or `None`.
    """

    name: str
    type: str
    shape: list[int | str | None]


class NativeSession:
    """A model loaded through the C interface; tensors in, tensors out.

    Args:
        model: Path or serialized bytes.
        options: How to run it. `arena` is ignored: allocations go to an allocator of ours.
        folder: Where external data of serialized bytes lies.
        shared: Weights that other sessions have, too; for a model that comes from a path.

    Raises:
        Unavailable: the C interface or an option cannot be used here.
        InputError: onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        options: RunOptions = STOCK,
        *,
        folder: str | os.PathLike[str] | None = None,
        shared: Shared | None = None,
    ) -> None:
        a = self._api = api()
        self.allocator = TrackingAllocator.take()
        self._lock = threading.RLock()
        self._handle: Pointer | None = None
        self._shared = shared  # onnxruntime refers to its weights as long as the session lives
        native = a.new("CreateSessionOptions")
        try:
            a.SetSessionLogSeverityLevel(native, 4)
            a.SetSessionGraphOptimizationLevel(native, 99 if options.optimize else 0)
            a.SetIntraOpNumThreads(native, options.threads)
            (a.EnableMemPattern if options.mem_pattern else a.DisableMemPattern)(native)
            a.DisableCpuMemArena(native)
            config = {"session.use_env_allocators": "1"} | dict(options.config)
            if options.disabled_optimizers:
                config["optimization.disable_specified_optimizers"] = ";".join(options.disabled_optimizers)
            if folder is not None:
                config[FOLDER_KEY] = str(folder)
            for key, value in config.items():
                a.AddSessionConfigEntry(native, key.encode(), value.encode())
            if not set_hidden(native, file_order=options.file_order, mem_reuse=options.mem_reuse):
                raise Unavailable(f"onnxruntime {a.version} keeps its session options in a way not known.")
            self.load_events = self.allocator.record(lambda: self._load(model, native)).events
        except OrtError as error:
            if self.allocator.refused:
                raise too_large(self.allocator.refused) from None
            raise of_code(error.code)(f"onnxruntime cannot load the model: {clean_message(error)}.") from None
        finally:
            a.release["ReleaseSessionOptions"](native)
            if self._handle is None:
                self.allocator.leave()
        self.loaded_bytes = self.allocator.live_bytes
        self.load_peak_bytes = self.allocator.peak_bytes
        self.inputs, self.outputs = self._names("Input"), self._names("Output")
        self._output_names = (ctypes.c_char_p * len(self.outputs))(*(n.encode() for n in self.outputs))
        self.input_ports, self.output_ports = self._ports("Input"), self._ports("Output")
        self._run_options = a.new("CreateRunOptions")
        a.RunOptionsSetRunLogSeverityLevel(self._run_options, 4)

    def _load(self, model: str | os.PathLike[str] | bytes, native: Pointer) -> dict[str, int]:
        a = self._api
        with registration:
            if a.shared:  # an arena of a session of Python's may still be there; that session keeps it
                with contextlib.suppress(OrtError):
                    a.UnregisterAllocator(a.env, a.memory_info)
            a.RegisterAllocator(a.env, ctypes.byref(self.allocator.struct))
            try:
                if self._shared is not None and not isinstance(model, bytes):
                    for name, weight in self._shared.weights.items():
                        a.AddInitializer(native, name.encode(), weight.value)
                    packed, path = self._shared.packed.pointer, encode_path(os.fspath(model))
                    handle = a.new("CreateSessionWithPrepackedWeightsContainer", a.env, path, native, packed)
                elif isinstance(model, bytes):
                    handle = a.new("CreateSessionFromArray", a.env, ctypes.c_char_p(model), len(model), native)
                else:
                    handle = a.new("CreateSession", a.env, encode_path(os.fspath(model)), native)
            finally:
                a.UnregisterAllocator(a.env, a.memory_info)
        self._handle = handle
        return {}

    def _names(self, kind: str) -> list[str]:
        a, count = self._api, ctypes.c_size_t()
        getattr(a, f"SessionGet{kind}Count")(self._handle, ctypes.byref(count))
        found = []
        for index in range(count.value):
            text = a.new(f"SessionGet{kind}Name", self._handle, index, a.allocator)
            found.append(ctypes.string_at(text).decode())
            a.AllocatorFree(a.allocator, text)
        return found

    def _ports(self, kind: str) -> list[Port]:
        a = self._api
        names = self.inputs if kind == "Input" else self.outputs
        found = []
        for index, name in enumerate(names):
            info = a.new(f"SessionGet{kind}TypeInfo", self._handle, index)
            tensor = a.new("CastTypeInfoToTensorInfo", info)  # belongs to `info`; null for what is no tensor
            if tensor:
                element, dims = _describe(tensor)
                symbols = (ctypes.c_char_p * len(dims))()
                a.GetSymbolicDimensions(tensor, symbols, len(dims))
                shape = [d if d >= 0 else (text or b"").decode() or None for d, text in zip(dims, symbols, strict=True)]
                found.append(Port(name, f"tensor({NAMES[element]})", shape))
            else:
                found.append(Port(name, "", []))
            a.release["ReleaseTypeInfo"](info)
        return found

    def run(
        self, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run once on the heap.

        Args:
            feed: An array per input.
            into: Arrays that outputs are written to, C-contiguous and of the right shape and type.

        Returns:
            Output name -> array.

        Raises:
            InputError: onnxruntime refuses the run, or a value is no tensor.
        """
        with self._lock, _Call(self, feed, into or {}) as call:
            call.run()
            return call.arrays()

    def record(
        self,
        feed: Mapping[str, npt.NDArray[Any]],
        block: Block | None = None,
        handed_out: frozenset[int] = frozenset(),
    ) -> tuple[dict[str, npt.NDArray[Any]], Trace]:
        """Run once and record every allocation. Raises as `run` does.

        Args:
            feed: An array per input.
            block: Memory to run in as far as it reaches, which nobody uses.
            handed_out: Numbers of allocations that outputs are expected in: where they lie apart, no output is copied.
        """
        with self._lock, _Call(self, feed, {}) as call:

            def run() -> dict[str, int]:
                call.run()
                return call.addresses()

            trace = self.allocator.record(run, block, handed_out)
            return call.arrays(), trace

    def replay(
        self,
        script: Script,
        feed: Mapping[str, npt.NDArray[Any]],
        into: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> tuple[dict[str, npt.NDArray[Any]], str]:
        """Run in planned places. Raises as `run` does.

        Returns:
            The outputs (none when the allocator is strict and the plan was left), and what left the plan.
        """
        with self._lock, _Call(self, feed, into or {}) as call:
            left = self.allocator.replay(script, call.run)
            return ({} if left and self.allocator.strict else call.arrays()), left

    @contextlib.contextmanager
    def limited(self, limit: int | None, *, strict: bool = False) -> Iterator[TrackingAllocator]:
        """Bound the bytes alive on the heap for a while, and end runs that pass the limit before their next node.

        Args:
            limit: Bytes, weights in the kernels' own layout included; `None` for no limit.
            strict: End runs that leave their script, too.
        """
        allocator, a = self.allocator, self._api
        with self._lock:
            allocator.limit, allocator.strict = limit, strict
            allocator.over = allocator.refused = ""
            allocator.stop = lambda: a.RunOptionsSetTerminate(self._run_options)
            try:
                yield allocator
            finally:
                allocator.limit, allocator.strict = None, False
                if self._handle is not None:
                    a.RunOptionsUnsetTerminate(self._run_options)

    def close(self) -> None:
        """Release the model."""
        with self._lock:
            if self._handle is not None:
                self._api.release["ReleaseSession"](self._handle)
                self._api.release["ReleaseRunOptions"](self._run_options)
                self._handle = self._shared = None
                self.allocator.leave()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def closed() -> InputError:
    """Give the error of a call on a session that was closed."""
    return InputError("The session is closed.", hint="Open another one.")


def _describe(info: Pointer) -> tuple[int, tuple[int, ...]]:
    a = api()
    kind, rank = ctypes.c_int(), ctypes.c_size_t()
    a.GetTensorElementType(info, ctypes.byref(kind))
    a.GetDimensionsCount(info, ctypes.byref(rank))
    dims = (ctypes.c_int64 * rank.value)()
    a.GetDimensions(info, dims, rank)
    return kind.value, tuple(dims)


class _Call:
    """The values of one run, released at its end."""

    def __init__(
        self, session: NativeSession, feed: Mapping[str, npt.NDArray[Any]], into: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        self.session, self.api = session, session._api
        self._kept: list[Any] = []
        if session._handle is None:
            raise closed()
        names = [n for n in session.inputs if n in feed]
        missing = [n for n in feed if n not in session.inputs]
        if missing:
            raise invalid_argument(f"The model has no input {missing[0]!r}.")
        self.into = into
        self._values: list[Pointer] = []
        try:
            for name in names:
                self._values.append(self._value(feed[name], f"input {name!r}"))
            self.bound: list[Pointer | None] = []
            for name in session.outputs:
                self.bound.append(self._value(into[name], f"output {name!r}") if name in into else None)
        except BaseException:
            self._release([*self._values, *(v for v in getattr(self, "bound", ()) if v is not None)])
            raise
        self.inputs = (ctypes.c_void_p * len(names))(*(v.value for v in self._values))
        self.names = (ctypes.c_char_p * len(names))(*(n.encode() for n in names))
        self.outputs = (ctypes.c_void_p * len(session.outputs))(*(None if v is None else v.value for v in self.bound))

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, *_: object) -> None:
        self._release([*self._values, *(ctypes.c_void_p(v) for v in self.outputs)])

    def run(self) -> None:
        s = self.session
        try:
            self.api.Run(
                s._handle, s._run_options, self.names, self.inputs, len(self.inputs),
                s._output_names, len(self.outputs), self.outputs,
            )  # fmt: skip
        except OrtError as error:
            raise of_code(error.code)(f"onnxruntime cannot run the model: {clean_message(error)}.") from None

    def _release(self, values: list[Pointer]) -> None:
        for value in values:
            if value:
                self.api.release["ReleaseValue"](value)

    def _value(self, given: Any, what: str) -> Pointer:
        if not isinstance(given, np.ndarray):
            raise InputError(f"The {what} is no tensor; this way of running takes tensors only.")
        array = np.asarray(given, order="C")
        self._kept.append(array)
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        if array.dtype.kind in "OUST":
            texts = [t if isinstance(t, bytes) else str(t).encode() for t in array.reshape(-1).tolist()]
            if any(b"\0" in text for text in texts):
                raise InputError(
                    f"The {what} has text with a NUL in it, which this way of running would cut there.",
                    hint="Choose memory='arena'.",
                )
            value = self.api.new("CreateTensorAsOrtValue", self.api.allocator, dims, array.ndim, STRING)
            self.api.FillStringTensor(value, (ctypes.c_char_p * len(texts))(*texts), len(texts))
            return value
        try:
            element = number_of(array.dtype)
        except KeyError:
            raise invalid_argument(f"The {what} is an array of {array.dtype}, which is no element type.") from None
        if element in SUB_BYTE:
            raise InputError(f"The {what} has 4-bit elements, which this way of running does not take.")
        return self.api.new(
            "CreateTensorWithDataAsOrtValue",
            self.api.memory_info, array.ctypes.data, array.nbytes, dims, array.ndim, element,
        )  # fmt: skip

    def addresses(self) -> dict[str, int]:
        """Address of each output."""
        found = {}
        for name, value in zip(self.session.outputs, self.outputs, strict=True):
            if value and self._is_tensor(value):
                found[name] = self.api.new("GetTensorMutableData", ctypes.c_void_p(value)).value or 0
        return found

    def _is_tensor(self, value: int) -> bool:
        flag = ctypes.c_int()
        self.api.IsTensor(ctypes.c_void_p(value), ctypes.byref(flag))
        return bool(flag.value)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Give the outputs: the arrays that they were written to, the memory they have to themselves, or copies."""
        found = {}
        taken: set[int] = set()
        for name, value in zip(self.session.outputs, self.outputs, strict=True):
            in_array = name in self.into
            found[name] = self.into[name] if in_array else self._read(ctypes.c_void_p(value), name, taken)
        return found

    def _read(self, value: Pointer, name: str, taken: set[int]) -> npt.NDArray[Any]:
        if not value or not self._is_tensor(value.value or 0):
            raise InputError(f"The output {name!r} is no tensor; this way of running gives tensors only.")
        info = self.api.new("GetTensorTypeAndShape", value)
        kind, shape = _describe(info)
        self.api.release["ReleaseTensorTypeAndShapeInfo"](info)
        if kind == STRING:
            return self._read_text(value, shape)
        if kind in SUB_BYTE:
            raise InputError(f"The output {name!r} has 4-bit elements, which this way of running does not give.")
        dtype = numpy_dtype(kind)
        source = self.api.new("GetTensorMutableData", value)
        place = source.value or 0
        block = self.session.allocator.mapped(place)
        if block is not None and place not in taken:
            taken.add(place)  # what lies in the same memory is another array all the same
            return block.array(shape, dtype)
        data = np.empty(shape, dtype)
        if data.nbytes:
            ctypes.memmove(data.ctypes.data, source, data.nbytes)
        return data

    def _read_text(self, value: Pointer, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64))
        length = ctypes.c_size_t()
        self.api.GetStringTensorDataLength(value, ctypes.byref(length))
        buffer = ctypes.create_string_buffer(length.value + 1)
        starts = (ctypes.c_size_t * count)()
        self.api.GetStringTensorContent(value, buffer, length, starts, count)
        ends = [*starts, length.value][1:]
        texts = [buffer.raw[a:b].decode() for a, b in zip(starts, ends, strict=True)]
        return np.array(texts, object).reshape(shape)
