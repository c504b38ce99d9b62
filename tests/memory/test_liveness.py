"""What is alive when, case by case; one tensor is 1,024 bytes unless a case says otherwise."""

from __future__ import annotations

import random

import graphs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import free_symbols
from memoptc.ir.parser import parse
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import footprint
from memoptc.runtime.memory.liveness import Storage, inner_bytes, liveness, peak
from memoptc.runtime.memory.running_liveness import RunningLiveness

KB = 1024


def graph(body: str, outputs: str = "f32[256]", dims: str = "256") -> Graph:
    return parse(f"graph @g(%x: f32[{dims}], %i: f32[{dims}]) -> ({outputs}) {{\n{body}\n}}")


def storages(found: Graph, **dims: int) -> dict[str, tuple[int, int, int]]:
    """Name -> (size, first, last)."""
    return {s.name: (s.size, s.first, s.last) for s in liveness(found, dims).storages}


def test_operand_and_result_are_alive_together() -> None:
    g = graph("%a = Neg(%x) : f32[256]\n%b = Exp(%a) : f32[256]\n%y = Abs(%b) : f32[256]\nreturn %y")
    assert storages(g) == {"a": (KB, 0, 1), "b": (KB, 1, 2), "y": (KB, 2, 2)}
    assert peak(g, {}).peak_bytes == 2 * KB
    assert peak(g, {}).curve == (KB, 2 * KB, 2 * KB)


def test_inputs_and_weights_are_not_counted() -> None:
    g = graph(
        "%w = const() {value=splat(1)} : f32[256]\n%c = Constant() {value_float=2.0} : f32[]\n"
        "%a = Add(%x, %w) : f32[256]\n%y = Mul(%a, %c) : f32[256]\nreturn %y"
    )
    assert storages(g) == {"a": (KB, 0, 1), "y": (KB, 1, 1)}


def test_what_nobody_uses_and_what_is_returned_stays() -> None:
    g = graph(
        "%a = Neg(%x) : f32[256]\n%unused = Neg(%x) : f32[256]\n%b = Neg(%a) : f32[256]\nreturn %a, %b",
        "f32[256], f32[256]",
    )
    assert storages(g) == {"a": (KB, 0, 2), "unused": (KB, 1, 2), "b": (KB, 2, 2)}


def test_in_place() -> None:
    """Relu computes in place, Exp does not."""
    g = graph(
        "%a = Neg(%x) : f32[256]\n%b = Relu(%a) : f32[256]\n%c = Exp(%b) : f32[256]\n%y = Neg(%c) : f32[256]\nreturn %y"
    )
    assert storages(g) == {"a": (KB, 0, 2), "c": (KB, 2, 3), "y": (KB, 3, 3)}


NEG, RELU = "%a = Neg(%x) : f32[256]\n", "%b = Relu(%a) : f32[256]\n"
NOT_IN_PLACE = {
    "operand lives on": (NEG + RELU + "%y = Add(%a, %b) : f32[256]\nreturn %y", "f32[256]"),
    "operand is returned": (NEG + RELU + "%y = Neg(%b) : f32[256]\nreturn %a, %y", "f32[256], f32[256]"),
    "other size": (NEG + "%b = Cast(%a) {to=11} : f64[256]\n%y = Neg(%b) : f64[256]\nreturn %y", "f64[256]"),
    "operand is an input": ("%b = Relu(%x) : f32[256]\n%y = Neg(%b) : f32[256]\nreturn %y", "f32[256]"),
    "result is returned": (NEG + RELU + "return %b", "f32[256]"),
    "shape unknown": (NEG + "%b = Relu(%a) : f32[?]\n%y = Neg(%b) : f32[256]\nreturn %y", "f32[256]"),
}


@pytest.mark.parametrize(("body", "outputs"), NOT_IN_PLACE.values(), ids=NOT_IN_PLACE)
def test_not_in_place(body: str, outputs: str) -> None:
    found = liveness(graph(body, outputs), {})
    assert all(len(s.values) == 1 for s in found.storages)


def test_the_last_op_overwrites_no_output() -> None:
    """`a` is handed out, so even its last user must leave it alone."""
    g = graph("%a = Neg(%x) : f32[256]\n%b = Relu(%a) : f32[256]\n%c = Relu(%b) : f32[256]\nreturn %a", "f32[256]")
    found = {s.name: s for s in liveness(g, {}).storages}
    assert [v.name for v in found["a"].values] == ["a"]
    assert [v.name for v in found["b"].values] == ["b", "c"]


VIEW = """%s = const() {value=[16, 16]} : i64[2]
%a = Neg(%x) : f32[256]
%v = Reshape(%a, %s) : f32[16,16]
%b = Exp(%v) : f32[16,16]
%c = Exp(%a) : f32[256]
"""


