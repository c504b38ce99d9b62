"""Weights that stream: the same bits, no more than the limit held, a share that is read once, and clear refusals."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from native_models import usable
from onnx import TensorProto, helper, numpy_helper

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.session import Session
from memoptc.runtime.streaming import pages
from memoptc.runtime.streaming.streamer import LEAST

LAYERS, WIDTH = 10, 1024
WEIGHT_BYTES = LAYERS * WIDTH * WIDTH * 4


def _tells() -> bool:
    try:
        with open("/proc/self/pagemap", "rb"):
            return sys.platform == "linux"
    except OSError:
        return False


told = pytest.mark.skipif(not _tells(), reason="this system does not tell which pages are touched")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten layers with 4 MB of weights each, in a file of their own; in an order that is not the file's."""
    rng = np.random.default_rng(0)
    order = [*range(1, LAYERS), 0]
    weights = [
        numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / 32).astype(np.float32), f"w{i}")
        for i in range(LAYERS)
    ]
    nodes = [helper.make_node("MatMul", [f"h{n}", f"w{i}"], [f"h{n + 1}"]) for n, i in enumerate(order)]
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, shape)],
        weights,
    )
    path = tmp_path_factory.mktemp("streamed") / "layers.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(made, path, save_as_external_data=True, location="layers.data", size_threshold=1024)
    return path


def feed(batch: int = 1) -> dict[str, Any]:
    """Made-up inputs."""
    return {"h0": np.random.default_rng(batch).standard_normal((batch, WIDTH)).astype(np.float32)}


@told
@pytest.mark.parametrize(
    "tier", ["stock", "arena", pytest.param("planned", marks=pytest.mark.skipif(not usable(), reason="no C interface"))]
)
def test_the_limit_holds_and_a_share_is_read_once(model: Path, tier: Any) -> None:
    limit, runs = WEIGHT_BYTES * 3 // 4, 6
    expected = [Session(model, packing=False, memory="arena", threads=1).run(None, feed(b))[0] for b in (1, 3)]
    with Session(model, memory=tier, threads=1, weights="streamed", weight_limit=limit) as session:
        streamer = session.streamer
        assert streamer is not None
        for run in range(runs):
            (found,) = session.run(None, feed(1 if run < runs - 1 else 3))
            assert found.tobytes() == expected[0 if run < runs - 1 else 1].tobytes()
            streamer.settle()
        traffic = streamer.traffic
        assert traffic.runs == runs
        assert traffic.peak_bytes <= limit
        assert 0 < streamer.pinned_bytes < limit
        # Evicting what was used longest ago reads everything in every run.
        assert WEIGHT_BYTES < traffic.read_bytes < 0.8 * runs * WEIGHT_BYTES


@told
def test_what_fits_is_read_once_and_stays(model: Path) -> None:
    with Session(model, memory="arena", threads=1, weights="streamed", weight_limit=2 * WEIGHT_BYTES) as session:
        assert session.streamer is not None
        for _ in range(4):
            session.run(None, feed())
            session.streamer.settle()
        assert session.streamer.traffic.returned_bytes < WEIGHT_BYTES
        assert session.streamer.traffic.read_bytes < 2 * WEIGHT_BYTES


@told
def test_runs_at_the_same_time_give_the_same_bits(model: Path) -> None:
    expected = Session(model, packing=False, memory="arena", threads=1).run(None, feed())[0]
    found: list[Any] = []
    with Session(model, memory="arena", threads=1, weights="streamed", weight_limit=LEAST) as session:
        threads = [threading.Thread(target=lambda: found.extend(session.run(None, feed()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [f.tobytes() for f in found] == [expected.tobytes()] * 4


@told
def test_the_threads_end_with_the_session(model: Path) -> None:
    def ours() -> int:
        return sum(t.name.startswith("memoptc-weights") for t in threading.enumerate())

    before = ours()
    session = Session(model, memory="arena", weights="streamed", weight_limit=LEAST)
    session.run(None, feed())
    assert ours() > before
    del session
    gc.collect()
    assert ours() == before


@told
def test_what_cannot_stream_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not go with"):
        Session(model, weights="streamed")
    with pytest.raises(InputError, match="does not go with"):
        Session(model, weight_limit=LEAST)
    with pytest.raises(InputError, match="cannot stream in"):
        Session(model, weights="streamed", weight_limit=LEAST - 1)
    with pytest.raises(InputError, match="given as bytes"):
        Session(onnx.load(model).SerializeToString(), weights="streamed", weight_limit=LEAST)
    inside = tmp_path / "inside.onnx"
    onnx.save_model(onnx.load(model), inside)
    with pytest.raises(InputError, match="no mapped weights"):
        Session(inside, weights="streamed", weight_limit=LEAST)


def test_other_systems_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.sys, "platform", "darwin")
    with pytest.raises(InputError, match="on Linux only"):
        Session(model, weights="streamed", weight_limit=LEAST)
