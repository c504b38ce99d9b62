"""Two session options that the C interface has no functions for: the order of execution and buffer reuse.

Python's `SessionOptions` has both (`execution_order`, `enable_mem_reuse`); the C interface has not. They lie
between options that it can set, so their places are found by setting those and looking which bytes change. Nothing is
trusted: a layout that is not exactly as expected is refused, and whether the options took effect is seen from what
a tiny model then allocates (see `honoured`).
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

from memoptc.runtime.native.capi import Pointer, api

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOKED_AT = 128  # bytes at the start of OrtSessionOptions, which is far larger


def _changed(options: Pointer, set_one: Callable[[], None], set_other: Callable[[], None]) -> list[int]:
    set_one()
    before = ctypes.string_at(options, _LOOKED_AT)
    set_other()
    after = ctypes.string_at(options, _LOOKED_AT)
    set_one()
    return [i for i in range(_LOOKED_AT) if before[i] != after[i]]


@functools.cache
def _places() -> tuple[int, int] | None:
    """Offsets of `execution_order` (int32) and `enable_mem_reuse` (bool); `None` when the layout is another."""
    a = api()
    options = a.new("CreateSessionOptions")
    try:
        mode = _changed(
            options,
            lambda: a.SetSessionExecutionMode(options, 0),
            lambda: a.SetSessionExecutionMode(options, 1),
        )
        pattern = _changed(options, lambda: a.EnableMemPattern(options), lambda: a.DisableMemPattern(options))
        arena = _changed(options, lambda: a.EnableCpuMemArena(options), lambda: a.DisableCpuMemArena(options))
        if not len(mode) == len(pattern) == len(arena) == 1:
            return None
        order, reuse = mode[0] + 4, pattern[0] + 1
        raw = ctypes.string_at(options, _LOOKED_AT)
        if mode[0] % 4 or arena[0] != reuse + 1 or raw[order : order + 4] != bytes(4) or raw[reuse] != 1:
            return None
        return order, reuse
    finally:
        a.release["ReleaseSessionOptions"](options)


def set_hidden(options: Pointer, *, file_order: bool, mem_reuse: bool) -> bool:
    """Set both options; give whether the layout was understood."""
    places = _places()
    if places is None:
        return not file_order and mem_reuse
    assert options.value is not None
    ctypes.c_int32.from_address(options.value + places[0]).value = int(file_order)
    ctypes.c_uint8.from_address(options.value + places[1]).value = int(mem_reuse)
    return True
