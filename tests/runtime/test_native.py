"""onnxruntime through its C interface: what is recorded, what is replayed, what is passed in and out."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from native_models import model, usable
from onnx import TensorProto, helper

from memoptc.ir.diagnostics import InputError
from memoptc.ir.types import DType
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.native import allocator
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.native.trace import HUGE, RELEASED, Block, Script, Trace
from memoptc.runtime.options import RunOptions
from memoptc.runtime.profile import AS_PLANNED

KB = 1024


pytestmark = pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")


def chain(*ops: str) -> bytes:
    """Unary operators one after the other over 256 floats."""
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(ops)]
    return model(nodes, {"x": (TensorProto.FLOAT, [256])}, {"y": (TensorProto.FLOAT, [256])})


X = {"x": np.linspace(-1, 1, 256, dtype=np.float32)}


def test_every_allocation_of_a_run_is_recorded() -> None:
    session = NativeSession(chain("Exp", "Sin", "Cos"), AS_PLANNED)
    outputs, trace = session.record(X)
    assert trace.events == (KB, KB, -1, KB, -2)
    assert trace.outputs == {"y": 2}
    assert trace.peak_bytes == 2 * KB
    assert np.allclose(outputs["y"], np.cos(np.sin(np.exp(X["x"]))), atol=1e-6)


def test_the_same_run_allocates_the_same() -> None:
    session = NativeSession(chain("Exp", "Sin", "Cos", "Relu"), RunOptions(mem_pattern=False))
    assert session.record(X)[1] == session.record(X)[1]


def test_order_and_reuse_take_effect() -> None:
    """Two branches of different sizes: the file runs the small one first, onnxruntime's default order the other."""
    small, large = np.ones(8, np.float32), np.ones(64, np.float32)
    nodes = [
        helper.make_node("Exp", ["a"], ["a1"]), helper.make_node("Exp", ["b"], ["b1"]),
        helper.make_node("ReduceSum", ["a1"], ["a2"]), helper.make_node("ReduceSum", ["b1"], ["b2"]),
        helper.make_node("Add", ["a2", "b2"], ["y"]),
    ]  # fmt: skip
    ports = {"a": (TensorProto.FLOAT, [8]), "b": (TensorProto.FLOAT, [64])}
    data = model(nodes, ports, {"y": (TensorProto.FLOAT, [1])})
    feed = {"a": small, "b": large}
    _, ours = NativeSession(data, AS_PLANNED).record(feed)
    _, theirs = NativeSession(data, replace(AS_PLANNED, file_order=False)).record(feed)
    assert ours.events[:2] == (32, 256)
    assert theirs.events[0] == 256
    # Of equal shapes, static reuse keeps the first buffer for the third result; without it there are three buffers.
    reused = NativeSession(chain("Exp", "Sin", "Cos", "Exp"), replace(AS_PLANNED, mem_reuse=True)).record(X)[1]
    apart = NativeSession(chain("Exp", "Sin", "Cos", "Exp"), AS_PLANNED).record(X)[1]
    assert (len(reused.sizes), len(apart.sizes)) == (3, 4)


def test_weights_in_the_kernels_own_layout_are_counted_apart() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.ones((64, 96), np.float32)}
    data = model(nodes, {"x": (TensorProto.FLOAT, [4, 64])}, {"y": (TensorProto.FLOAT, [4, 96])}, weights)
    session = NativeSession(data, AS_PLANNED)
    _, trace = session.record({"x": np.ones((4, 64), np.float32)})
    assert session.loaded_bytes == 64 * 96 * 4
    assert trace.events == (4 * 96 * 4,)


def replayed(data: bytes, feed: dict[str, Any]) -> tuple[list[Any], list[Any], str]:
    """What a run gives on the heap, and poisoned at planned places."""
    session = NativeSession(data, AS_PLANNED)
    expected, trace = session.record(feed)
    plan = allocate(trace.problem())
    script = Script(trace, plan.offsets, Block(plan.arena_bytes), poison=True)
    found, left = session.replay(script, feed)
    return list(expected.values()), list(found.values()), left


def test_a_run_at_planned_places_gives_the_same_bits() -> None:
    expected, found, left = replayed(chain("Exp", "Sin", "Cos", "Relu", "Neg"), X)
    assert left == ""
    assert expected[0].tobytes() == found[0].tobytes()


