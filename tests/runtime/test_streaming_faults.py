"""Weights that stream where things go wrong: nothing waits for ever. Each case runs in a process with a time limit."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import native_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc.runtime.native import pager
from memoptc.runtime.native.file_mappings import mark_all, new_mappings

ROWS, WIDTH = 700, 1001  # 2.8 MB, no whole pages
LEAST = pager.least_limit(1)
SECONDS = 60
FLOAT = TensorProto.FLOAT


pytestmark = pytest.mark.skipif(not native_models.streams(), reason="this system lets no program fill its own pages")


def value(name: str, *shape: Any, kind: int = FLOAT) -> onnx.ValueInfoProto:
    """A typed value."""
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    """Made-up numbers."""
    rng = np.random.default_rng(seed + sum(map(ord, name)))
    return numpy_helper.from_array((rng.standard_normal(shape) / 32).astype(np.float32), name)


def write(folder: Path, graph: onnx.GraphProto, functions: list[onnx.FunctionProto] | None = None) -> Path:
    """Write a model with its weights in another file, subgraphs' and constants' as well."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    path = folder / "m.onnx"
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions or [])
    with open(folder / "m.data", "wb") as data:

        def move(tensor: onnx.TensorProto) -> None:
            raw = tensor.raw_data
            if 0 < len(raw) < 512:
                return
            data.write(b"\0" * 12)  # not at a border of pages
            place = (("location", "m.data"), ("offset", data.tell()), ("length", len(raw)))
            data.write(raw)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in place:
                tensor.external_data.add(key=key, value=str(entry))

        def walk(nodes: Any, initializers: Any = ()) -> None:
            for tensor in initializers:
                move(tensor)
            for node in nodes:
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        move(attribute.t)
                    if attribute.HasField("g"):
                        walk(attribute.g.node, attribute.g.initializer)

        walk(made.graph.node, made.graph.initializer)
        for function in made.functions:
            walk(function.node)
    path.write_bytes(made.SerializeToString())
    return path


def branch(folder: Path) -> Path:
    """A branch gives its own weight as it is, another computes with one."""
    then = helper.make_graph([], "then", [], [value("t", ROWS, WIDTH)], [weight("t", ROWS, WIDTH)])
    add = helper.make_node("Add", ["e1", "x"], ["e"])
    other = helper.make_graph([add], "else", [], [value("e", ROWS, WIDTH)], [weight("e1", ROWS, WIDTH)])
    node = helper.make_node("If", ["which"], ["y"], then_branch=then, else_branch=other)
    return write(
        folder,
        helper.make_graph(
            [node], "g", [value("which", kind=TensorProto.BOOL), value("x", ROWS, WIDTH)], [value("y", ROWS, WIDTH)]
        ),
    )


def loop(folder: Path) -> Path:
    """A loop's body gives its own weight as what it carries on."""
    keep = helper.make_node("Identity", ["go"], ["on"])
    body = helper.make_graph(
        [keep, helper.make_node("Add", ["state", "u"], ["s"])],
        "body",
        [value("i", kind=TensorProto.INT64), value("go", kind=TensorProto.BOOL), value("state", ROWS, WIDTH)],
        [value("on", kind=TensorProto.BOOL), value("w", ROWS, WIDTH), value("s", ROWS, WIDTH)],
        [weight("w", ROWS, WIDTH), weight("u", ROWS, WIDTH)],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["y", "all"], body=body)
    inputs = [value("n", kind=TensorProto.INT64), value("x", ROWS, WIDTH)]
    return write(
        folder, helper.make_graph([node], "g", inputs, [value("y", ROWS, WIDTH), value("all", None, ROWS, WIDTH)])
    )


