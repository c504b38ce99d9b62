"""What accumulates along the cut axis: ties, infinities and NaN as in the whole, and memory that a budget asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from native_models import usable
from numbers_of import UNOPTIMIZED
from tileable import dims

import memoptc
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.infer import infer_shapes
from memoptc.ir.iteration import Join, weights_axis
from memoptc.ir.onnx_io import to_proto, write_onnx
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.ir.types import TensorType
from memoptc.ir.verifier import verify
from memoptc.passes.memory._tile.emit import Emitter
from memoptc.passes.memory._tile.grid import NotTileableError, StaticGrid
from memoptc.passes.memory._tile.growth import Growth
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.reachability import Reachability
from memoptc.passes.memory._tile.region import Region
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions
from memoptc.runtime.profile import record

WIDTH = 23
COUNTS = (2, 3, 5, 23)


def typed(text: str) -> Graph:
    graph = parse(text)
    infer_shapes(graph)
    return graph


def extent(value: Value, axis: int) -> int:
    found = dims(value)[axis]
    assert isinstance(found, int)
    return found


def region_of(graph: Graph, op_type: str) -> Region:
    """All that can be cut together with the first op of a type along the first axis that it accumulates along."""
    return grow_from(graph, next(graph.walk(op_type)))


def grow_from(graph: Graph, seed: Op) -> Region:
    """All that can be cut together with an op along the first axis that it accumulates along."""
    ops = [op for op in graph.ops if op.op_type not in ("const", "absent", "return")]
    spaces = IterationSpaces()
    region = Growth(seed, spaces.sums(seed)[0], spaces, Reachability(ops)).within(0, len(ops) - 1)
    assert region is not None
    return region


def cut(text: str, op_type: str, count: int) -> tuple[Evaluator, Evaluator]:
    """The graph as it is, and with the op computed in tiles."""
    graph = typed(text)
    before = Evaluator(to_proto(graph), UNOPTIMIZED)
    region = region_of(graph, op_type)
    grid = StaticGrid(region, count, extent)
    assert Emitter(region, grid, extent).run().count == grid.count
    verify(graph)
    return before, Evaluator(to_proto(graph), UNOPTIMIZED)


def awkward(seed: int) -> npt.NDArray[np.float32]:
    """Rows with equal elements, infinities, and NaN anywhere, at the beginning of tiles too."""
    random = np.random.default_rng(seed)
    x = random.integers(-3, 4, (40, WIDTH)).astype(np.float32)
    special = random.random(x.shape)
    x[special < 0.06] = np.nan
    x[(special > 0.06) & (special < 0.1)] = -np.inf
    x[(special > 0.1) & (special < 0.12)] = np.inf
    x[:2] = -np.inf
    x[2:4] = np.inf
    x[4, 1:] = np.nan
    return x


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_places_are_those_of_the_whole(op_type: str, last: int, count: int) -> None:
    text = f"""graph @g(%x: f32[40,{WIDTH}]) -> (i64[*]) {{
      %a = Neg(%x)
      %y = {op_type}(%a) {{axis=-1, keepdims=0, select_last_index={last}}}
      return %y
    }}"""
    before, after = cut(text, op_type, count)
    for seed in range(5):
        x = awkward(seed)
        if last:
            x = np.nan_to_num(x, nan=1.0, posinf=np.inf, neginf=-np.inf)  # kernels differ among themselves
        np.testing.assert_array_equal(after.run({"x": x})["y"], before.run({"x": x})["y"])


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("op_type", ["ReduceMax", "ReduceMin"])
def test_extremes_are_those_of_the_whole(op_type: str, count: int) -> None:
    text = f"""graph @g(%x: f32[40,{WIDTH}]) -> (f32[*]) {{
      %axes = const() {{value=[-1]}} : i64[1]
      %a = Neg(%x)
      %y = {op_type}(%a, %axes) {{keepdims=0}}
      return %y
    }}"""
    before, after = cut(text, op_type, count)
    for seed in range(5):
        x = np.where(np.isnan(awkward(seed)), 1, awkward(seed))  # which of them count depends on the kernel's lanes
        np.testing.assert_array_equal(after.run({"x": x})["y"], before.run({"x": x})["y"])


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("k", [1, 4, WIDTH])
def test_of_equal_ones_the_first_are_taken(k: int, largest: int, count: int) -> None:
    text = f"""graph @g(%x: f32[40,{WIDTH}]) -> (f32[*], i64[*]) {{
      %k = const() {{value=[{k}]}} : i64[1]
      %a = Neg(%x)
      %y, %i = TopK(%a, %k) {{axis=1, largest={largest}}}
      return %y, %i
    }}"""
    before, after = cut(text, "TopK", count)
    for seed in range(5):
        x = np.nan_to_num(awkward(seed), nan=1.0, posinf=np.inf, neginf=-np.inf)
        expected, found = before.run({"x": x}), after.run({"x": x})
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


GEMM = """graph @g(%x: f32[7,5], %w: f32[5,12], %v: f32[3,12], %c: f32[3]) -> (f32[*]) {
  %h = MatMul(%x, %w)
  %r = Relu(%h)
  %y = Gemm(%r, %v, %c) {alpha=0.5, beta=2.0, transB=1}
  return %y
}"""


@pytest.mark.parametrize("count", [2, 5, 12])
def test_what_is_added_to_a_product_is_added_once(count: int) -> None:
    before, after = cut(GEMM, "Gemm", count)
    random = np.random.default_rng(count)
    shapes = {"x": (7, 5), "w": (5, 12), "v": (3, 12), "c": (3,)}
    feed = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    np.testing.assert_allclose(after.run(feed)["y"], before.run(feed)["y"], rtol=1e-5, atol=1e-5)


def test_sums_of_integers_are_exact_and_those_of_halves_are_left_alone() -> None:
    text = """graph @g(%x: f32[4,64]) -> (i32[*], f16[*]) {
      %axes = const() {value=[1]} : i64[1]
      %i = Cast(%x) {to=6}
      %h = Cast(%x) {to=10}
      %a = ReduceSum(%i, %axes)
      %b = ReduceSum(%h, %axes)
      return %a, %b
    }"""
    graph = typed(text)
    sums = {op.result.name: IterationSpaces().sums(op) for op in graph.walk("ReduceSum")}
    assert not sums["b"]
    assert not sums["a"][0].reorders
    assert sums["a"][0].join is Join.SUM


def test_what_depends_on_a_sum_is_not_cut_with_it() -> None:
    graph = typed("""graph @g(%x: f32[4,64]) -> (f32[*]) {
      %axes = const() {value=[1]} : i64[1]
      %a = Exp(%x)
      %sum = ReduceSum(%a, %axes)
      %y = Div(%a, %sum)
      return %y
    }""")
    region = region_of(graph, "ReduceSum")
    assert [op.op_type for op in region.ops] == ["Exp", "ReduceSum"]
    assert [v.name for v in region.outputs] == ["a", "sum"]


ATTENTION = """graph @g(%q: f32[2,9,4], %k: f32[2,4,WIDTH], %v: f32[2,WIDTH,5], %mask: f32[9,WIDTH]) -> (f32[*]) {
  %a = Einsum(%q, %k) {equation="bqd,bdk->bqk"}
  %b = Add(%a, %mask)
  %p = Softmax(%b) {axis=-1}
  %y = MatMul(%p, %v)
  return %y
}""".replace("WIDTH", str(WIDTH))


@pytest.mark.parametrize("count", COUNTS)
def test_a_softmax_over_keys_in_pieces_is_that_of_the_whole(count: int) -> None:
    before, after = cut(ATTENTION, "MatMul", count)
    random = np.random.default_rng(count)
    for scale in (1.0, 1e3, 1e37):
        mask = np.where(random.random((9, WIDTH)) < 0.3, -np.inf, 0.0)
        mask[0] = -np.inf  # not a number, as in the whole
        mask[1, : WIDTH // 2] = -np.inf
        mask[2, WIDTH // 2 :] = -np.inf
        mask[3, 7], mask[4, 3] = np.nan, np.inf
        mask[5] = random.standard_normal(WIDTH) * scale
        mask[6] = np.where(random.random(WIDTH) < 0.5, np.float32(-3.4e38), -np.inf)
        shapes = {"q": (2, 9, 4), "k": (2, 4, WIDTH), "v": (2, WIDTH, 5)}
        feed = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
        feed["mask"] = mask.astype(np.float32)
        expected, found = before.run(feed)["y"], after.run(feed)["y"]
        assert np.isnan(expected[:, [0, 3, 4]]).all()
        assert not np.isnan(expected[:, [1, 2, 5, 6]]).any()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


VOCABULARY = """graph @logits(%x: f32[1,8,32]) -> (i64[*]) {
  %w = const() {value=WEIGHTS} : f32[32,8000]
  %logits = MatMul(%x, %w)
  %y = ArgMax(%logits) {axis=-1, keepdims=0}
  return %y
}"""


def test_logits_of_which_only_the_largest_leaves_are_never_there_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal(32 * 8000).astype(np.float32)
    graph = typed(VOCABULARY.replace("WEIGHTS", str([float(w) for w in weights])))
    write_onnx(graph, tmp_path / "logits.onnx")
    result = memoptc.compile(tmp_path / "logits.onnx", memory_budget="activations=40000")
    result.save(tmp_path / "small.onnx")
    assert result.report.control.planned_peak_bytes >= 8 * 8000 * 4
    assert result.report.candidate.planned_peak_bytes <= 40_000
    # Weights are cut, not copied.
    assert result.report.candidate.weight_bytes <= 1.01 * result.report.control.weight_bytes
    feed = {"x": random.standard_normal((1, 8, 32), dtype=np.float32)}
    expected, found = (Evaluator(str(tmp_path / f), UNOPTIMIZED).run(feed)["y"] for f in ("logits.onnx", "small.onnx"))
    np.testing.assert_array_equal(found, expected)


MIXER = """graph @mixer(%x: f32[2,64,64]) -> (f32[*]) {
  %wide = const() {value=WIDE} : f32[64,4096]
  %narrow = const() {value=NARROW} : f32[4096,64]
  %a = MatMul(%x, %wide)
  %b = Erf(%a)
  %c = Mul(%a, %b)
  %y = MatMul(%c, %narrow)
  return %y
}"""

ENDS = """graph @ends(%x: f32[1,512,64]) -> (f32[*], f32[*]) {
  %w = const() {value=WIDE} : f32[64,4096]
  %axes = const() {value=[-1]} : i64[1]
  %a = MatMul(%x, %w)
  %most = ReduceMax(%a, %axes)
  %norm = ReduceL2(%a, %axes)
  return %most, %norm
}"""


def test_a_large_weight_that_is_used_elsewhere_is_not_cut() -> None:
    numbers = str([0.5] * 64 * 4096)
    text = MIXER.replace("WIDE", numbers).replace("NARROW", numbers).replace(") -> (f32[*])", ") -> (f32[*], f32[*])")
    graph = typed(text.replace("  return %y", "  %z = Exp(%wide)\n  return %y, %z"))
    region = grow_from(graph, list(graph.walk("MatMul"))[-1])
    before = print_graph(graph)
    with pytest.raises(NotTileableError, match="large weight"):
        Emitter(region, StaticGrid(region, 4, extent), extent).run()
    assert print_graph(graph) == before


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
@pytest.mark.parametrize(
    ("text", "op_type", "count"), [(MIXER, "MatMul", 16), (ENDS, "ReduceMax", 16), (ENDS, "ReduceL2", 16)]
)
def test_pieces_wait_for_each_other_in_the_order_of_onnxruntime(
    text: str, op_type: str, count: int, tmp_path: Path
) -> None:
    """Otherwise it would compute all tiles before it adds any, or before it turns to another end."""
    random = np.random.default_rng(0)
    numbers = str([float(v) for v in np.float32(random.standard_normal(64 * 4096))])
    graph = typed(text.replace("WIDE", numbers).replace("NARROW", numbers))
    large = max(
        v.type.nbytes for op in graph.ops for v in op.results if isinstance(v.type, TensorType) and not op.is_const
    )
    peaks = []
    for ordered in (False, True):
        cut_ = graph.clone()
        region = grow_from(cut_, list(cut_.walk(op_type))[-1])
        Emitter(region, StaticGrid(region, count, extent), extent, ordered=ordered).run()
        path = tmp_path / f"{ordered}.onnx"
        write_onnx(cut_, path)
        feed = {"x": random.standard_normal(tuple(dims(graph.inputs[0])), dtype=np.float32)}
        options = RunOptions(threads=1, mem_pattern=False, mem_reuse=False)
        peaks.append(record(path, feed, options, runs=1).run_peak_bytes)
    assert peaks[1] < large / 3 < peaks[0]


OLD_LOG = """model {{ir_version=8, opset={{""={version}}}}}
graph @g(%x: f32[3,64]) -> (f32[*]) {{
  %a = Exp(%x)
  %y = ReduceLogSum(%a) {{axes=[-1], keepdims={keep}}}
  return %y
}}"""

OLD_GEMM = """model {{ir_version=5, opset={{""={version}}}}}
graph @g(%x: f32[3,64], %n: f32[5,64], %c: f32[5]) -> (f32[*]) {{
  %a = Exp(%x)
  %y = Gemm(%a, %n, %c) {{transB=1, alpha=2.0, beta={keep}.5}}
  return %y
}}"""


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(
    ("text", "version"), [*((OLD_LOG, v) for v in (11, 13, 17)), *((OLD_GEMM, v) for v in (9, 11))]
)
def test_older_opsets_get_operands_where_they_want_them(text: str, version: int, keep: int) -> None:
    op_type = "Gemm" if text is OLD_GEMM else "ReduceLogSum"
    before, after = cut(text.format(version=version, keep=keep), op_type, 5)
    random = np.random.default_rng(version)
    feed = {"x": random.standard_normal((3, 64), np.float32)}
    if op_type == "Gemm":
        feed |= {"n": random.standard_normal((5, 64), np.float32), "c": random.standard_normal(5, np.float32)}
    np.testing.assert_allclose(after.run(feed)["y"], before.run(feed)["y"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("version", [11, 12])
def test_integers_are_joined_where_max_takes_them(version: int) -> None:
    graph = typed(f"""model {{ir_version=6, opset={{""={version}}}}}