def test_a_buffer_that_overlaps_a_living_one_is_noticed_in_the_numbers() -> None:
    """The check can fail: two buffers at one place, poisoned, give other numbers."""
    session = NativeSession(chain("Exp", "Sin", "Cos"), AS_PLANNED)
    expected, trace = session.record(X)
    script = Script(trace, [0] * len(trace.sizes), Block(4 * KB), poison=True)
    found, left = session.replay(script, X)
    assert left == ""
    assert not np.array_equal(expected["y"], found["y"])


def test_a_run_that_asks_for_something_else_is_served_by_the_heap() -> None:
    data = model(
        [helper.make_node("Exp", ["x"], ["t"]), helper.make_node("Sin", ["t"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n"])}, {"y": (TensorProto.FLOAT, ["n"])},
    )  # fmt: skip
    session = NativeSession(data, AS_PLANNED)
    _, trace = session.record({"x": np.ones(256, np.float32)})
    plan = allocate(trace.problem())
    longer = {"x": np.linspace(0, 1, 300, dtype=np.float32)}
    found, left = session.replay(Script(trace, plan.offsets, Block(plan.arena_bytes)), longer)
    assert left == "event 1 of 3 is an allocation of 1024 bytes, but 1200 bytes were asked for"
    assert np.allclose(found["y"], np.sin(np.exp(longer["x"])), atol=1e-6)


def test_outputs_can_be_written_to_given_arrays() -> None:
    session = NativeSession(chain("Exp"), AS_PLANNED)
    target = np.empty(256, np.float32)
    found = session.run(X, {"y": target})
    assert found["y"] is target
    assert np.allclose(target, np.exp(X["x"]), atol=1e-6)


DTYPES = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.uint16, np.int32,
    np.uint32, np.int64, np.uint64, np.bool_, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)], ids=str)
def test_every_element_type_passes(dtype: type, shape: tuple[int, ...]) -> None:
    kind = int(DType.from_numpy(np.dtype(dtype)))
    node = [helper.make_node("Identity", ["x"], ["y"])]
    data = model(node, {"x": (kind, list(shape))}, {"y": (kind, list(shape))}, opset=19)
    try:
        session = NativeSession(data, AS_PLANNED)
    except InputError as error:
        pytest.skip(f"this onnxruntime has no such kernel: {error.message}")
    given = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = session.run({"x": given})["y"]
    assert found.dtype == given.dtype
    assert found.shape == shape
    assert found.tobytes() == given.tobytes()


def test_texts_pass() -> None:
    node = [helper.make_node("Identity", ["x"], ["y"])]
    kind = TensorProto.STRING
    session = NativeSession(model(node, {"x": (kind, [2, 2])}, {"y": (kind, [2, 2])}), AS_PLANNED)
    given = np.array([["", "ab"], ["größer", "c d"]], object)
    outputs, trace = session.record({"x": given})
    assert outputs["y"].tolist() == given.tolist()
    assert len(trace.events) == 1
    with pytest.raises(InputError, match="a NUL in it"):
        session.record({"x": np.array([["a\0b", ""], ["", ""]], object)})


def test_ports_say_what_the_model_says() -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)
    data = model([node], {"x": (TensorProto.FLOAT, ["n", 3])}, {"y": (TensorProto.INT64, ["n", 3])})
    session = NativeSession(data)
    assert [(p.name, p.type, p.shape) for p in session.input_ports] == [("x", "tensor(float)", ["n", 3])]
    assert [(p.name, p.type, p.shape) for p in session.output_ports] == [("y", "tensor(int64)", ["n", 3])]


