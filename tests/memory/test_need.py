"""The need of a process on paper: parts add up, configurations differ as onnxruntime's sessions do."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_models import usable

from memoptc.ir.forms import wrap
from memoptc.ir.functions import inlined
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.runtime.configuration import planned_peak
from memoptc.runtime.memory.default_arena import BOOK, DefaultArena, pattern_bytes
from memoptc.runtime.memory.default_session import (
    default_order,
    shapes_onnxruntime_knows,
    with_early_outputs,
)
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.need import Configuration, predict_need
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.profile import AS_PLANNED, profile

MLP = """graph @g(%x: f32[N,256]) -> (f32[N,256]) {
  %a = const() {value=splat(1)} : f32[256,1024]
  %b = const() {value=splat(1)} : f32[1024,256]
  %h = MatMul(%x, %a) : f32[N,1024]
  %r = Relu(%h) : f32[N,1024]
  %y = MatMul(%r, %b) : f32[N,256]
  return %y
}"""
WEIGHTS = 2 * 256 * 1024 * 4


@pytest.mark.parametrize("session", ["stock", "arena", "planned"])
def test_parts_add_up(session: str) -> None:
    found = predict_need(parse(MLP), {"N": 512}, Configuration(session=session))  # type: ignore[arg-type]
    assert sum(found.to_json()["parts"].values()) == found.need_bytes
    assert 0 < found.anonymous_bytes < found.need_bytes


def test_need_grows_with_the_input_and_falls_with_the_tier() -> None:
    graph = parse(MLP)
    small, large = (predict_need(graph, {"N": n}).need_bytes for n in (16, 4096))
    assert large - small > 4096 * 1024 * 4
    few = parse(
        MLP.replace("-> (f32[N,256])", "-> (f32[N,1])")
        .replace("1024,256", "1024,1")
        .replace("%b) : f32[N,256]", "%b) : f32[N,1]")
    )
    tiers = [predict_need(few, {"N": 9000}, Configuration(session=s)).need_bytes for s in ("stock", "planned")]
    assert tiers[1] < tiers[0]  # what is held of the run before is small, and the arena's growth is saved


def test_external_weights_are_mapped_unless_packed() -> None:
    graph = parse(MLP)
    assert predict_need(graph, {"N": 8}).mapped_bytes == 0
    plain = predict_need(graph, {"N": 8}, Configuration(external=True, prepacking=False))
    assert plain.mapped_bytes == WEIGHTS
    packed = predict_need(graph, {"N": 8}, Configuration(external=True))
    assert packed.mapped_bytes == 0
    assert packed.weights_bytes == WEIGHTS


GATED = """
graph @g(%x: f32[N,256]) -> (f32[N,256]) {
  %a = const() {value=splat(1)} : f32[256,1024]
  %b = const() {value=splat(1)} : f32[1024,256]
  %h = MatMul(%x, %a) : f32[N,1024]
  %e = Tanh(%h) : f32[N,1024]
  %s = Mul(%h, %e) : f32[N,1024]
  %y = MatMul(%s, %b) : f32[N,256]
  return %y
}
"""


def test_a_branch_keeps_copies_and_loses_the_pattern() -> None:
    graph = parse(GATED)
    plain, branch = (predict_need(graph, {"N": 4096}, Configuration(branch=b)) for b in (False, True))
    assert branch.weights_bytes == 3 * plain.weights_bytes
    assert branch.activations_bytes < plain.activations_bytes


def test_a_pattern_that_fits_into_what_the_first_run_took_costs_nothing() -> None:
    graph = parse(MLP)
    plain, branch = (predict_need(graph, {"N": 4096}, Configuration(branch=b)) for b in (False, True))
    assert branch.activations_bytes == plain.activations_bytes


def test_outputs_are_still_held_while_the_next_run_goes_on() -> None:
    arena = DefaultArena(doubling=False, split=True)
    outputs = arena.play([1 << 20, 2 << 20, -1])
    assert outputs == [1]
    arena.play([1 << 20, 2 << 20, -1])
    assert arena.region_bytes == (1 << 20) + 2 * (2 << 20)
    assert predict_need(parse(MLP), {"N": 4096}, Configuration("arena")).activations_bytes >= (16 + 2 * 4) << 20


def test_sessions_are_predicted_with_the_outputs_of_the_run_before() -> None:
    """One output of 4 MiB: the run's, and the last one's, which its caller still has; a sized arena holds just both."""
    graph = parse("graph @g(%x: f32[N,256]) -> (f32[N,256]) {\n  %y = Relu(%x) : f32[N,256]\n  return %y\n}")
    both = 2 * 4096 * 256 * 4
    for session in ("arena", "planned"):
        found = predict_need(graph, {"N": 4096}, Configuration(session=session)).activations_bytes  # type: ignore[arg-type]
        assert both <= found < 1.05 * both


TILES = """
graph @g(%x: f32[N,256]) -> (f32[N,256], f32[N,256]) {
  %a = const() {value=splat(1)} : f32[256,256]
  %h = MatMul(%x, %a) : f32[N,256]
  %y = MatMul(%h, %a) : f32[N,256]
  return %h, %y
}
"""


BRANCHED = """
graph @g(%x: f32[N,256]) -> (f32[N,256]) {
  %eight = const() {value=[8]} : i64[1]
  %shape = Shape(%x) : i64[2]
  %first = const() {value=[0]} : i64[1]
  %l = Gather(%shape, %first) : i64[1]
  %c = Greater(%l, %eight) : bool[1]
  %o = If(%c) : f32[N,256]
    region then_branch() -> (f32[N,256]) {
      %i = If(%c) : f32[N,256]
        region then_branch() -> (f32[N,256]) {
          BODY
        }
        region else_branch() -> (f32[N,256]) {
          %q = Neg(%x) : f32[N,256]
          return %q
        }
      return %i
    }
    region else_branch() -> (f32[N,256]) {
      %r = Neg(%x) : f32[N,256]
      return %r
    }
  return %o
}
"""


@pytest.mark.parametrize("session", ["stock", "arena", "planned"])
def test_ops_of_a_branch_that_runs_for_sure_count_like_others(session: str) -> None:
    """Not as one block of what is alive inside: an arena grows by each of their buffers."""
    body = "\n".join(GATED.splitlines()[2:-1])
    graphs = [parse(text) for text in (GATED, BRANCHED.replace("BODY", body))]
    for graph in graphs:
        infer_shapes(graph)
    how = Configuration(session=session)  # type: ignore[arg-type]
    flat, branched = (predict_need(graph, {"N": 3000}, how) for graph in graphs)
    # Its condition is computed first, and takes the first piece of the arena.
    assert branched.activations_bytes == pytest.approx(flat.activations_bytes, rel=1e-3)
    small, other = (predict_need(graph, {"N": 8}, how) for graph in graphs)
    assert other.activations_bytes < small.activations_bytes


def test_each_product_that_reads_a_weight_packs_a_copy() -> None:
    one = predict_need(parse(TILES.replace("MatMul(%h, %a)", "Tanh(%h)")), {"N": 4})
    two = predict_need(parse(TILES), {"N": 4})
    assert two.weights_bytes > 1.5 * one.weights_bytes


LOOKUP = """
graph @g(%x: i64[N]) -> (f32[N,64]) {
  %t = const() {value=splat(1)} : f32[100000,64]
  %y = Gather(%t, %x) : f32[N,64]
  return %y
}
"""


def test_of_a_mapped_table_only_rows_that_are_looked_up_are_read() -> None:
    few, many = (predict_need(parse(LOOKUP), {"N": n}, Configuration(external=True)) for n in (8, 100_000))
    assert 7.9 * (1 << 16) < few.mapped_bytes <= 8 << 16
    assert many.mapped_bytes == pytest.approx(100_000 * 64 * 4, rel=1e-6)


def test_the_arena_doubles_and_keeps_a_book() -> None:
    arena = DefaultArena()
    arena.allocate(3 << 20)
    assert arena.region_bytes == 4 << 20
    assert arena.resident_bytes == (3 << 20) + (4 << 20) // BOOK


@given(st.lists(st.integers(1, 1 << 22), min_size=1, max_size=30))
def test_an_arena_that_is_freed_serves_the_same_again(sizes: list[int]) -> None:
    arena = DefaultArena()
    events = [*sizes, *(-i - 1 for i in range(len(sizes)))]
    arena.play(events)
    before = arena.resident_bytes
    assert before >= sum(sizes)
    arena.play([max(sizes), -1])
    assert arena.resident_bytes <= before + max(sizes) + 4096
    assert pattern_bytes(events) >= sum(sizes)


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
@pytest.mark.parametrize("shapeless", [False, True])
def test_a_branch_allocates_outputs_whose_shapes_are_known_when_it_begins(shapeless: bool) -> None:
    graph = parse(
        """graph @g(%x: f32[64,256]) -> (f32[1024,256]) {
  %e = Exp(%x) : f32[64,256]
  %s = Concat(%e, %x, %e, %x) {axis=0} : f32[256,256]
  %t = Softmax(%s) : f32[256,256]
  %y = Concat(%t, %t, %t, %t) {axis=0} : f32[1024,256]
  return %y
}"""
    )
    session = NativeSession(to_proto(wrap(graph, shapeless=shapeless)).SerializeToString(), AS_PLANNED)
    _, trace = session.record({"x": np.zeros((64, 256), np.float32)})
    assert next(size for size in trace.sizes if size > 64) == 1024 * 256 * 4  # before it, the condition
    found = liveness(graph, {}, in_place=not shapeless)
    assert max(with_early_outputs(found).curve) == pytest.approx(trace.peak_bytes, rel=0.02)
    assert max(found.curve) < trace.peak_bytes


@given(st.integers(0, 2**32 - 1))
def test_the_default_order_is_an_order(seed: int) -> None:
    graph = graphs.random_graph(seed, 12, control=False)
    order = default_order(graph)
    seen = set(graph.inputs)
    for op in order:
        assert all(v in seen or v.op is None or v.op not in order for v in op.operands)
        seen.update(op.results)
    assert len(set(order)) == len(order)


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
@given(st.integers(0, 2**32 - 1))
def test_any_graph_has_an_estimate(seed: int) -> None:
    graph = graphs.random_graph(seed, 10, control=True)
    infer_shapes(graph)
    found = predict_need(graph, graphs.BINDINGS)
    assert sum(found.to_json()["parts"].values()) == found.need_bytes


def test_bodies_of_functions_count_as_if_they_stood_where_they_are_called() -> None:
    called = parse("""
