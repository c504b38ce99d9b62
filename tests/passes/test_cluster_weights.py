"""cluster-weights and its codebooks: exact for few numbers, near the best otherwise, gated, undone by loading."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbers_of import Feed, feed_of, run

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.verifier import verify
from memoptc.manager import weight_bytes
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.codebook import codebook, nearest
from memoptc.passes.shrink._shrink.accuracy_search import Level, furthest, steps
from memoptc.passes.shrink.cluster_weights import ClusterWeights
from memoptc.runtime.data import Data
from memoptc.testing import run_pass

RNG = np.random.default_rng(0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.sampled_from([1, 5, 300, 5000]), st.booleans())
def test_tables_are_never_worse_than_even_steps(seed: int, bits: int, count: int, heavy: bool) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.standard_t(3, count) if heavy else rng.standard_normal(count)).astype(np.float32)
    book = codebook(weights, 2**bits)
    indices = nearest(weights, book)
    assert 1 <= len(book) <= 2**bits
    assert (np.diff(book) > 0).all()
    error = np.square(weights - book[indices], dtype=np.float64).sum()
    best = np.abs(weights[:, None] - book[None]).min(1)
    assert error == pytest.approx(np.square(best, dtype=np.float64).sum(), rel=1e-5, abs=1e-9)
    even = np.linspace(weights.min(), weights.max(), 2**bits)
    plain = np.square(np.abs(weights[:, None] - even[None]).min(1)).sum()
    assert error <= plain * 1.02 + 1e-9


def test_sixteen_levels_for_a_normal_distribution_are_near_the_best() -> None:
    weights = RNG.standard_normal(200_000).astype(np.float32)
    book = codebook(weights, 16)
    error = np.square(weights - book[nearest(weights, book)], dtype=np.float64).mean()
    assert error == pytest.approx(0.009497, rel=0.03)  # Max, "Quantizing for minimum distortion", 1960


def test_few_different_weights_are_exact() -> None:
    weights = RNG.choice(np.float32([-3.0, 0.0, 1e-20, 7.5]), (50, 4))
    book = codebook(weights, 4)
    assert (book[nearest(weights, book)] == weights).all()


@pytest.mark.parametrize("scale", [1e-42, 1e-6, 1e38])
def test_weights_are_coded_that_differ_by_next_to_nothing_or_by_more_than_float32_holds(scale: float) -> None:
    weights = np.clip(RNG.standard_normal(5000), -3.3, 3.3) * scale + (1.0 if scale == 1e-6 else 0.0)
    weights = weights.astype(np.float32)
    book = codebook(weights, 256)
    error = np.abs(weights.astype(np.float64) - book[nearest(weights, book)]).max()
    assert error < 0.1 * (weights.max().astype(np.float64) - weights.min())


def model(opset: int, values: np.ndarray) -> Graph:
    listed = ",".join(repr(float(np.float32(v))) for v in values.reshape(-1))
    text = f"""model {{ir_version=8, opset={{""={opset}}}}}
graph @g(%x: f32[N,64], %i: i64[M]) -> (f32[*], f32[*]) {{
  %w = const() {{value=[{listed}]}} : f32[64,48]
  %y = MatMul(%x, %w)
  %z = Gather(%w, %i)
  return %y, %z
}}"""
    found = parse(text)
    infer_shapes(found)
    return found


def apply(found: Graph, folder: Path, **options: object) -> tuple[Counter[str], Context]:
    feeds: list[Feed] = [feed_of(found, {"N": 4, "M": 3}, seed) for seed in range(8)]
    context = Context(calibration=Data(feeds, {v.name: v.type for v in found.inputs}), scratch=folder)
    stats = run_pass(ClusterWeights(**options), found, context)  # type: ignore[arg-type]
    return stats, context


@pytest.mark.parametrize(("opset", "bits", "part"), [(21, 4, 0.15), (17, 4, 0.35), (13, 8, 0.35)])
def test_weights_become_indices_and_every_reader_gets_the_table_s_numbers(
    opset: int, bits: int, part: float, tmp_path: Path
) -> None:
    found = model(opset, RNG.standard_normal((64, 48)))
    before = found.clone()
    stats, context = apply(found, tmp_path, bits=bits, min_sqnr=15.0)
    assert stats["clustered"] == 1
    verify(found)
    assert weight_bytes(found) < part * weight_bytes(before)
    (gather,) = (op for op in found.walk("Gather") if op.operand.tensor is not None)
    table = gather.operand.tensor
    assert table is not None
    feed = feed_of(before, {"N": 2, "M": 5}, 9)
    got, expected = run(found, feed), run(before, feed)
    assert got is not None
    assert expected is not None
    assert np.isin(got["z"], table.numpy()).all()
    error = np.square(got["y"] - expected["y"]).sum() / np.square(expected["y"]).sum()
    assert -10 * np.log10(error) > 15
    assert "decodes them while it loads" in context.decisions[0].what


def test_a_weight_that_needs_more_gets_8_bits(tmp_path: Path) -> None:
    found = model(21, RNG.standard_normal((64, 48)))
    _, context = apply(found, tmp_path, bits=4, min_sqnr=30.0)
    assert "1 of 1 weights as indices, 0 of them into at most 16 numbers" in context.decisions[0].what


def test_no_weight_is_touched_that_the_outputs_need(tmp_path: Path) -> None:
    found = model(21, RNG.standard_normal((64, 48)))
    stats, _ = apply(found, tmp_path, min_sqnr=120.0)
    assert stats["clustered"] == 0
    assert [op.op_type for op in found.ops if not op.is_const] == ["MatMul", "Gather"]


def test_options_and_data_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bits=9"):
        ClusterWeights(bits=9)
    with pytest.raises(InputError, match="cluster-weights needs data"):
        run_pass(ClusterWeights(), model(21, np.ones((64, 48))), Context(scratch=tmp_path))


def test_steps_get_dearer_and_the_furthest_is_found() -> None:
    curves = [[Level(0.1, 10), Level(0.15, 30), Level(1.0, 40)], [Level(0.01, 5), Level(9.0, 6)], [Level(0.0, 0.0)]]
    ordered = steps(curves)
    assert [(s.site, s.level) for s in ordered] == [(1, 0), (0, 1), (0, 2), (1, 1)]
    assert [s.price for s in ordered] == sorted(s.price for s in ordered)
    noise = {(site, level): curve.noise for site, found in enumerate(curves) for level, curve in enumerate(found)}
    for limit, expected in ((0.005, {}), (0.02, {1: 0}), (0.5, {1: 0, 0: 1}), (2.0, {1: 0, 0: 2}), (99, {1: 1, 0: 2})):
        assert furthest(ordered, lambda levels, limit=limit: sum(noise[i] for i in levels.items()) <= limit) == expected