graph @g(%x: i64[3,64]) -> (i64[*]) {{
  %y = ReduceMax(%x) {{axes=[1]}}
  return %y
}}""")
    assert bool(IterationSpaces().sums(next(graph.walk("ReduceMax")))) == (version == 12)


@pytest.mark.parametrize("version", [7, 8])
def test_weights_are_joined_where_max_broadcasts(version: int) -> None:
    graph = typed(f"""model {{ir_version=3, opset={{""={version}}}}}
graph @g(%x: f32[3,64], %n: f32[64,5]) -> (f32[*]) {{
  %w = Softmax(%x) {{axis=1}}
  %y = MatMul(%w, %n)
  return %y
}}""")
    assert (weights_axis(next(graph.walk("Softmax"))) is not None) == (version == 8)


@pytest.mark.parametrize("nothing", [0, 1])
def test_no_axes_may_mean_nothing_is_reduced(nothing: int) -> None:
    graph = typed(f"""model {{ir_version=8, opset={{""=18}}}}
graph @g(%x: f32[3,64]) -> (f32[*]) {{
  %axes = const() {{value=[]}} : i64[0]
  %y = ReduceSum(%x, %axes) {{noop_with_empty_axes={nothing}}}
  return %y
}}""")
    assert bool(IterationSpaces().sums(next(graph.walk("ReduceSum")))) == (not nothing)


CHANNELS = """graph @decoder(%x: f32[1,6,5,7], %w: f32[6,12,3,3], %b: f32[12], %scale: f32[12], %shift: f32[12],
    %filters: f32[3,12,3,3], %bias: f32[3]) -> (f32[1,3,8,12]) {
  %up = ConvTranspose(%x, %w, %b) {strides = [2,2], output_padding = [1,1], pads = [1,1,1,1]}
  %n = InstanceNormalization(%up, %scale, %shift)
  %r = Relu(%n)
  %y = Conv(%r, %filters, %bias)
  return %y
}
"""


@pytest.mark.parametrize("count", [2, 4, 5, 12])
def test_a_convolution_adds_up_channels_that_are_normalized_one_by_one(count: int) -> None:
    """What a normalization over all pixels keeps from being cut along them; the bias is added once."""
    before, after = cut(CHANNELS, "Conv", count)
    graph = typed(CHANNELS)
    assert [op.op_type for op in region_of(graph, "Conv").ops] == [
        "ConvTranspose", "InstanceNormalization", "Relu", "Conv"
    ]  # fmt: skip
    random = np.random.default_rng(count)
    feed = {v.name: random.standard_normal(dims(v)).astype(np.float32) for v in graph.inputs}
    for a, b in zip(before.run(feed).values(), after.run(feed).values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
