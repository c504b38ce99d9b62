"""Weights that stream: the same bits, no more than the limit held, a share that is read once, and clear refusals."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import native_models
import numpy as np
import onnx
import pytest
from native_models import usable
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.native import pager, userfault
from memoptc.runtime.pool import Pool
from memoptc.runtime.session import Session

LAYERS, WIDTH = 10, 1024
LEAST = pager.least_limit(1)
WEIGHT_BYTES = (LAYERS * WIDTH + 512) * WIDTH * 4


streams = pytest.mark.skipif(not native_models.streams(), reason="this system lets no program fill its own pages")
TIERS = ["stock", "arena", pytest.param("planned", marks=pytest.mark.skipif(not usable(), reason="no C interface"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten layers with 4 MB of weights each, in a file of their own, in an order that is not the file's.

    One more weight, the first in it, is an output itself.
    """
    rng = np.random.default_rng(0)
    order = [*range(1, LAYERS), 0]
    weights = [
        numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / 32).astype(np.float32), f"w{i}")
        for i in range(LAYERS)
    ]
    weights.insert(0, numpy_helper.from_array(rng.standard_normal((512, WIDTH)).astype(np.float32), "told"))
    nodes = [helper.make_node("MatMul", [f"h{n}", f"w{i}"], [f"h{n + 1}"]) for n, i in enumerate(order)]
    shape = ["batch", WIDTH]
    outputs = [
        helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("told", TensorProto.FLOAT, [512, WIDTH]),
    ]
    inputs = [helper.make_tensor_value_info("h0", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, weights)
    path = tmp_path_factory.mktemp("streamed") / "layers.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(made, path, save_as_external_data=True, location="layers.data", size_threshold=1024)
    return path


def feed(batch: int = 1) -> dict[str, Any]:
    """Made-up inputs."""
    return {"h0": np.random.default_rng(batch).standard_normal((batch, WIDTH)).astype(np.float32)}


def bits(model: Path, batch: int, **options: Any) -> list[bytes]:
    """Outputs of one run."""
    with Session(model, threads=2, **options) as session:
        return [o.tobytes() for o in session.run(None, feed(batch))]


@streams
@pytest.mark.parametrize("tier", TIERS)
def test_the_limit_holds_and_a_share_is_read_once(model: Path, tier: Any) -> None:
    limit, batches = WEIGHT_BYTES * 3 // 4, (1, 1, 1, 1, 3, 40)
    expected = {b: bits(model, b, packing=False, memory="arena") for b in set(batches)}
    with Session(model, memory=tier, threads=2, weights="streamed", weight_limit=limit) as session:
        assert session.traffic is not None
        for batch in batches:
            assert [o.tobytes() for o in session.run(None, feed(batch))] == expected[batch]
        assert session.traffic.peak_bytes <= limit
        # Keeping what was used last reads everything in every run.
        assert WEIGHT_BYTES < session.traffic.bytes < 0.8 * len(batches) * WEIGHT_BYTES
        assert session.traffic.ahead > 0


@streams
def test_links_are_followed_as_caches_of_downloads_have_them(model: Path, tmp_path: Path) -> None:
    for file in model.parent.iterdir():
        (tmp_path / file.name).symlink_to(file)
    linked = tmp_path / model.name
    expected = bits(model, 3, packing=False, memory="arena")
    assert bits(linked, 3, memory="arena", weights="streamed", weight_limit=WEIGHT_BYTES * 3 // 4) == expected


@streams
def test_what_fits_is_read_once_and_stays(model: Path) -> None:
    with Session(model, memory="arena", threads=1, weights="streamed", weight_limit=2 * WEIGHT_BYTES) as session:
        for _ in range(4):
            session.run(None, feed())
        assert session.traffic is not None
        assert session.traffic.bytes <= WEIGHT_BYTES + 2 * LAYERS * userfault.PAGE


@streams
def test_a_window_grows_for_kernels_that_come_back_and_shrinks_for_others(model: Path) -> None:
    def passed(batch: int, runs: int) -> int:
        before = streamed.bytes
        for _ in range(runs):
            session.run(None, feed(batch))
        return streamed.bytes - before

    with Session(model, memory="arena", threads=1, weights="streamed", weight_limit=LEAST + (8 << 20)) as session:
        assert session.traffic is not None
        streamed = session.traffic
        first = passed(200, 1)  # these go through a whole weight for some columns
        again = passed(200, 3) / 3
        assert again <= first
        assert again < 1.6 * WEIGHT_BYTES
        passed(1, 20)
        assert passed(1, 1) < WEIGHT_BYTES


@streams
def test_runs_at_the_same_time_give_the_same_bits(model: Path) -> None:
    expected = bits(model, 1, packing=False, memory="arena")
    found: list[Any] = []
    with Session(model, memory="arena", threads=1, weights="streamed", weight_limit=LEAST) as session:
        threads = [threading.Thread(target=lambda: found.append(session.run(None, feed()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [[o.tobytes() for o in outputs] for outputs in found] == [expected] * 4


@streams
def test_what_cannot_be_read_is_said_and_read_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bits(model, 1, packing=False, memory="arena")
    real, refused = os.preadv, [0]

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        refused[0] += 1
        if refused[0] == 12:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(pager.os, "preadv", preadv)
    with Session(model, memory="arena", threads=1, weights="streamed", weight_limit=LEAST) as session:
        with pytest.raises(InputError, match="cannot be read"):
            session.run(None, feed())
        for _ in range(3):
            assert [o.tobytes() for o in session.run(None, feed())] == expected


@streams
def test_a_file_that_was_cut_is_said(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / model.name
    copy.write_bytes(model.read_bytes())
    data = tmp_path / "layers.data"
    data.write_bytes((model.parent / "layers.data").read_bytes())
    with Session(copy, memory="arena", threads=1, weights="streamed", weight_limit=LEAST) as session:
        session.run(None, feed())
        os.truncate(data, WEIGHT_BYTES // 2)
        with pytest.raises(InputError, match="cannot be read"):
            session.run(None, feed())


@streams
def test_the_threads_and_descriptors_end_with_the_session(model: Path) -> None:
    def ours() -> tuple[int, int]:
        names = [t.name.startswith(("memoptc-pager", "memoptc-read")) for t in threading.enumerate()]
        return sum(names), len(os.listdir("/proc/self/fd"))

    bits(model, 1, memory="arena")
    gc.collect()  # what other tests left
    before = ours()
    session = Session(model, memory="arena", threads=1, weights="streamed", weight_limit=LEAST)
    session.run(None, feed())
    assert ours() > before
    del session
    gc.collect()
    assert ours() == before


@streams
def test_a_session_that_is_left_open_ends_with_its_process(model: Path) -> None:
    program = f"""
import numpy as np
from memoptc.runtime import Session
s = Session({str(model)!r}, threads=1, weights="streamed", weight_limit={LEAST})
print(s.run(None, {{"h0": np.ones((1, {WIDTH}), np.float32)}})[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@streams
def test_what_cannot_stream_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not go with"):
        Session(model, weights="streamed")
    with pytest.raises(InputError, match="does not go with"):
        Session(model, weight_limit=LEAST)
    with pytest.raises(InputError, match="is too small"):
        Session(model, threads=2, weights="streamed", weight_limit=LEAST - 1)
    with pytest.raises(InputError, match="given as bytes"):
        Session(onnx.load(model).SerializeToString(), weights="streamed", weight_limit=LEAST)
    inside = tmp_path / "inside.onnx"
    onnx.save_model(onnx.load(model), inside)
    with pytest.raises(InputError, match="no weights in a file of their own"):
        Session(inside, weights="streamed", weight_limit=LEAST)
    with pytest.raises(InputError, match="for 64 threads"):
        Session(model, threads=64, weights="streamed", weight_limit=4 * LEAST)
    with Pool() as pool, pytest.raises(InputError, match="no option of a pool"):
        pool.open(model, weights="streamed", weight_limit=LEAST)


def test_other_systems_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfault.sys, "platform", "darwin")
    with pytest.raises(InputError, match="on Linux only"):
        Session(model, weights="streamed", weight_limit=LEAST)
