"""The order with the smallest peak: against all orders of small graphs, and what is claimed of it."""

from __future__ import annotations

import graphs
from hypothesis import given
from hypothesis import strategies as st

from memoptc.ir.core import Graph, Op
from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.ir.printer import print_graph
from memoptc.pass_base import Context
from memoptc.passes.memory.order import Order
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import used_values
from memoptc.runtime.memory.liveness import peak
from memoptc.runtime.memory.running_liveness import RunningLiveness
from memoptc.runtime.memory.schedule import best_order
from memoptc.runtime.memory.workspace import no_workspace
from memoptc.testing import run_pass

_MOST = 20_000


def smallest_peak(g: Graph, dims: dict[str, int]) -> int | None:
    """The smallest peak of all topological orders; `None` when there are too many."""
    running = RunningLiveness(g, extents(g, dims))
    makers = [{v.op for v in used_values(op) if v.op in running.number} for op in running.ops]
    best, looked = [1 << 60], [0]

    def go_on(done: list[Op]) -> None:
        looked[0] += 1
        if len(done) == len(running.ops):
            best[0] = min(best[0], running.peak)
        for index, op in enumerate(running.ops):
            if looked[0] < _MOST and op not in done and makers[index] <= set(done):
                running.reset()
                if running.run_all([*done, op]) < best[0]:
                    go_on([*done, op])

    go_on([])
    return best[0] if looked[0] < _MOST else None


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_order_of_a_small_graph_is_better(seed: int, control: bool) -> None:
    g = graphs.random_graph(seed, 8, control=control)
    dims = dict(graphs.BINDINGS)
    found = best_order(g, dims)
    assert sorted(map(id, found.order)) == sorted(map(id, g.ops))
    assert peak(g, dims, found.order).peak_bytes == found.peak_bytes <= found.given_bytes
    assert found.bound_bytes <= found.peak_bytes
    best = smallest_peak(g, dims)
    if best is not None:
        assert found.bound_bytes <= best
        if found.proven:
            assert found.peak_bytes == best


@given(st.integers(0, 2**32 - 1))
def test_with_little_effort_it_is_still_an_order_and_a_bound(seed: int) -> None:
    g = graphs.random_graph(seed, 14, control=False)
    dims = dict(graphs.BINDINGS)
    hurried, patient = best_order(g, dims, effort=20), best_order(g, dims)
    assert hurried.peak_bytes >= patient.peak_bytes >= hurried.bound_bytes
    g.reorder(hurried.order)
    assert peak(g, dims).peak_bytes == hurried.peak_bytes


def ladder(rungs: int) -> Graph:
    """Branches that grow and shrink, one behind the other: heuristics that look one step ahead mix them up."""
    # All that grows first, as a file may have it.
    lines = [f"%a{i} = Concat(%x, %x, %x, %x) {{axis=0}} : f32[1024]" for i in range(rungs)]
    lines += [f"%b{i} = ReduceMax(%a{i}) : f32[1]" for i in range(rungs)]
    ends = ", ".join(f"%b{i}" for i in range(rungs))
    body = "\n".join(lines)
    return parse(f"graph @g(%x: f32[256]) -> (f32[{rungs}]) {{\n{body}\n%y = Concat({ends}) {{axis=0}}\nreturn %y\n}}")


def test_branches_run_one_after_the_other() -> None:
    g = ladder(12)
    found = best_order(g, {}, workspace=no_workspace)
    assert found.given_bytes == 12 * 4096 + 64
    assert found.peak_bytes == found.bound_bytes == 4096 + 12 * 64
    assert found.proven


def test_waists_split_a_long_chain_of_hard_parts() -> None:
    """Thirty diamonds in a row are thirty small problems, not one of 2^30 states."""
    lines, last = [], "%x"
    for i in range(30):
        lines.append(f"%p{i} = Exp({last}) : f32[256]")
        lines += [f"%a{i}_{k} = Sin(%p{i}) : f32[256]\n%b{i}_{k} = ReduceSum(%a{i}_{k}) : f32[1]" for k in range(4)]
        lines.append(f"%q{i} = Sum({', '.join(f'%b{i}_{k}' for k in range(4))}) : f32[1]")
        lines.append(f"%r{i} = Add(%q{i}, %x) : f32[256]")
        last = f"%r{i}"
    body = "\n".join(lines)
    g = parse(f"graph @g(%x: f32[256]) -> (f32[256]) {{\n{body}\nreturn {last}\n}}")
    found = best_order(g, {}, effort=30_000)
    assert found.proven
    assert found.looked < 30_000


def test_ops_that_are_no_functions_keep_their_order() -> None:
    text = """graph @g(%x: f32[4]) -> (f32[4], f32[1024], f32[4]) {
  %a = RandomNormal() {shape=[4]} : f32[4]
  %b = RandomNormal() {shape=[1024]} : f32[1024]
  %c = RandomNormal() {shape=[4]} : f32[4]
  return %a, %b, %c
}
"""
    found = best_order(parse(text), {})
    assert [op.results[0].name for op in found.order] == ["a", "b", "c"]


def test_an_order_that_is_not_worth_it_is_neither_taken_nor_told() -> None:
    g = parse("""graph @g(%x: f32[1000]) -> (f32[*]) {
      %h = const() {value=[0]} : i64[1]
      %t = const() {value=[500]} : i64[1]
      %a = Relu(%x)
      %b = Neg(%x)
      %c = Slice(%a, %h, %t)
      %d = Slice(%b, %h, %t)
      %y = Add(%c, %d)
      return %y
    }""")
    infer_shapes(g)
    most, text = peak(g, {}).peak_bytes, print_graph(g)
    for worth, taken in ((0.9, False), (0.01, True)):
        context = Context()
        stats = run_pass(Order(worth=worth), g, context)
        assert (print_graph(g) != text) == bool(context.decisions) == (stats["bytes saved"] > 0) == taken
        assert stats["peak bytes"] == peak(g, {}).peak_bytes <= most