def output(folder: Path) -> Path:
    """A weight is an output, and so is that of a branch whose condition is known."""
    then, other = (helper.make_graph([], n, [], [value(n, ROWS, WIDTH)], [weight(n, ROWS, WIDTH)]) for n in ("t", "e"))
    nodes = [
        helper.make_node("If", ["yes"], ["taken"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.array(True), "yes"), *(weight(n, ROWS, WIDTH) for n in ("w", "given"))]
    outputs = [value(n, ROWS, WIDTH) for n in ("given", "taken", "y")]
    return write(folder, helper.make_graph(nodes, "g", [value("x", ROWS, WIDTH)], outputs, weights))


def function(folder: Path) -> Path:
    """A function gives a constant as it is, and uses another twice."""
    constants = [
        helper.make_node("Constant", [], [name], value=weight(name, ROWS, WIDTH)) for name in ("given", "used")
    ]
    nodes = [*constants, helper.make_node("Add", ["a", "used"], ["b"]), helper.make_node("Mul", ["b", "used"], ["c"])]
    made = helper.make_function("own", "F", ["a"], ["c", "given"], nodes, [helper.make_opsetid("", 18)])
    node = helper.make_node("F", ["x"], ["y", "z"], domain="own")
    outputs = [value("y", ROWS, WIDTH), value("z", ROWS, WIDTH)]
    return write(folder, helper.make_graph([node], "g", [value("x", ROWS, WIDTH)], outputs), [made])


def odd(folder: Path) -> Path:
    """Weights that are small, empty, folded while loading, used several times, and in no order."""
    names = ["a", "b", "c"]
    nodes = [
        helper.make_node("Add", ["c", "folded"], ["cc"]),
        helper.make_node("Add", ["x", "b"], ["h1"]),
        helper.make_node("Mul", ["h1", "a"], ["h2"]),
        helper.make_node("Add", ["h2", "small"], ["h3"]),
        helper.make_node("Add", ["h3", "a"], ["h4"]),
        helper.make_node("Sub", ["h4", "cc"], ["h5"]),
        helper.make_node("Concat", ["h5", "none"], ["y"], axis=0),
    ]
    weights = [weight(n, ROWS, WIDTH) for n in (*names, "folded")] + [weight("small", 1, WIDTH)]
    weights.append(numpy_helper.from_array(np.zeros((0, WIDTH), np.float32), "none"))
    return write(folder, helper.make_graph(nodes, "g", [value("x", ROWS, WIDTH)], [value("y", None, WIDTH)], weights))


PRELUDE = f"""
import gc, os, sys, threading, ctypes
import numpy as np
from memoptc.ir.diagnostics import InputError
from memoptc.runtime import Session
path, tier = sys.argv[1:3]
X = np.random.default_rng(0).standard_normal(({ROWS}, {WIDTH})).astype(np.float32)
ALL = {{"x": X, "which": np.array(True), "n": np.array(3)}}
def opened(limit={LEAST}, **more):
    return Session(path, memory=tier, threads=1, weights="streamed", weight_limit=limit, **more)
def feed(session):
    return {{i.name: ALL[i.name] for i in session.get_inputs()}}
def bits(session, feed):
    return [o.tobytes() for o in session.run(None, feed)]
def expected():
    with Session(path, memory="arena", threads=1, packing=False) as plain:
        return bits(plain, feed(plain))
"""


def run(program: str, path: Path, tier: str = "arena") -> str:
    """Run a program within the time; give what it printed."""
    command = [sys.executable, "-c", PRELUDE + program, str(path), tier]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    return done.stdout


@pytest.mark.parametrize("tier", ["stock", "arena", "planned"])
@pytest.mark.parametrize("make", [branch, loop, output, function, odd])
def test_weights_anywhere_in_a_model_give_the_same_bits(make: Any, tier: str, tmp_path: Path) -> None:
    program = """
want = expected()
with opened() as session:
    for _ in range(3):
        assert bits(session, feed(session)) == want
    if "which" in feed(session):
        ALL["which"] = np.array(False)
        want = expected()
        for _ in range(2):
            assert bits(session, feed(session)) == want
    assert session.traffic.peak_bytes <= session._pager.limit
"""
    run(program, make(tmp_path), tier)


def test_a_pager_whose_thread_ends_leaves_the_files_mapped(tmp_path: Path) -> None:
    program = """
import warnings
want = expected()
with opened() as session:
    assert bits(session, feed(session)) == want
    def fails(*_):
        raise ZeroDivisionError("a fault of ours")
    session._pager._serve_one = session._pager._give_up = fails
    assert bits(session, feed(session)) == want
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert bits(session, feed(session)) == want
    assert ["stream no longer" in str(w.message) for w in said] == [True]
"""
    run(program, odd(tmp_path))


@pytest.mark.parametrize("cut", [0, 1_000_000, 4_000_000])
def test_a_file_that_is_cut_between_runs_is_said(cut: int, tmp_path: Path) -> None:
    program = f"""
session = opened()
session.run(None, feed(session))
os.truncate(path.replace(".onnx", ".data"), {cut})
for _ in range(2):
    try:
        session.run(None, feed(session))
        print("went on")
    except InputError as error:
        print(error.message)
"""
    assert run(program, odd(tmp_path)).count("cannot be read") == 2


def test_callbacks_are_told_of_what_cannot_be_read(tmp_path: Path) -> None:
    program = """
session, over, told = opened(), threading.Event(), []
def callback(outputs, data, error):
    told.append((len(outputs), data, error))
    over.set()
def once():
    over.clear()
    session.run_async(None, feed(session), callback, "mine")
    assert over.wait(30)
try:
    once()
    os.truncate(path.replace(".onnx", ".data"), 1_000_000)
    once()
    print(told)
except InputError as error:  # one thread only
    print([(1, "mine", ""), (0, "mine", "cannot be read")] if "async" in str(error).lower() else error)
"""
    program = program.replace("opened()", "opened(22 << 20)").replace("threads=1", "threads=2")
    ((first, _, none), (second, data, error)) = eval(run(program, odd(tmp_path)))
    assert (first, none, second, data) == (1, "", 0, "mine")
    assert "cannot be read" in error


def test_a_fork_is_refused_and_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    program = """
want = expected()
session = opened()
child = os.fork()
if child == 0:
    try:
        session.run(None, feed(session))
    except InputError as error:
        print(error.message, flush=True)
    session.close()
    del session
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for _ in range(3):
    assert bits(session, feed(session)) == want
sleeping = os.fork()  # holds a copy of the descriptors
if sleeping == 0:
    os.read(os.pipe()[0], 1)
thread = threading.Thread(target=lambda: bits(session, feed(session)))
thread.start()
thread.join()
session.close()
os.kill(sleeping, 9)
"""
    assert "forked process" in run(program, odd(tmp_path))


def test_a_process_that_ends_while_threads_run_ends(tmp_path: Path) -> None:
    program = """
want = expected()
session = opened()
def often():
    for _ in range(30):
        assert bits(session, feed(session)) == want
    print("done")
threading.Thread(target=often).start()
threading.Thread(target=often, daemon=True).start()
session.run(None, feed(session))
"""
    assert "done" in run(program, odd(tmp_path))


def test_a_process_that_locks_its_memory_reads_weights_not_zeros(tmp_path: Path) -> None:
    program = """
want = expected()
ctypes.CDLL(None).mlockall(2)  # what is mapped from now on
with opened() as session:
    for _ in range(2):
        assert bits(session, feed(session)) == want
"""
    run(program, odd(tmp_path))


def test_sessions_that_are_opened_at_the_same_time_keep_to_their_own(tmp_path: Path) -> None:
    program = """
want, found = expected(), []
def one():
    for _ in range(4):
        with opened() as session:
            found.append(bits(session, feed(session)) == want)
threads = [threading.Thread(target=one) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == [True] * 12
"""
    run(program, odd(tmp_path))


@pytest.mark.parametrize("others", [2, 99])
def test_a_plain_session_that_is_loaded_meanwhile_keeps_its_weights(others: int, tmp_path: Path) -> None:
    """One that maps the same files, behind our back, after ours has begun to load."""
    program = f"""
import onnxruntime
from memoptc.runtime.native import file_mappings
want, plain, marked = expected(), [], file_mappings.mark_all
def then_another(files):
    marked(files)
    if len(plain) < {others}:
        plain.append(onnxruntime.InferenceSession(path))
file_mappings.mark_all = then_another
try:
    with opened() as session:
        assert bits(session, feed(session)) == want
        assert [bits(p, feed(p)) for p in plain] == [want] * {others}
        assert session.traffic.bytes
except InputError as error:
    assert {others} > 5 and "at the same time" in str(error), error
assert all(bits(p, feed(p)) == want for p in plain)
"""
    run(program, odd(tmp_path))


def test_a_mapping_is_new_until_it_is_marked(tmp_path: Path) -> None:
    page, files = mmap.PAGESIZE, [str(tmp_path / "file")]
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(4 * page)
        first = mmap.mmap(file.fileno(), 2 * page, access=mmap.ACCESS_COPY)
        assert [(m.offset, m.end - m.start) for m in new_mappings(files)] == [(0, 2 * page)]
        mark_all(files)
        assert not new_mappings(files)
        second = mmap.mmap(file.fileno(), 2 * page, access=mmap.ACCESS_COPY, offset=2 * page)
        assert [(m.offset, m.end - m.start) for m in new_mappings(files)] == [(2 * page, 2 * page)]
        second.close()
        first.close()
