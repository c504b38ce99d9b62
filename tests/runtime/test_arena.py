"""The arena interpreter: plans that hold give onnxruntime's bits, plans that do not are caught by name."""

from __future__ import annotations

from typing import Any

import graphs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo import ZOO, each_model

from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.runtime.arena import ArenaFault, arena_problem, run_in_arena
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.options import RunOptions


def stock(model: Any, feed: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime gives with its optimizer off."""
    return Evaluator(model, RunOptions(optimize=False)).run(feed)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether outputs agree bit for bit."""
    return {n: np.asarray(v).tobytes() for n, v in a.items()} == {n: np.asarray(v).tobytes() for n, v in b.items()}


@given(st.integers(0, 2**32 - 1))
def test_every_plan_of_a_random_graph_holds(seed: int) -> None:
    g = graphs.random_graph(seed, 10)
    feed = graphs.feeds(g)
    try:
        expected = stock(to_proto(g), feed)
    except InputError:
        return  # a branch that onnxruntime itself cannot run on these inputs
    found, report = run_in_arena(g, feed)
    assert same(found, expected)
    assert report.arena_bytes >= report.floor_bytes


TEXT = """graph @g(%x: f32[256]) -> (f32[256]) {
  %a = Exp(%x) : f32[256]
  %b = Sin(%a) : f32[256]
  %c = Cos(%a) : f32[256]
  %y = Mul(%b, %c) : f32[256]
  return %y
}
"""


def test_a_plan_whose_buffers_overlap_is_caught() -> None:
    g = parse(TEXT)
    feed = {"x": np.linspace(-1, 1, 256, dtype=np.float32)}
    _, problem = arena_problem(g, feed)
    good = allocate(problem)
    assert same(run_in_arena(g, feed, plan=good)[0], stock(to_proto(g), feed))
    shifted = tuple(64 * i for i in range(len(good.offsets)))
    with pytest.raises(ArenaFault, match=r"'a', which another buffer has overwritten|guard zone behind 'a'"):
        run_in_arena(g, feed, plan=Plan(problem, shifted, "wrong"))


def test_a_live_range_that_is_too_short_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The liveness itself is on trial: a buffer freed one step early is poisoned before its last use."""
    from memoptc.runtime import arena

    g = parse(TEXT)
    feed = {"x": np.linspace(-1, 1, 256, dtype=np.float32)}
    true_liveness = arena.liveness

    def too_short(*arguments: Any, **options: Any) -> Any:
        found = true_liveness(*arguments, **options)
        found.storages[0].last -= 1
        return found

    monkeypatch.setattr(arena, "liveness", too_short)
    with pytest.raises(ArenaFault, match=r"Cos c uses 'a', whose bytes were freed"):
        run_in_arena(g, feed)


def test_what_is_missing_or_of_another_size_is_said() -> None:
    g = parse(TEXT)
    with pytest.raises(InputError, match="no value for the input 'x'"):
        run_in_arena(g, {})
    with pytest.raises(InputError, match="another graph"):
        run_in_arena(g, {"x": np.ones(256, np.float32)}, plan=allocate(arena_problem(g, {})[1].__class__(())))


@each_model(skip=("edsr_x4", "fns_candy", "long_attention_4k", "mobilenet_v2_1024"))
def test_real_models_run_in_their_arena(name: str) -> None:
    """Bit for bit; four large ones are left to the nightly form."""
    _check(name)


@pytest.mark.nightly
@each_model()
def test_all_real_models_run_in_their_arena(name: str) -> None:
    _check(name)


def _check(name: str) -> None:
    assert ZOO is not None
    g = read_onnx(ZOO.path(name))
    infer_shapes(g)
    feed = ZOO.inputs(name)
    found, report = run_in_arena(g, feed)
    assert same(found, stock(str(ZOO.path(name)), feed))
    assert report.steps > 0
