"""split-outliers: the same sums, with the channels of extreme range beside; the search takes it where it helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numbers_of import Feed, run

from memoptc.ir.core import Graph
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.verifier import verify
from memoptc.pass_base import Context
from memoptc.passes.precision.quantize_search import QuantizeSearch
from memoptc.passes.precision.split_outliers import SUFFIX, SplitOutliers
from memoptc.runtime.data import Data
from memoptc.testing import run_pass

RNG = np.random.default_rng(0)
WIDTH = 48


def listed(*shape: int) -> str:
    array = RNG.standard_normal(shape).astype(np.float32)
    values = ",".join(repr(float(v)) for v in array.reshape(-1))
    return f"const() {{value=[{values}]}} : f32[{','.join(map(str, shape))}]"


def graph() -> Graph:
    """Three readers of one tensor: a MatMul, a Gemm with turned weights and a bias, and one that is no product."""
    text = f"""graph @g(%x: f32[N,{WIDTH}]) -> (f32[*], f32[*], f32[*]) {{
  %w = {listed(WIDTH, 24)}
  %v = {listed(20, WIDTH)}
  %c = {listed(20)}
  %t = Tanh(%x)
  %s = Add(%x, %t)
  %y = MatMul(%s, %w)
  %z = Gemm(%s, %v, %c) {{transB=1, beta=0.5}}
  %r = Sigmoid(%s)
  return %y, %z, %r
}}"""
    found = parse(text)
    infer_shapes(found)
    return found


def feeds(count: int, outliers: tuple[int, ...], seed: int) -> list[Feed]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        x = rng.standard_normal((16, WIDTH)).astype(np.float32)
        x[:, list(outliers)] *= 60
        found.append({"x": x})
    return found


def context_for(found: Graph, data: list[Feed], folder: Path) -> Context:
    return Context(calibration=Data(data, {v.name: v.type for v in found.inputs}), scratch=folder)


@pytest.mark.parametrize("outliers", [(5,), (0, 47), (7, 8, 30)])
def test_sums_stay_and_channels_leave(outliers: tuple[int, ...], tmp_path: Path) -> None:
    found = graph()
    before = found.clone()
    context = context_for(found, feeds(6, outliers, 1), tmp_path)
    stats = run_pass(SplitOutliers(), found, context)
    verify(found)
    assert stats["moved outliers"] == 2
    beside = [op for op in found.ops if op.name.endswith(SUFFIX)]
    assert [op.operands[1].tensor.shape.numpy()[0] for op in beside if op.operands[1].tensor] == [len(outliers)] * 2
    places = beside[0].operand.op.operands[1].tensor if beside[0].operand.op else None
    assert places is not None
    assert tuple(places.numpy()) == outliers
    for feed in feeds(2, outliers, 2):
        expected, got = run(before, feed), run(found, feed)
        assert expected is not None
        assert got is not None
        for name, value in expected.items():
            assert np.allclose(value, got[name], atol=1e-4 * np.abs(value).max())
    (line,) = context.decisions
    assert line.what == f"{len(outliers)} channels before 2 products are computed in float32 beside them"


@pytest.mark.parametrize("outliers", [(), tuple(range(4))])
def test_without_few_outliers_nothing_changes(outliers: tuple[int, ...], tmp_path: Path) -> None:
    found = graph()
    stats = run_pass(SplitOutliers(), found, context_for(found, feeds(6, outliers, 1), tmp_path))
    assert stats["left: no outliers"] == 1
    assert not any(op.op_type == "Gather" for op in found.ops)


def test_once_is_enough(tmp_path: Path) -> None:
    found = graph()
    context = context_for(found, feeds(6, (5,), 1), tmp_path)
    run_pass(SplitOutliers(), found, context)
    stats = run_pass(SplitOutliers(), found, context)
    assert stats["moved outliers"] == 0


def test_the_search_splits_where_factors_do_not_help(tmp_path: Path) -> None:
    """Factors would make the weights of the outliers' rows as uneven as the channels are."""
    found = graph()
    plain = found.clone()
    context, other = (context_for(found, feeds(8, (5, 9), 1), tmp_path) for _ in range(2))
    run_pass(QuantizeSearch(min_sqnr=None, weights="int8"), found, context)
    run_pass(QuantizeSearch(min_sqnr=None, weights="int8", recover=False), plain, other)
    assert any(d.step == "split-outliers" for d in context.decisions)
    kept = [op.operands[1].tensor for op in found.ops if op.name.endswith(SUFFIX)]
    assert len(kept) == 2
    assert all(t is not None and t.numpy().dtype == np.float32 for t in kept)
    reached, without = (c.artefacts.precision.reached["sqnr_db"] for c in (context, other))
    assert reached > without + 6
