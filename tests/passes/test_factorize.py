"""factorize: weights of low rank become two exactly, others as far as data kept aside allows."""

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
from memoptc.ir.tensors import nbytes
from memoptc.ir.verifier import verify
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.passes.shrink.factorize import Factorize, principal_axes
from memoptc.pipeline import parse as parse_pipeline
from memoptc.runtime.data import Data
from memoptc.testing import run_pass

RNG = np.random.default_rng(0)


def listed(array: np.ndarray) -> str:
    shape = ",".join(map(str, array.shape))
    return f"const() {{value=[{','.join(repr(float(np.float32(v))) for v in array.reshape(-1))}]}} : f32[{shape}]"


def low(results: int, columns: int, rank: int) -> np.ndarray:
    return RNG.standard_normal((results, rank)) @ RNG.standard_normal((rank, columns)) / rank


FORMS = {
    "MatMul": (f"%w = {listed(low(64, 48, 8))}\n %y = MatMul(%x, %w)", "f32[N,3,64]"),
    "Gemm": (
        f"%w = {listed(low(48, 64, 8))}\n %c = {listed(RNG.standard_normal(48))}\n"
        "%y = Gemm(%x, %w, %c) {transB=1, alpha=0.5, beta=2.0}",
        "f32[N,64]",
    ),
    "wide Gemm": (f"%w = {listed(low(32, 96, 8))}\n %y = Gemm(%x, %w)", "f32[N,32]"),
    "Conv": (
        f"%w = {listed(low(48, 8 * 9, 8).reshape(48, 8, 3, 3))}\n %c = {listed(RNG.standard_normal(48))}\n"
        "%y = Conv(%x, %w, %c) {pads=[1,0,1,0], strides=[2,1]}",
        "f32[N,8,9,9]",
    ),
}


def model(form: str) -> Graph:
    body, type_ = FORMS[form]
    found = parse(f"graph @g(%x: {type_}) -> (f32[*]) {{\n {body}\n return %y\n}}")
    infer_shapes(found)
    return found


def weights(graph: Graph) -> int:
    return sum(nbytes(op.result.tensor) for op in graph.walk("const") if op.result.tensor is not None)


def apply(found: Graph, tmp_path: Path, limit: float) -> tuple[Counter[str], Context]:
    feeds: list[Feed] = [feed_of(found, {"N": 24}, seed) for seed in range(8)]
    context = Context(calibration=Data(feeds, {v.name: v.type for v in found.inputs}), scratch=tmp_path)
    stats = run_pass(Factorize(min_sqnr=limit, smallest=0), found, context)
    return stats, context


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_low_rank_become_two_and_nothing_is_lost(form: str, tmp_path: Path) -> None:
    found = model(form)
    before = found.clone()
    stats, context = apply(found, tmp_path, 80.0)
    assert stats["factorized"] == 1
    run_pipeline(parse_pipeline("drop-dead"), found)
    verify(found)
    assert [op.op_type for op in found.ops if op.op_type in ("MatMul", "Gemm", "Conv")].__len__() == 2
    assert weights(found) < 0.55 * weights(before)
    (line,) = context.decisions
    assert line.gain_bytes == weights(before) - weights(found)
    feed = feed_of(before, {"N": 5}, 77)
    expected, got = run(before, feed), run(found, feed)
    assert expected is not None
    assert got is not None
    assert np.allclose(expected["y"], got["y"], atol=1e-3 * np.abs(expected["y"]).max())


def test_weights_of_full_rank_stay_when_the_outputs_need_them(tmp_path: Path) -> None:
    body = f"%w = {listed(RNG.standard_normal((64, 48)))}\n %y = MatMul(%x, %w)"
    found = parse(f"graph @g(%x: f32[N,64]) -> (f32[*]) {{\n {body}\n return %y\n}}")
    infer_shapes(found)
    stats, context = apply(found, tmp_path, 30.0)
    assert stats["factorized"] == 0
    assert not context.decisions
    assert [op.op_type for op in found.ops if not op.is_const] == ["MatMul"]


def test_small_and_shared_weights_stay(tmp_path: Path) -> None:
    found = model("MatMul")
    feeds: list[Feed] = [feed_of(found, {"N": 24})]
    context = Context(calibration=Data(feeds, {v.name: v.type for v in found.inputs}), scratch=tmp_path)
    stats = run_pass(Factorize(min_sqnr=10.0), found, context)
    assert stats["factorized"] == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 30))
def test_axes_are_orthonormal_and_the_best_of_their_number(seed: int, results: int, columns: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((results, columns)), rng.standard_normal((rows, columns))
    axes = principal_axes(weight, x.T @ x)
    assert axes.shape == (results, min(results, columns))
    assert np.allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-8)
    products = x @ weight.T
    values = np.linalg.svd(products, compute_uv=False)
    for rank in range(axes.shape[1] + 1):
        kept = axes[:, :rank]
        lost = np.square(products - products @ kept @ kept.T).sum()
        assert lost == pytest.approx(np.square(values[rank:]).sum(), rel=1e-5, abs=1e-6 * max(values[0] ** 2, 1))


def test_data_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="factorize needs data"):
        run_pass(Factorize(), model("MatMul"), Context(scratch=tmp_path))
