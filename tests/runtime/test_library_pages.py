"""Pages of onnxruntime's library are given back once a session is made, and never those that are the process's own."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from native_models import network, usable
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from memoptc.runtime import Session
from memoptc.runtime.library_pages import LibraryPages

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="the kernel tells no pages")

PAGES = 4


class Mapped:
    """A file of a few pages, mapped as a loader maps a library's read-only part."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes([7]) * PAGES * mmap.PAGESIZE)
        with path.open("rb") as file:
            self.path, self.memory = path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def protect(self) -> None:
        """Forbid writing from here on."""
        protect = ctypes.CDLL(None).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        assert protect(self.address, len(self.memory), mmap.PROT_READ) == 0

    def resident(self) -> int:
        """Pages that are in this process."""
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            told = os.pread(pagemap.fileno(), 8 * PAGES, self.address // mmap.PAGESIZE * 8)
        return int((np.frombuffer(told, np.uint64) >> np.uint64(63)).sum())


@pytest.fixture
def mapped(tmp_path: Path) -> Mapped:
    return Mapped(tmp_path / "library")


def test_pages_that_the_file_holds_leave_and_come_back(mapped: Mapped) -> None:
    mapped.protect()
    assert bytes(mapped.memory) == mapped.path.read_bytes()
    assert mapped.resident() == PAGES
    LibraryPages(mapped.path).give_back()
    assert mapped.resident() == 0
    assert bytes(mapped.memory) == mapped.path.read_bytes()


def test_a_range_with_a_page_of_the_process_is_left_alone(mapped: Mapped) -> None:
    mapped.memory[mmap.PAGESIZE] = 9  # as a relocation, or a debugger's breakpoint
    mapped.protect()
    changed = bytes(mapped.memory)
    LibraryPages(mapped.path).give_back()
    assert mapped.resident() == PAGES
    assert bytes(mapped.memory) == changed != mapped.path.read_bytes()


def test_a_range_that_may_be_written_to_is_left_alone(mapped: Mapped) -> None:
    assert bytes(mapped.memory) == mapped.path.read_bytes()
    LibraryPages(mapped.path).give_back()
    assert mapped.resident() == PAGES


def code_in_memory() -> int:
    """Resident bytes of the code of onnxruntime's library."""
    found, name = 0, os.path.basename(ort_state.__file__)
    of_library = False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            if "-" in line.split()[0]:
                of_library = line.rstrip().endswith(name) and line.split()[1].startswith("r-x")
            elif of_library and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("tier", ["auto", "stock", "planned"])
def test_a_session_leaves_less_of_the_library_than_onnxruntime_does(tier: str) -> None:
    if tier == "planned" and not usable():
        pytest.skip("onnxruntime's C interface cannot be used here")
    model, feed = network(), {"x": np.ones((3, 64), np.float32)}
    stock = ort.InferenceSession(model)
    want = stock.run(None, feed)[0]
    before = code_in_memory()
    session = Session(model, memory=tier)  # type: ignore[arg-type]
    assert code_in_memory() < before / 2
    np.testing.assert_array_equal(session.run(None, feed)[0], want)
    np.testing.assert_array_equal(stock.run(None, feed)[0], want)