def test_what_cannot_be_passed_or_run_is_refused() -> None:
    session = NativeSession(chain("Exp"), AS_PLANNED)
    with pytest.raises(InputError, match="no input 'z'"):
        session.run({"z": X["x"]})
    with pytest.raises(InputError, match="no tensor"):
        session.run({"x": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="cannot run the model"):
        session.run({"x": np.ones(3, np.float32)})
    with pytest.raises(InputError, match="cannot load the model"):
        NativeSession(b"nothing")
    assert session.run(X)["y"].shape == (256,)


def test_a_trace_without_some_allocations() -> None:
    trace = Trace((10, 20, -1, 30, -2), {"y": 2})
    assert trace.without(frozenset({0})) == Trace((20, 30, -1), {"y": 1})
    assert trace.without(frozenset({2})) == Trace((10, 20, -1, -2), {})
    assert [(b.size, b.first, b.last) for b in trace.problem().buffers] == [(64, 0, 1), (64, 1, 3), (64, 3, 4)]


def test_an_output_takes_the_place_of_pages_that_the_run_is_done_with() -> None:
    """A block of 6 MB, of which 3 are dead when the output of 1 MB is made; what still is read stays."""
    rows, rng = 512, np.random.default_rng(0)
    weights = {"w": rng.standard_normal((rows, rows), np.float32), "from": np.array([7]), "to": np.array([7 + rows])}
    nodes = [
        helper.make_node("Concat", ["x", "x", "x"], ["three"], axis=0),
        helper.make_node("MatMul", ["three", "w"], ["product"]),
        helper.make_node("Slice", ["product", "from", "to"], ["y"]),
    ]
    shape = [rows, rows]
    data = model(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, weights)
    feed = {"x": rng.standard_normal(shape, np.float32)}
    session = NativeSession(data, AS_PLANNED)
    expected, trace = session.record(feed)
    apart = frozenset(trace.outputs.values())
    plan = allocate(trace.without(apart).problem())
    script = Script(trace, plan.offsets, Block(plan.arena_bytes), handed_out=apart, poison=True)
    (ranges,) = script.done.values()
    assert sum(end - start for start, end in ranges) == expected["y"].nbytes == RELEASED
    for _ in range(3):
        found, left = session.replay(script, feed)
        assert left == ""
        assert found["y"].tobytes() == expected["y"].tobytes()


def test_pages_that_later_allocations_use_stay() -> None:
    size = 4 * RELEASED
    block = Block(3 * size)
    # The output is made while 1 is alive; 2 comes after it, in the first half of the place of 0.
    trace = Trace((size, size, -1, RELEASED, -2, size // 2, -4), {"y": 2})
    script = Script(trace, [0, size, 0], block, handed_out=frozenset({2}))
    (ranges,) = script.done.values()
    assert sum(end - start for start, end in ranges) == RELEASED
    free = [(block.base + size // 2, block.base + size), (block.base + 2 * size, block.base + 3 * size)]
    assert all(any(low <= start and end <= high for low, high in free) for start, end in ranges)
    small = Trace((size, -1, RELEASED - 1), {"y": 1})
    assert Script(small, [0], block, handed_out=frozenset({1})).done == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_sessions_that_come_and_go_leave_no_allocators_behind() -> None:
    text = model(
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n"])},
        {"y": (TensorProto.FLOAT, ["n"])},
    )

    def one() -> tuple[float, int]:
        session = NativeSession(text)
        session.run({"x": np.ones(1000, np.float32)})
        told = float(session.run({"x": np.ones(9, np.float32)})["y"].sum()), session.allocator.live_bytes
        session.close()
        return told

    assert one() == (9.0, 0)
    kept = len(allocator._immortal)
    assert {one() for _ in range(8)} == {(9.0, 0)}
    for _ in range(3):
        with pytest.raises(InputError):
            NativeSession(b"no model")
    assert len(allocator._immortal) == kept
    with_two = NativeSession(text), NativeSession(text)
    assert with_two[0].allocator is not with_two[1].allocator


def test_a_forked_process_changes_no_allocator_of_this_one() -> None:
    """The few instructions that may refuse an allocation hold an address: that of a child is not its parent's."""
    script = """
import os
from native_models import network
from memoptc.runtime import Session
from memoptc.runtime.native.capi import Alloc
allocator = Session(network(), memory="planned", threads=1)._planned._session.allocator
if allocator.can_refuse:
    before = bytes(allocator._refusing._memory)
    child = os.fork()
    if child == 0:
        allocator._use(Alloc(lambda *_: 1), allocator.struct.Free)
        os._exit(before == bytes(allocator._refusing._memory))
    assert os.waitpid(child, 0)[1] == 0
    assert before == bytes(allocator._refusing._memory)
print("held")
"""
    folder = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": folder}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "held", done.stderr[-2000:]


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no large pages here")
def test_large_blocks_ask_for_large_pages() -> None:
    blocks = [Block(HUGE), Block(HUGE // 2)]
    asked = []
    for block in blocks:
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(end, 16) for end in first.split("-"))
                inside = low <= block.base + 4096 < high
            elif inside and first == "VmFlags:":
                asked.append("hg" in line.split())
    assert asked == [True, False]
