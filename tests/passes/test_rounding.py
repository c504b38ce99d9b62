"""Rounding by data: a smaller error of the product, and only where data kept aside shows it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbers_of import Feed, run

from memoptc.ir.core import Graph
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.types import DType
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize import observation
from memoptc.passes.precision._quantize.numerics import weight_codes
from memoptc.passes.precision._quantize.refit import refit_scales
from memoptc.passes.precision._quantize.rounding import Grid, round_channels, round_to
from memoptc.passes.precision.quantize_search import QuantizeSearch
from memoptc.passes.precision.quantize_weights import QuantizeWeights
from memoptc.runtime.data import Data
from memoptc.runtime.moments import Moments
from memoptc.testing import run_pass


def moments(rng: np.random.Generator, columns: int, rows: int) -> Moments:
    """Inputs that depend on each other, as those of real layers do."""
    mix = rng.standard_normal((max(2, columns // 3), columns))
    parts = [rng.standard_normal((rows, len(mix))) @ mix + 0.1 * rng.standard_normal((rows, columns)) for _ in "ab"]
    return Moments(parts[0].T @ parts[0], parts[1].T @ parts[1], 2 * rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 40, 150]), st.sampled_from([1, 60, 400]))
def test_levels_stay_on_the_grid_and_the_error_never_grows(seed: int, columns: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, columns))
    step = np.abs(weight).max(1, keepdims=True) / 8
    grid, seen = Grid(step, np.asarray(-8.0), np.asarray(7.0)), moments(rng, columns, rows)
    found = round_to(weight, grid, seen)
    assert (found.levels == np.rint(found.levels)).all()
    assert found.levels.min() >= -8
    assert found.levels.max() <= 7

    def energy(levels: np.ndarray, seen: np.ndarray) -> float:
        difference = weight - levels * step
        return float(((difference @ seen) * difference).sum())

    nearest = np.clip(np.rint(weight / step), -8, 7)
    assert found.after <= found.before
    assert found.before == pytest.approx(energy(nearest, seen.check))
    assert (found.after < found.before) == (found.damping > 0)
    if not found.damping:
        assert (found.levels == nearest).all()
    if rows > columns > 100:
        assert found.after < 0.6 * found.before
        whole = seen.fit + seen.check
        assert energy(found.levels, whole) < 0.6 * energy(nearest, whole)


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_without_use_of_the_moments_levels_are_the_nearest(bad: float) -> None:
    weight = np.linspace(-1, 1, 12).reshape(2, 6)
    grid = Grid(*np.float64([0.3, -3, 3]))
    found = round_to(weight, grid, Moments(np.full((6, 6), bad), np.eye(6)))
    assert (found.levels == grid.nearest(weight)).all()


def test_what_is_worse_on_data_kept_aside_is_not_taken() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 30))
    fit = np.outer(*[np.ones(30)] * 2)  # a single row: says nothing of the others
    grid = Grid(*np.float64([0.3, -8, 7]))
    found = round_to(weight, grid, Moments(fit, np.eye(30)))
    assert (found.levels == grid.nearest(weight)).all()
    assert found.after == found.before


PRODUCT = """graph @g(%x: f32[N,S,96]) -> (f32[*]) {
  %w = const() {value=@w} : f32[96,64]
  %y = MatMul(%x, %w)
  return %y
}"""
TURNED = PRODUCT.replace("[96,64]", "[64,96]").replace("%y = M", "%t = Transpose(%w) {perm=[1,0]}\n%y = M")
TURNED = TURNED.replace("(%x, %w)", "(%x, %t)")
CONVOLUTION = """graph @g(%x: f32[N,8,12,12]) -> (f32[*]) {
  %w = const() {value=@w} : f32[32,8,3,3]
  %y = Conv(%x, %w) {pads=[1,1,1,1]}
  return %y
}"""
GEMM = """graph @g(%x: f32[N,96]) -> (f32[*]) {
  %w = const() {value=@w} : f32[40,96]
  %y = Gemm(%x, %w) {transB=1, alpha=0.5}
  return %y
}"""
SHAPES = {PRODUCT: (3, 7, 96), TURNED: (3, 7, 96), CONVOLUTION: (1, 8, 12, 12), GEMM: (24, 96)}


def model(text: str, rng: np.random.Generator) -> Graph:
    """A graph with weights."""
    shape = tuple(int(d) for d in text.split("%w = const")[1].split("f32[")[1].split("]")[0].split(","))
    content = rng.standard_normal(shape).astype(np.float32)
    values = ",".join(repr(float(v)) for v in content.reshape(-1))
    found = parse(text.replace("@w", f"[{values}]"))
    infer_shapes(found)
    return found


def feeds(text: str, rng: np.random.Generator, count: int) -> list[Feed]:
    """Inputs whose numbers depend on each other along the axis that is summed up."""
    shape = SHAPES[text]
    axis = 1 if text is CONVOLUTION else -1
    mix = np.random.default_rng(0).standard_normal((5, shape[axis]))
    found = []
    for _ in range(count):
        free = np.moveaxis(rng.standard_normal(shape), axis, -1)
        whole = free[..., :5] @ mix + 0.3 * free
        found.append({"x": np.ascontiguousarray(np.moveaxis(whole, -1, axis)).astype(np.float32)})
    return found


def noise(graph: Graph, other: Graph, data: list[Feed]) -> float:
    """Energy of the difference over that of the original."""
    pairs = [(run(graph, feed), run(other, feed)) for feed in data]
    assert all(a is not None and b is not None for a, b in pairs)
    error = sum(float(np.square(a["y"] - b["y"]).sum()) for a, b in pairs if a and b)
    return error / sum(float(np.square(a["y"]).sum()) for a, _ in pairs if a)


@pytest.mark.parametrize("text", SHAPES, ids=["product", "transposed", "convolution", "gemm"])
@pytest.mark.parametrize("options", [{}, {"form": "dq"}, {"symmetric": True}, {"bits": 8}], ids=str)
def test_products_come_nearer_on_new_data(text: str, options: dict[str, object], tmp_path: object) -> None:
    rng = np.random.default_rng(5)
    graph = model(text, rng)
    plain, rounded = graph.clone(), graph.clone()
    data = Data(feeds(text, rng, 12), {v.name: v.type for v in graph.inputs})
    context = Context(calibration=data, scratch=tmp_path)  # type: ignore[arg-type]
    run_pass(QuantizeWeights(smallest=0, rounding=False, **options), plain, context)  # type: ignore[arg-type]
    assert not any(d.step == "rounding" for d in context.decisions)
    run_pass(QuantizeWeights(smallest=0, **options), rounded, context)  # type: ignore[arg-type]
    assert any(d.step == "rounding" and d.what.startswith("1 of 1 weights") for d in context.decisions)
    new = feeds(text, rng, 6)
    assert noise(graph, rounded, new) < 0.7 * noise(graph, plain, new)
    pairs = [
        (a, b)
        for a, b in zip(plain.walk("const"), rounded.walk("const"), strict=True)
        if a.attrs["value"].numpy().tobytes() != b.attrs["value"].numpy().tobytes()
    ]
    assert 1 <= len(pairs) <= 3, "codes differ, and the scales and zero points where others err less"


def test_a_table_that_is_also_a_product_errs_less_in_the_product_and_hardly_more_in_its_rows(tmp_path: object) -> None:
    text = """graph @g(%x: f32[N,64], %i: i64[M]) -> (f32[*], f32[*]) {
      %w = const() {value=@w} : f32[80,64]
      %y = Gemm(%x, %w) {transB=1}
      %z = Gather(%w, %i)
      return %y, %z
    }"""
    rng = np.random.default_rng(1)
    graph = model(text, rng)
    plain, rounded = graph.clone(), graph.clone()
    spread = (4.0 ** rng.standard_normal(64)).astype(np.float32)  # few channels carry most of the energy
    seen, new = (
        [{"x": rng.standard_normal((40, 64)).astype(np.float32) * spread, "i": np.arange(80)} for _ in range(count)]
        for count in (8, 3)
    )
    data = Data(seen, {v.name: v.type for v in graph.inputs})
    run_pass(QuantizeWeights(smallest=0), plain)
    run_pass(QuantizeWeights(smallest=0), rounded, Context(calibration=data, scratch=tmp_path))  # type: ignore[arg-type]
    errors = []
    for other in (plain, rounded):
        pairs = [(a, b) for feed in new if (a := run(graph, feed)) and (b := run(other, feed))]
        errors.append([sum(float(np.square(a[k] - b[k]).sum()) for a, b in pairs) for k in "yz"])
    assert errors[1][0] < 0.7 * errors[0][0]
    assert errors[1][1] < 2.0 * errors[0][1]


@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT8])
@pytest.mark.parametrize(("shape", "axis"), [((64, 24), 1), ((24, 64), 0), ((24, 7, 3, 3), 0)])
@pytest.mark.parametrize("bits", [8, 7])
def test_codes_per_channel_keep_scales_and_range(dtype: DType, shape: tuple[int, ...], axis: int, bits: int) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal(shape).astype(np.float32)
    codes = weight_codes(weight, axis, dtype, bits)
    seen = moments(rng, weight.size // 24, 500)
    found = round_channels(weight, codes, seen, bits)
    assert found.scales is codes.scales
    assert found.codes.dtype == codes.codes.dtype
    assert found.codes.shape == shape
    assert np.abs(found.codes.astype(int) - found.zero_point).max() <= 2 ** (bits - 1) - 1

    def energy(coded: np.ndarray) -> float:
        scales = codes.scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        difference = weight - (coded.astype(np.float64) - codes.zero_point) * scales
        rows = np.moveaxis(difference, axis, 0).reshape(24, -1)
        return float(((rows @ seen.check) * rows).sum())

    assert energy(found.codes) < 0.7 * energy(codes.codes)


def test_the_search_takes_rounding_where_the_output_gains(tmp_path: object) -> None:
    rng = np.random.default_rng(5)
    graph = model(PRODUCT, rng)
    data = Data(feeds(PRODUCT, rng, 12), {v.name: v.type for v in graph.inputs})
    context = Context(calibration=data, scratch=tmp_path)  # type: ignore[arg-type]
    result, plain = graph.clone(), graph.clone()
    run_pass(QuantizeSearch(weights="int8", device="x86-avx2"), result, context)
    assert [d.what for d in context.decisions if d.step == "rounding"] == [
        "ranges by auto, products by the range of each run, weights rounded by data"
    ]
    run_pass(QuantizeSearch(weights="int8", device="x86-avx2", recover=False), plain, context)
    new = feeds(PRODUCT, rng, 6)
    assert noise(graph, result, new) < noise(graph, plain, new)


@given(st.integers(1, 6), st.integers(1, 40), st.sampled_from([16, 32]), st.integers(0, 99))
def test_scales_fitted_to_levels_err_no_more(rows: int, columns: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((64, columns)) @ rng.standard_normal((columns, columns))
    weight, moments = rng.standard_normal((rows, columns)), x.T @ x
    scales = np.abs(rng.standard_normal((rows, -(-columns // block)))) + 0.2

    def spread(found: np.ndarray) -> np.ndarray:
        return np.repeat(found, block, axis=1)[:, :columns]

    def error(found: np.ndarray) -> float:
        return float(np.square((weight - levels * spread(found)) @ x.T).sum())

    levels = np.clip(np.rint(weight / spread(scales)), -8, 7)
    fitted = refit_scales(weight, levels, scales, block, moments)
    ratio = fitted / scales
    assert ((ratio > 0.5) & (ratio < 1.5)).all()
    if ((ratio != 1.0) | ~levels.any()).all():  # where some keep theirs, the others were fitted to other ones
        assert error(fitted) <= error(scales) * (1 + 1e-6)
    exact = refit_scales(levels * spread(scales), levels, scales, block, moments)
    np.testing.assert_allclose(exact, scales, rtol=1e-6)


def test_rounding_takes_the_cheap_layers_that_the_allowed_work_suffices_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For c columns it takes 3 c (weights + c^2) multiplications; a weight that two layers read is left out."""
    graph = parse(
        """graph @g(%x: f32[4,16], %z: f32[4,8]) -> (f32[4,2], f32[4,2], f32[4,4], f32[4,4]) {
          %u = const() {value=rand(1)} : f32[16,2]
          %v = const() {value=rand(2)} : f32[8,2]
          %w = const() {value=rand(3)} : f32[8,4]
          %a = MatMul(%x, %u) : f32[4,2]
          %b = MatMul(%z, %v) : f32[4,2]
          %c = MatMul(%z, %w) : f32[4,4]
          %d = MatMul(%z, %w) : f32[4,4]
          return %a, %b, %c, %d
        }"""
    )
    layers = list(graph.walk("MatMul"))
    large, small = 3 * 16 * (32 + 16**2), 3 * 8 * (16 + 8**2)
    feed = {"x": np.ones((4, 16), np.float32), "z": np.ones((4, 8), np.float32)}
    data = Data([feed], {value.name: value.type for value in graph.inputs})
    for work, expected in [
        (large + small, (1, large + small)), (large + small - 1, (1, small)), (small, (1, small)), (small - 1, (0, 0)),
    ]:  # fmt: skip
        monkeypatch.setattr(observation, "WORK", work)
        assert observation.rounding_work(layers) == expected
        context = Context(calibration=data)
        seen = {op.result.name for op, _ in observation.moments_within_budget(graph, layers, context)}
        assert seen == {n for n, least in (("a", large + small), ("b", small)) if work >= least}
