"""Sizes observed in runs: planned with, named, never part of a type."""

from __future__ import annotations

import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import memoptc
from memoptc.ir.core import Graph
from memoptc.ir.facts import OBSERVED
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.need import predict_need
from memoptc.runtime.memory.observed import Observation, observed_values, unsized_values
from memoptc.runtime.node_events import node_events

TEXT = """graph @g(%x: f32[N,64], %s: i64[2]) -> (f32[N,64]) {
  %r = Reshape(%x, %s)
  %t = Transpose(%r) {perm=[1,0]}
  %e = Exp(%t)
  %u = Transpose(%e) {perm=[1,0]}
  %k = Shape(%x) : i64[2]
  %y = Reshape(%u, %k) : f32[N,64]
  return %y
}"""


def feed(n: int) -> dict[str, np.ndarray]:
    """Inputs of one size."""
    return {"x": np.zeros((n, 64), np.float32), "s": np.array([n * 2, 32], np.int64)}


def observe_sizes(graph: Graph, feeds: list[dict[str, np.ndarray]]) -> str:
    """Run a graph where that shows anything; give what is said of it."""
    bindings = [bind_shapes(graph, one) for one in feeds]
    if not unsized_values(graph, bindings):
        return ""
    return Observation(to_proto(graph), feeds, bindings).apply(graph)


def test_sizes_of_runs_count_in_plans_and_are_named() -> None:
    graph = parse(TEXT)
    infer_shapes(graph)
    before = liveness(graph, {"N": 100})
    assert {"t", "e"} <= set(before.unknown)
    types = {v.name: v.type for op in graph.ops for v in op.results}
    text = observe_sizes(graph, [feed(3), feed(8), feed(40)])
    assert text.startswith(f"{len(observed_values(graph))} values")
    found = liveness(graph, {"N": 100})
    assert not found.unknown
    assert max(found.curve) == pytest.approx(2 * 100 * 64 * 4, rel=0.01)
    assert {v.name: v.type for op in graph.ops for v in op.results} == types
    assert observed_values(graph.clone()) == observed_values(graph)
    assert "observed" in predict_need(graph, {"N": 100}).notes[0]


def test_convolutions_in_blocks_keep_what_runs_showed() -> None:
    """Blocks of channels are made of the values that runs showed, and so is x * Sigmoid(x) in one."""
    graph = parse("""graph @g(%x: f32[N,48], %s: i64[4]) -> (f32[?,48,?,?]) {
  %r = Reshape(%x, %s)
  %w = const() {value=splat(0.5)} : f32[48,48,1,1]
  %c = Conv(%r, %w)
  %d = Sigmoid(%c)
  %m = Mul(%c, %d)
  %t = Transpose(%m) {perm=[2,3,0,1]}
  %y = Transpose(%t) {perm=[2,3,0,1]}
  return %y
}""")
    infer_shapes(graph)
    assert predict_need(graph, {"N": 100}).unknown
    feeds = [{"x": np.zeros((n, 48), np.float32), "s": np.array([1, 48, n, 1], np.int64)} for n in (3, 8, 40)]
    observe_sizes(graph, feeds)
    assert not predict_need(graph, {"N": 100}).unknown


def test_extents_that_runs_disagree_on_stay_unknown() -> None:
    graph = parse(TEXT)
    infer_shapes(graph)
    other = feed(8) | {"s": np.array([-1, 8], np.int64)}
    text = observe_sizes(graph, [feed(3), other, feed(40)])
    assert text.endswith("values have no known size, and count as 0 in planned figures.")
    assert "t" in liveness(graph, {"N": 10}).unknown


def test_a_file_does_not_hold_them() -> None:
    graph = parse(TEXT)
    infer_shapes(graph)
    observe_sizes(graph, [feed(3), feed(8)])
    assert OBSERVED.encode() not in to_proto(graph).SerializeToString()


def test_nothing_open_nothing_run() -> None:
    graph = parse("graph @g(%x: f32[4]) -> (f32[4]) {\n  %y = Relu(%x) : f32[4]\n  return %y\n}")
    assert observe_sizes(graph, [{"x": np.zeros(4, np.float32)}]) == ""


def test_a_compile_plans_with_them_and_says_so() -> None:
    text = TEXT.replace("%s: i64[2]", "%q: i64[N]").replace("Reshape(%x, %s)", "Compress(%x, %b) {axis=0}")
    text = text.replace("  %r =", "  %b = Cast(%q) {to=9} : bool[N]\n  %r =").replace(
        "%k = Shape(%x)", "%k = Shape(%u)"
    )
    proto = to_proto(parse(text.replace("f32[N,64]) {", "f32[M,64]) {").replace(": f32[N,64]\n", ": f32[M,64]\n")))
    result = memoptc.compile(proto, level=1, dims={"N": 64}, measure=False, verify="off")
    assert any("observed in" in warning for warning in result.report.warnings)


def test_rounds_of_a_loop_are_read_one_at_a_time(tmp_path: Path) -> None:
    lines = ['{"cat" : "Node","name" :"memoptc.0_kernel_time","args" : {"output_type_shape" : [{"float":[2,3]}]}}']
    lines += ['{"cat" : "Node","name" :"body_kernel_time","args" : {"output_type_shape" : [{"float":[1]}]}}'] * 50_000
    profile = tmp_path / "run.json"
    profile.write_text("[\n" + ",\n".join(['{"cat" : "Session","name" :"load"}', *lines]) + "\n]\n")
    tracemalloc.start()
    first, *rest = (name for name, _ in islice(node_events(profile), 3))
    total = sum(1 for _ in node_events(profile))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (first, rest, total) == ("memoptc.0", ["body", "body"], 50_001)
    assert peak < 1 << 20