def test_views_share_and_keep_alive() -> None:
    g = graph(VIEW + "return %b, %c", "f32[16,16], f32[256]")
    assert storages(g) == {"a": (KB, 0, 3), "b": (KB, 2, 3), "c": (KB, 3, 3)}


def test_a_returned_view_is_a_copy() -> None:
    g = graph(VIEW + "return %b, %c, %v", "f32[16,16], f32[256], f32[16,16]")
    assert storages(g) == {"a": (KB, 0, 3), "v": (KB, 1, 3), "b": (KB, 2, 3), "c": (KB, 3, 3)}


def test_a_view_of_an_input_takes_nothing() -> None:
    g = graph(
        "%s = const() {value=[16, 16]} : i64[2]\n%v = Reshape(%x, %s) : f32[16,16]\n"
        "%y = Neg(%v) : f32[16,16]\nreturn %y",
        "f32[16,16]",
    )
    assert storages(g) == {"y": (KB, 1, 1)}


def test_a_viewed_operand_is_not_overwritten_early() -> None:
    """Relu uses the last view but `a` itself is used later."""
    g = graph(
        "%s = const() {value=[16, 16]} : i64[2]\n%a = Neg(%x) : f32[256]\n%v = Reshape(%a, %s) : f32[16,16]\n"
        "%r = Relu(%v) : f32[16,16]\n%n = Neg(%r) : f32[16,16]\n%y = Exp(%a) : f32[256]\nreturn %y, %n",
        "f32[256], f32[16,16]",
    )
    assert storages(g)["r"] == (KB, 2, 3)


def test_outputs_without_memory_of_their_own_are_copied() -> None:
    g = graph("%y = Neg(%x) : f32[256]\nreturn %y, %y, %i", "f32[256], f32[256], f32[256]")
    found = liveness(g, {})
    assert [s.size for s in found.storages] == [KB] * 3
    assert peak(g, {}).peak_bytes == RunningLiveness(g, {}).run_all(g.ops) == 3 * KB


def test_a_graph_without_ops() -> None:
    g = graph("return %x")
    assert peak(g, {}).peak_bytes == RunningLiveness(g, {}).run_all([]) == KB
    assert peak(g, {}).labels == ("return",)


def test_sizes_below_a_byte_and_empty_ones() -> None:
    g = graph(
        "%a = Cast(%x) {to=22} : i4[256]\n%b = Cast(%x) {to=1} : f32[0]\n%y = Cast(%a) {to=1} : f32[256]\nreturn %y",
    )
    assert storages(g) == {"a": (128, 0, 2), "y": (KB, 2, 2)}


def test_sizes_are_aligned() -> None:
    g = graph("%a = Cast(%x) {to=1} : f32[3]\n%y = Neg(%x) : f32[256]\nreturn %y")
    assert liveness(g, {}).storages[0].size == 64
    assert liveness(g, {}, alignment=256).storages[0].size == 256
    assert liveness(g, {}, alignment=1).storages[0].size == 12


def test_symbolic_sizes() -> None:
    g = graph(
        "%a = Neg(%x) : f32[N,64]\n%b = Relu(%a) : f32[N,64]\n%y = Exp(%b) : f32[N,64]\nreturn %y", "f32[N,64]", "N,64"
    )
    assert liveness(g, {"N": 2}).storages[0].extent == parse_dim("256*N")
    assert [peak(g, {"N": n}).peak_bytes for n in (1, 2, 100)] == [512, 1024, 51200]
    assert peak(g, {}).unknown == ("a", "b", "y")


def test_two_symbols_are_no_reason_to_overwrite() -> None:
    """Extents may happen to agree; onnxruntime decides before it knows them, and so does the model."""
    g = graph("%a = Neg(%x) : f32[N]\n%b = Relu(%a) : f32[M]\n%y = Exp(%b) : f32[M]\nreturn %y", "f32[M]", "N")
    assert len(liveness(g, {"N": 256, "M": 256}).storages) == 3


BROADCAST = """model {ir_version=10, opset={""=20}}
graph @g(%x: f32[N,64], %i: f32[M,64]) -> (f32[K,64]) {
  %a = Add(%x, %i) : f32[K,64]
  %b = Neg(%a) : f32[K,64]
  %y = Exp(%b) : f32[K,64]
  return %y
}"""


@pytest.mark.parametrize(("n", "m", "k"), [(8, 8, 8), (1, 8, 8), (8, 1, 8), (1, 1, 1), (0, 1, 0)])
def test_extents_follow_from_those_of_the_inputs(n: int, m: int, k: int) -> None:
    """What two symbols broadcast to is a third symbol, which nobody binds."""
    g = parse(BROADCAST)
    assert extents(g, {"N": n, "M": m}) == {"N": n, "M": m, "K": k}
    assert peak(g, {"N": n, "M": m}).peak_bytes == 2 * 256 * k == RunningLiveness(g, {"N": n, "M": m}).run_all(g.ops)
    assert peak(g, {"N": n, "M": m}).unknown == ()


