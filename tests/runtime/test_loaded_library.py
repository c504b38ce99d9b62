"""The C interface comes out of the library that Python has loaded, or of the second one, and never on trust."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from native_models import network, usable
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from memoptc.runtime import Session
from memoptc.runtime.library_pages import LibraryPages
from memoptc.runtime.native import capi
from memoptc.runtime.native.loaded import _returned_address, loaded_api_base

X86 = bytes.fromhex("488d05f0ffffffc3") + bytes(8)  # lea rax, [rip-16]; ret
ARM = bytes.fromhex("000000b000400491c0035fd6") + bytes(4)  # adrp x0, +1 page; add x0, x0, #0x110; ret


def machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: type("Uname", (), {"machine": name}))


def test_an_address_is_read_out_of_a_function_that_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "x86_64")
    assert _returned_address(X86, 0x1000) == 0x1000 + 7 - 16
    assert _returned_address(bytes.fromhex("f30f1efa") + X86[:12], 0x1000) == 0x1000 + 4 + 7 - 16
    machine(monkeypatch, "aarch64")
    assert _returned_address(ARM, 0x5678) == 0x6000 + 0x110
    assert _returned_address(bytes.fromhex("5f2403d5") + ARM[:12], 0x5678) == 0x6000 + 0x110


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("x86_64", X86[:7] + b"\x90" * 9),  # no return
        ("x86_64", b"\x55" + X86[:15]),  # a frame: it does more
        ("x86_64", ARM),
        ("aarch64", X86),
        ("aarch64", ARM[:8] + bytes(8)),
        ("riscv64", X86),
    ],
)
def test_any_other_function_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, code: bytes) -> None:
    machine(monkeypatch, name)
    assert _returned_address(code, 0x1000) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="the kernel tells no mappings")
def test_addresses_of_others_are_no_pointers_of_the_library() -> None:

    pages = LibraryPages(Path(ort_state.__file__))
    own = ctypes.create_string_buffer(64)
    assert pages.pointer(ctypes.addressof(own)) is None
    assert not pages.executable(ctypes.addressof(own), 1)


def test_the_second_library_serves_where_the_first_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    if not usable():
        pytest.skip("onnxruntime's C interface cannot be used here")
    assert capi.api().shared == (loaded_api_base() is not None)
    monkeypatch.setattr(capi, "loaded_api_base", lambda: None)
    second = capi.api.__wrapped__()
    assert not second.shared
    assert second.version == ort.__version__


def test_planned_sessions_and_arenas_take_turns_in_one_environment() -> None:
    if not usable():
        pytest.skip("onnxruntime's C interface cannot be used here")
    model, feed = network(), {"x": np.ones((3, 64), np.float32)}
    want = ort.InferenceSession(model).run(None, feed)[0]
    kept: list[Any] = []
    for tier in ("arena", "planned", "arena", "stock", "planned", "planned"):
        kept.append(Session(model, memory=tier))  # type: ignore[arg-type]
        shared = ort.SessionOptions()
        shared.add_session_config_entry("session.use_env_allocators", "1")
        kept.append(ort.InferenceSession(model, shared))
        for session in kept:
            np.testing.assert_array_equal(session.run(None, feed)[0], want)
