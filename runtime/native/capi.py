"""The C interface of the onnxruntime library inside the installed wheel, through ctypes: no compiler needed.

`OrtApi` is a table of function pointers that only ever grows at its end, so an index, once published, keeps its
meaning (onnxruntime_c_api.h, "ORT_API_VERSION"). Only functions of version 18 and older are used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.native.loaded import loaded_api_base

Pointer: TypeAlias = "ctypes.c_void_p"

_API_VERSION = 18  # the first whose allocators have Reserve
_P, _S, _I, _N = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_PP = ctypes.POINTER(ctypes.c_void_p)
_PATH = ctypes.c_wchar_p if sys.platform == "win32" else ctypes.c_char_p
_LONGS = ctypes.POINTER(ctypes.c_int64)

# name -> index in the table, argument types; all of these give an OrtStatus pointer
_CALLS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "CreateEnv": (3, (_I, _S, _PP)),
    "CreateSession": (7, (_P, _PATH, _P, _PP)),
    "CreateSessionFromArray": (8, (_P, _P, _N, _P, _PP)),
    "Run": (9, (_P, _P, ctypes.POINTER(_S), _PP, _N, ctypes.POINTER(_S), _N, _PP)),
    "CreateSessionOptions": (10, (_PP,)),
    "SetOptimizedModelFilePath": (11, (_P, _PATH)),
    "SetSessionExecutionMode": (13, (_P, _I)),
    "EnableMemPattern": (16, (_P,)),
    "DisableMemPattern": (17, (_P,)),
    "EnableCpuMemArena": (18, (_P,)),
    "DisableCpuMemArena": (19, (_P,)),
    "SetSessionLogSeverityLevel": (22, (_P, _I)),
    "SetSessionGraphOptimizationLevel": (23, (_P, _I)),
    "SetIntraOpNumThreads": (24, (_P, _I)),
    "SetInterOpNumThreads": (25, (_P, _I)),
    "SessionGetInputCount": (30, (_P, ctypes.POINTER(_N))),
    "SessionGetOutputCount": (31, (_P, ctypes.POINTER(_N))),
    "SessionGetInputTypeInfo": (33, (_P, _N, _PP)),
    "SessionGetOutputTypeInfo": (34, (_P, _N, _PP)),
    "SessionGetInputName": (36, (_P, _N, _P, _PP)),
    "SessionGetOutputName": (37, (_P, _N, _P, _PP)),
    "CreateRunOptions": (39, (_PP,)),
    "RunOptionsSetRunLogSeverityLevel": (41, (_P, _I)),
    "RunOptionsSetTerminate": (46, (_P,)),
    "RunOptionsUnsetTerminate": (47, (_P,)),
    "CreateTensorAsOrtValue": (48, (_P, _LONGS, _N, _I, _PP)),
    "CreateTensorWithDataAsOrtValue": (49, (_P, _P, _N, _LONGS, _N, _I, _PP)),
    "IsTensor": (50, (_P, ctypes.POINTER(_I))),
    "GetTensorMutableData": (51, (_P, _PP)),
    "FillStringTensor": (52, (_P, ctypes.POINTER(_S), _N)),
    "GetStringTensorDataLength": (53, (_P, ctypes.POINTER(_N))),
    "GetStringTensorContent": (54, (_P, _P, _N, ctypes.POINTER(_N), _N)),
    "CastTypeInfoToTensorInfo": (55, (_P, _PP)),
    "GetTensorElementType": (60, (_P, ctypes.POINTER(_I))),
    "GetDimensionsCount": (61, (_P, ctypes.POINTER(_N))),
    "GetDimensions": (62, (_P, _LONGS, _N)),
    "GetSymbolicDimensions": (63, (_P, ctypes.POINTER(_S), _N)),
    "GetTensorTypeAndShape": (65, (_P, _PP)),
    "CreateMemoryInfo": (68, (_S, _I, _I, _I, _PP)),
    "AllocatorFree": (76, (_P, _P)),
    "GetAllocatorWithDefaultOptions": (78, (_PP,)),
    "AddSessionConfigEntry": (130, (_P, _S, _S)),
    "AddInitializer": (150, (_P, _S, _P)),
    "CreatePrepackedWeightsContainer": (166, (_PP,)),
    "CreateSessionWithPrepackedWeightsContainer": (168, (_P, _PATH, _P, _P, _PP)),
    "RegisterAllocator": (176, (_P, _P)),
    "UnregisterAllocator": (177, (_P, _P)),
}
_RELEASES = {
    "ReleaseStatus": 93, "ReleaseSession": 95, "ReleaseValue": 96, "ReleaseRunOptions": 97, "ReleaseTypeInfo": 98,
    "ReleaseTensorTypeAndShapeInfo": 99, "ReleaseSessionOptions": 100,
    "ReleasePrepackedWeightsContainer": 167,
}  # fmt: skip
_GET_ERROR_CODE, _GET_ERROR_MESSAGE = 1, 2

function = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)
"""Kind of function pointer the interface takes and gives (the calling convention matters on 32-bit Windows only)."""

Alloc = function(_P, _P, _N)
Free = function(None, _P, _P)
Info = function(_P, _P)


class OrtError(Exception):
    """An error status of onnxruntime.

    Args:
        message: Its message.
        code: Its `OrtErrorCode`.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Unavailable(InputError):
    """The C interface cannot be used on this machine."""