def test_extents_are_not_guessed() -> None:
    g = parse(BROADCAST)
    # Whatever goes with 8 is 1 or 8; what goes with 1 may be anything.
    assert extents(g, {"N": 8}) == {"N": 8, "K": 8}
    assert extents(g, {"N": 1}) == {"N": 1}
    assert peak(g, {"N": 1}).unknown == ("a", "b", "y")


def test_unknown_sizes_are_named() -> None:
    g = graph("%a = NonZero(%x) : i64[1,?]\n%y = Neg(%x) : f32[256]\nreturn %y, %a", "f32[256], i64[1,?]")
    assert peak(g, {}).unknown == ("a",)
    assert peak(g, {}).peak_bytes == KB


IF = """%t = Neg(%x) : f32[256]
%p = ReduceMax(%x) {keepdims=0} : f32[]
%c = Cast(%p) {to=9} : bool[]
%y = If(%c) : f32[256]
  region then_branch() -> (f32[256]) {
    %a = Neg(%t) : f32[256]
    %b = Exp(%a) : f32[256]
    %o = Abs(%b) : f32[256]
    return %o
  }
  region else_branch() -> (f32[256]) {
    %q = Neg(%i) : f32[256]
    return %q
  }
return %y"""


def test_branches_live_inside_their_step() -> None:
    g = graph(IF)
    inside = next(s for s in liveness(g, {}).storages if s.name.endswith("(inside)"))
    # The larger branch, without its output: that is the If's own result.
    assert inside == Storage("If y (inside)", 2 * KB, 3, 3)
    # What a branch captures lives until the If.
    assert storages(g)["t"] == (KB, 0, 3)


def test_workspace_is_counted_in_its_step_only() -> None:
    g = graph("%a = Neg(%x) : f32[256]\n%y = Exp(%a) : f32[256]\nreturn %y")

    def workspace(op: Op) -> int:
        return 100 if op.op_type == "Exp" else 0

    assert liveness(g, {}, workspace=workspace).curve == [KB, 2 * KB + 128]
    assert RunningLiveness(g, {}, workspace=workspace).run_all(g.ops) == 2 * KB + 128


def test_carried_values_live_through_an_iteration() -> None:
    g = graph(
        """%n = const() {value=4} : i64[]
%t = const() {value=1} : bool[]
%y = Loop(%n, %t, %x) : f32[256]
  region body(%k: i64[], %go: bool[], %s: f32[256]) -> (bool[], f32[256]) {
    %a = Exp(%s) : f32[256]
    %more = Identity(%go) : bool[]
    return %more, %a
  }
return %y"""
    )
    loop = next(op for op in g.ops if op.op_type == "Loop")
    # The state that comes in, the one that goes out, and the condition; the Loop's result is made after these.
    assert inner_bytes(loop, {}) == 2 * KB + 64 - KB


@given(st.integers(0, 2**32 - 1))
def test_running_liveness_agrees_with_liveness_in_any_order(seed: int) -> None:
    g = graphs.random_graph(seed)
    dims = {name: 3 for name in _symbols(g)}
    order = _some_order(g, random.Random(seed))
    running = RunningLiveness(g, dims)
    assert running.run_all(order) == peak(g, dims, order).peak_bytes
    live, highest, again = running.live, running.peak, list(running.order)
    running.reset()
    running.run_all(again)
    assert (running.live, running.peak) == (live, highest)


@given(st.integers(0, 2**32 - 1))
def test_every_graph_can_be_planned_to_its_peak_or_a_little_more(seed: int) -> None:
    g = graphs.random_graph(seed)
    dims = {name: 3 for name in _symbols(g)}
    found = liveness(g, dims)
    assert max(found.curve) == found.problem.floor == peak(g, dims).peak_bytes
    plan = allocate(found.problem)
    assert plan.floor <= plan.arena_bytes <= plan.naive_sum


def _symbols(g: Graph) -> set[str]:
    return {name for group in footprint(g).groups for name in free_symbols(group.size)}


def _some_order(g: Graph, rng: random.Random) -> list[Op]:
    """A random topological order."""
    waiting, order, done = list(g.ops), list[Op](), set[Op]()
    while waiting:
        ready = [op for op in waiting if all(v.op is None or v.op in done for v in _needed(op, g))]
        op = rng.choice(ready)
        waiting.remove(op)
        done.add(op)
        order.append(op)
    return order


def _needed(op: Op, g: Graph) -> list[Value]:
    captured = [v for region in op.regions.values() for v in region.captures()]
    return [v for v in (*op.operands, *captured) if v.op is not None and v.graph is g]