graph @g(%x: f32[n,64]) -> (f32[n,64]) {
  %y = local::Twice(%x) : f32[n,64]
  return %y
}
function local::Twice(%a) opset{""=21} {
  %b = Exp(%a)
  %c = Tanh(%b)
  %d = Add(%b, %c)
  return %d
}
""")
    stated = parse("""
graph @g(%x: f32[n,64]) -> (f32[n,64]) {
  %b = Exp(%x) : f32[n,64]
  %c = Tanh(%b) : f32[n,64]
  %d = Add(%b, %c) : f32[n,64]
  return %d
}
""")
    for graph in (called, stated):
        infer_shapes(graph)
    dims = {"n": 4096}
    sizes = [predict_need(graph, dims).need_bytes for graph in (called, stated)]
    assert sizes[0] == sizes[1]
    assert sizes[1] > 10_000_000 + 3 * 4096 * 64 * 4
    assert planned_peak(called, dims).curve == planned_peak(stated, dims).curve
    assert profile(called, dims).planned_peak_bytes == profile(stated, dims).planned_peak_bytes


def test_inlining_functions_copies_no_weight() -> None:
    graph = parse("""
graph @g(%x: f32[n,64]) -> (f32[n,64]) {
  %w = const() {value=rand(1)} : f32[64,64]
  %y = local::Twice(%x, %w) : f32[n,64]
  return %y
}
function local::Twice(%a, %b) opset{""=21} {
  %c = MatMul(%a, %b)
  %d = MatMul(%c, %b)
  return %d
}
""")
    (weight,) = [op.attrs["value"] for op in graph.ops if op.is_a("const")]
    copy = inlined(graph)
    assert [op.op_type for op in copy.ops if not op.is_a("const")] == ["MatMul", "MatMul"]
    assert [op.attrs["value"] for op in copy.ops if op.is_a("const")] == [weight]
    assert next(op.attrs["value"] for op in copy.ops if op.is_a("const")) is weight


@pytest.mark.parametrize(("rows", "known"), [("N", True), ('N:""', False), ('N:"batch size"', True)])
def test_only_extents_that_a_file_names_are_compared(rows: str, known: bool) -> None:
    graph = parse(
        f"graph @g(%x: f32[{rows},4]) -> (f32[{rows},4]) {{\n  %y = Tanh(%x) : f32[{rows},4]\n  return %y\n}}"
    )
    assert bool(shapes_onnxruntime_knows(graph)) == known
