"""The C interface of the onnxruntime that Python has already loaded, so that no second library is needed.

The wheel's extension module contains all of onnxruntime and exports nothing of it but its own start. It does hand its
`OrtApiBase` to libraries of execution providers, through an object whose first virtual function gives it
(`ProviderHost` in core/providers/shared_library/provider_interfaces.h). That function is never called on trust: its
machine code must be one load of an address and a return, the address must lie in the extension module, and the version
that the interface then gives must be the module's own. Where anything differs, the caller loads the wheel's second
library instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from memoptc.runtime.library_pages import LibraryPages

_SHARED = "libonnxruntime_providers_shared.so"
_LONGEST = 16
"""Bytes of the function that are looked at."""


def loaded_api_base() -> int | None:
    """Give the address of the loaded onnxruntime's `OrtApiBase`; `None` where it cannot be had safely."""
    if sys.platform != "linux" or not hasattr(ort_state, "register_execution_provider_library"):
        return None
    library = str(ort_state.__file__)
    try:
        host = _provider_host(os.path.join(os.path.dirname(library), _SHARED))
        pages = LibraryPages(library)
    except (OSError, AttributeError, ValueError):
        return None
    if not host:
        return None
    table = pages.pointer(host)  # of virtual functions
    code = table and pages.pointer(table)
    if not code or not pages.executable(code, _LONGEST):
        return None
    base = _returned_address(ctypes.string_at(code, _LONGEST), code)
    if base is None:
        return None
    functions = pages.pointer(base), pages.pointer(base + ctypes.sizeof(ctypes.c_void_p))
    if not all(f and pages.executable(f, 1) for f in functions) or functions[1] is None:
        return None
    version = ctypes.CFUNCTYPE(ctypes.c_char_p)(functions[1])()
    return base if version == ort.__version__.encode() else None


def _provider_host(shared: str) -> int | None:
    """Give the object that provider libraries call back into; onnxruntime sets it when it looks for one of them."""
    library = ctypes.CDLL(shared)
    library.Provider_GetHost.restype = ctypes.c_void_p
    found: int | None = library.Provider_GetHost()
    if not found:
        with contextlib.suppress(Exception):  # always: there is no such library, which is the point
            none = os.path.join(os.path.dirname(shared), "memoptc_none")
            ort_state.register_execution_provider_library("memoptc", none)
        found = library.Provider_GetHost()
    return found


def _returned_address(code: bytes, address: int) -> int | None:
    """Give the address that a function returns which does nothing else; `None` for any other function.

    Args:
        code: Its first bytes.
        address: Where they lie.
    """
    machine = os.uname().machine.lower()
    if machine in ("x86_64", "amd64"):
        start = 4 if code.startswith(b"\xf3\x0f\x1e\xfa") else 0  # endbr64
        lea, end = code[start : start + 3], code[start + 7 : start + 8]
        if lea != b"\x48\x8d\x05" or end != b"\xc3":  # lea rax, [rip+x]; ret
            return None
        return address + start + 7 + int.from_bytes(code[start + 3 : start + 7], "little", signed=True)
    if machine in ("aarch64", "arm64"):
        words = [int.from_bytes(code[i : i + 4], "little") for i in range(0, 16, 4)]
        if words[0] in (0xD503245F, 0xD503233F):  # bti c, paciasp
            words = words[1:]
        page, add, back = words[:3]
        # adrp x0, page; add x0, x0, #offset; ret
        if page & 0x9F00001F != 0x90000000 or add & 0xFFC003FF != 0x91000000 or back != 0xD65F03C0:
            return None
        distance = (page >> 29 & 3) | (page >> 5 & 0x7FFFF) << 2
        distance -= (distance & 1 << 20) << 1
        return (address & ~0xFFF) + (distance << 12) + (add >> 10 & 0xFFF)
    return None
