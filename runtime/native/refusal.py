"""Refusing an allocation so that onnxruntime's run ends with an error, and the process goes on.

onnxruntime does not survive a null pointer from an allocator; its own ones throw. Python cannot throw a C++ exception,
nor may one pass through frames of Python. So a few instructions stand between onnxruntime and the Python function:
where that gives null for bytes that were asked for, they jump to the `Alloc` of onnxruntime's own allocator with a size
that nothing has. It throws as if onnxruntime had called it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from typing import Any

from memoptc.runtime.native.capi import Alloc, Pointer

_CODE = bytes.fromhex(
    "56"  # push rsi                          the size; aligns the stack, too
    "488b0528000000"  # mov rax, [python]
    "ffd0"  # call rax
    "5e"  # pop rsi
    "4885c0"  # test rax, rax
    "7505"  # jnz done
    "4885f6"  # test rsi, rsi               null is right for no bytes
    "7501"  # jnz refuse
    "c3"  # done: ret
    "488b3d1b000000"  # refuse: mov rdi, [heap]
    "48be0000000000000040"  # mov rsi, 2**62
    "ff2513000000"  # jmp [heap_alloc]
    "909090"
)
"""For x86-64 as System V calls it; the three addresses follow."""


def _can_run_it() -> bool:
    return sys.platform == "linux" and os.uname().machine == "x86_64" and ctypes.sizeof(ctypes.c_void_p) == 8


class RefusingAlloc:
    """An `Alloc` that calls a Python function, and throws where that gives null.

    Args:
        heap: onnxruntime's own allocator.
        heap_alloc: Its `Alloc`.

    Raises:
        OSError: it cannot be had on this machine.
    """

    def __init__(self, heap: Pointer, heap_alloc: Any) -> None:
        if not _can_run_it():
            raise OSError("no instructions for this machine")
        # of this process alone: what a forked one calls is another function, at another address
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, flags=private, prot=rights)
        throws = ctypes.cast(heap_alloc, ctypes.c_void_p).value
        self._memory[: len(_CODE) + 24] = _CODE + struct.pack("<QQQ", 0, heap.value or 0, throws or 0)
        self._python: Any = None
        self.function = Alloc(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)))

    def call(self, python: Any) -> None:
        """Call this function from now on, an `Alloc`."""
        self._python = python  # kept as long as it may be called
        address = ctypes.cast(python, ctypes.c_void_p).value
        self._memory[len(_CODE) : len(_CODE) + 8] = struct.pack("<Q", address or 0)
