"""Presents written over pasts of other layers: only where every read comes before, and nothing is lost by a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from decoder_runs import CLOSE
from decoders import Style, decoder
from onnx import TensorProto, helper

import memoptc
from memoptc.ir.decoder import recognise
from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime import Decoder, MemoryLimit

PROMPT = [5, 17, 3, 80, 41, 9, 66]
DEEP = Style(layers=4, tied=False)


def reused(model: onnx.ModelProto) -> dict[str, str]:
    return {c.past: c.reuses for c in recognise(read_onnx(model)).caches}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_each_layer_goes_over_the_one_before() -> None:
    model = decoder(DEEP)
    for made in (model, memoptc.compile(model, measure=False, verify="off").model):
        found = reused(made)
        layers = {n: int(n.split(".")[1]) for n in found}
        assert sum(not before for before in found.values()) == 2  # the first layer's
        assert all(layers[before] == layers[n] - 1 for n, before in found.items() if before)
        assert len({b for b in found.values() if b}) == 6


def parallel(style: Style) -> onnx.ModelProto:
    """All layers' keys and values are computed from what the first layer's are: none waits for another's attention."""
    model = decoder(style)
    shapes = {w.name: tuple(w.dims) for w in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    narrow = [n for n in products if shapes.get(n.input[1]) == (style.hidden, style.kv * style.width)]
    assert len(narrow) == 2 * style.layers
    for node in narrow:
        node.input[0] = narrow[0].input[0]
    return model


def read_late(style: Style) -> onnx.ModelProto:
    """An output of its own reads the first layer's keys, at whatever time."""
    model = decoder(style)
    model.graph.node.append(helper.make_node("ReduceMax", ["past_key_values.0.key"], ["most"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("most", TensorProto.FLOAT, []))
    return model


def test_what_may_be_read_later_is_kept(path: Path) -> None:
    assert set(reused(parallel(DEEP)).values()) == {""}
    assert "past_key_values.0.key" not in reused(read_late(DEEP)).values()
    for model in (parallel(DEEP), read_late(DEEP)):
        onnx.save(model, path)
        with Decoder(path) as run:
            whole = run.prefill(PROMPT)
            run.prefill(PROMPT[:2])
            scores = [run.step(token) for token in PROMPT[2:]][-1]
            assert np.abs(whole - scores).max() <= 4 * CLOSE * np.abs(whole).max()


def test_caches_that_grow_often_stay_the_same(path: Path) -> None:
    onnx.save(decoder(DEEP), path)
    rows = [[*range(50)], [*range(49, -1, -1)]]
    with Decoder(path) as run:
        whole = run.prefill([row * 14 for row in rows])
        tokens = run.sequence()
        tokens.prefill(rows)
        for _ in range(13):
            scores = tokens.extend(rows)
        assert tokens.length == 700
        assert np.abs(whole - scores).max() <= 8 * CLOSE * np.abs(whole).max()


class Failing:
    """Lets a session run, and fail as if it had met its limit, whenever a count of calls is reached."""

    def __init__(self, run: Decoder, monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
        self.left, self.count = set(calls), 0
        genuine = run.session.run_with_iobinding

        def failing(binding: Any) -> None:
            genuine(binding)
            self.count += 1
            if self.count in self.left:
                raise MemoryLimit("too much", None)

        monkeypatch.setattr(run.session, "run_with_iobinding", failing)


def test_a_chunk_that_fails_is_computed_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(decoder(DEEP), path)
    with Decoder(path) as run:
        whole = run.prefill(PROMPT)
    with Decoder(path, chunk=4) as run:
        Failing(run, monkeypatch, 2)
        scores = run.prefill(PROMPT)
        assert run.chunk == 1
        assert np.abs(whole - scores).max() <= 4 * CLOSE * np.abs(whole).max()


def test_a_sequence_whose_step_failed_has_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(decoder(DEEP), path)
    with Decoder(path) as run:
        Failing(run, monkeypatch, 2)
        first = run.prefill(PROMPT)
        with pytest.raises(MemoryLimit):
            run.step(1)
        with pytest.raises(memoptc.InputError, match="no sequence"):
            run.step(1)
        assert np.array_equal(first, run.prefill(PROMPT))