class OrtAllocator(ctypes.Structure):
    """An allocator as onnxruntime sees it. Fields after `Reserve` are not read at this version."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("Alloc", Alloc),
        ("Free", Free),
        ("Info", Info),
        ("Reserve", Alloc),
        ("later", _P * 8),
    )


class _Base(ctypes.Structure):
    _fields_ = (("GetApi", function(_P, ctypes.c_uint32)), ("GetVersionString", function(_S)))


class Api:
    """The functions, each raising `OrtError` when onnxruntime answers with one. Use `api()`.

    Args:
        library: The shared library, or the address of the `OrtApiBase` of one that is loaded.

    Raises:
        Unavailable: it is none, or too old.
    """

    def __init__(self, library: str | int) -> None:
        self.shared = isinstance(library, int)
        """It is the library that Python's sessions run in: environment and allocators are theirs, too."""
        base = _Base.from_address(library) if isinstance(library, int) else _base_of(library)
        self.version = base.GetVersionString().decode()
        address = base.GetApi(_API_VERSION)
        if not address:
            raise Unavailable(f"onnxruntime {self.version} offers no C interface of version {_API_VERSION}.")
        table = ctypes.cast(address, _PP)
        self._message = function(_S, _P)(table[_GET_ERROR_MESSAGE])
        self._code = function(_I, _P)(table[_GET_ERROR_CODE])
        self.release = {n: function(None, _P)(table[i]) for n, i in _RELEASES.items()}
        self._table = table
        self.env = self.new("CreateEnv", 3, b"memoptc")
        self.memory_info = self.new("CreateMemoryInfo", b"Cpu", 0, 0, 0)  # OrtDeviceAllocator, device 0, default
        self.allocator = self.new("GetAllocatorWithDefaultOptions")
        heap = ctypes.cast(self.allocator, ctypes.POINTER(OrtAllocator)).contents
        self.heap_alloc, self.heap_free = heap.Alloc, heap.Free

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in _CALLS:
            raise AttributeError(name)
        index, types = _CALLS[name]
        call = self.__dict__[name] = self._checked(function(_P, *types)(self._table[index]))
        return call

    def _checked(self, raw: Callable[..., Any]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            status = raw(*arguments)
            if status:
                message, code = self._message(status).decode(errors="replace"), self._code(status)
                self.release["ReleaseStatus"](status)
                # No local name for it: its frame would refer to it, and keep what callers handed in until a collection.
                raise OrtError(message, code)

        return call

    def new(self, name: str, *arguments: Any) -> Pointer:
        """Call a function whose last argument gets a pointer, and give that."""
        out = ctypes.c_void_p()
        getattr(self, name)(*arguments, ctypes.byref(out))
        return out


def _base_of(path: str) -> _Base:
    try:
        library = ctypes.CDLL(path)
        library.OrtGetApiBase.restype = ctypes.POINTER(_Base)
        found: _Base = library.OrtGetApiBase().contents
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{os.path.basename(path)} offers no C interface: {error}.") from None
    return found


@functools.cache
def api() -> Api:
    """Take the interface of the library that Python has loaded, else load the wheel's second one, once per process.

    Raises:
        Unavailable: the installed onnxruntime ships no usable shared library.
    """
    loaded = loaded_api_base()
    if loaded is not None:
        with contextlib.suppress(Unavailable, OrtError):
            return Api(loaded)
    from pathlib import Path  # a second library costs more than that

    spec = importlib.util.find_spec("onnxruntime")
    folder = Path(spec.origin).parent / "capi" if spec is not None and spec.origin else Path()
    patterns = {"win32": ["onnxruntime.dll"], "darwin": ["libonnxruntime*.dylib"]}.get(
        sys.platform, ["libonnxruntime.so.*", "libonnxruntime.so"]
    )
    for pattern in patterns:
        for path in sorted(folder.glob(pattern), reverse=True):
            return Api(str(path))
    raise Unavailable(
        "The installed onnxruntime ships no shared library with a C interface.",
        hint="Install onnxruntime from its official wheel for this platform.",
    )


def encode_path(path: str) -> Any:
    """Give a path as the interface takes it."""
    return path if sys.platform == "win32" else os.fsencode(path)
