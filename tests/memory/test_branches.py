"""Branches on paper: one runs as a whole, in a frame of its own, and what it reads is held until it ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from native_models import usable

from memoptc.ir.forms import wrap
from memoptc.ir.onnx_io import to_proto
from memoptc.ir.parser import parse
from memoptc.runtime.memory.branches import as_branched
from memoptc.runtime.memory.default_session import (
    default_order,
    hold_in_frames,
    reuse_by_shape,
    shapes_onnxruntime_knows,
    with_early_outputs,
)
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.profile import AS_PLANNED

IN_ITS_ORDER = replace(AS_PLANNED, mem_reuse=True, file_order=False)
"""As a default session runs a model, but for its arena and patterns."""

GUARDED = """
  %o{k} = If(%large) : f32[512,256]
    region then_branch() -> (f32[512,256]) {{
      %a{k} = Exp(%x{k}) : f32[512,256]
      %b{k} = Sqrt(%a{k}) : f32[512,256]
      %c{k} = Log(%b{k}) : f32[512,256]
      %d{k} = Softmax(%c{k}) : f32[512,256]
      return %d{k}
    }}
    region else_branch() -> (f32[512,256]) {{
      %e{k} = Neg(%x{k}) : f32[512,256]
      return %e{k}
    }}"""


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
def test_branches_share_no_buffers() -> None:
    """Each has a frame of its own: between two of them nothing is kept for the second one to take over."""
    first, second = (GUARDED.format(k=k) for k in (0, 1))
    graph = parse(
        f"""graph @g(%x0: f32[512,256], %n: f32[N]) -> (f32[512,256]) {{
  %shape = Shape(%n) : i64[1]
  %four = const() {{value=[4]}} : i64[1]
  %large = Greater(%shape, %four) : bool[1]{first}
  %wide = Concat(%o0, %o0, %o0, %o0, %o0, %o0) {{axis=0}} : f32[3072,256]
  %narrow = Softmax(%wide) : f32[3072,256]
  %start = const() {{value=[0]}} : i64[1]
  %stop = const() {{value=[512]}} : i64[1]
  %x1 = Slice(%narrow, %start, %stop, %start) : f32[512,256]{second}
  return %o1
}}"""
    )
    session = NativeSession(to_proto(graph).SerializeToString(), IN_ITS_ORDER)
    _, trace = session.record({"x0": np.ones((512, 256), np.float32), "n": np.ones(9, np.float32)})
    branched = as_branched(graph, {"N": 9})
    found = liveness(branched, {"N": 9}, default_order(branched))
    shared = reuse_by_shape(found, shapes_onnxruntime_knows(branched))
    assert max(shared.curve) == pytest.approx(trace.peak_bytes, rel=0.02)


APART = """
  %o{k} = If(%large) : f32[512,256]
    region then_branch() -> (f32[512,256]) {{
      %wide{k} = Concat(%m, %m, %m, %m, %m, %m) {{axis=0}} : f32[3072,256]
      %soft{k} = Softmax(%wide{k}) : f32[3072,256]
      %part{k} = Slice(%soft{k}, %start, %stop, %start) : f32[512,256]
      %sum{k} = Add(%x{k}, %part{k}) : f32[512,256]
      return %sum{k}
    }}
    region else_branch() -> (f32[512,256]) {{
      %e{k} = Neg(%x{k}) : f32[512,256]
      return %e{k}
    }}"""


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
def test_a_branch_runs_as_a_whole() -> None:
    """What depends on inputs alone inside a late branch is not computed before an earlier one."""
    first, second = (APART.format(k=k) for k in (0, 1))
    graph = parse(
        f"""graph @g(%x0: f32[512,256], %m: f32[512,256], %n: f32[N]) -> (f32[512,256]) {{
  %shape = Shape(%n) : i64[1]
  %four = const() {{value=[4]}} : i64[1]
  %start = const() {{value=[0]}} : i64[1]
  %stop = const() {{value=[512]}} : i64[1]
  %large = Greater(%shape, %four) : bool[1]{first}
  %x1 = Tanh(%o0) : f32[512,256]{second}
  return %o1
}}"""
    )
    session = NativeSession(to_proto(graph).SerializeToString(), IN_ITS_ORDER)
    ones = np.ones((512, 256), np.float32)
    _, trace = session.record({"x0": ones, "m": ones, "n": np.ones(9, np.float32)})
    branched = as_branched(graph, {"N": 9}, default_order)
    found = liveness(branched, {"N": 9}, list(branched.ops))
    hold_in_frames(found)
    assert max(found.curve) == pytest.approx(trace.peak_bytes, rel=0.02)
    ran = [op.results[0].name for op in branched.ops]
    assert ran.index("sum0") < ran.index("wide1")  # on its own, that would be the first to run


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
def test_what_a_branch_reads_is_held_until_it_ends() -> None:
    graph = parse(
        """graph @g(%x: f32[512,256], %n: f32[N]) -> (f32[512,256]) {
  %shape = Shape(%n) : i64[1]
  %four = const() {value=[4]} : i64[1]
  %start = const() {value=[0]} : i64[1]
  %stop = const() {value=[512]} : i64[1]
  %large = Greater(%shape, %four) : bool[1]
  %wide = Concat(%x, %x, %x, %x) {axis=0} : f32[2048,256]
  %o = If(%large) : f32[512,256]
    region then_branch() -> (f32[512,256]) {
      %part = Slice(%wide, %start, %stop, %start) : f32[512,256]
      %again = Concat(%part, %part, %part, %part) {axis=0} : f32[2048,256]
      %soft = Softmax(%again) : f32[2048,256]
      %last = Slice(%soft, %start, %stop, %start) : f32[512,256]
      return %last
    }
    region else_branch() -> (f32[512,256]) {
      %e = Slice(%wide, %start, %stop, %start) : f32[512,256]
      return %e
    }
  return %o
}"""
    )
    session = NativeSession(to_proto(graph).SerializeToString(), IN_ITS_ORDER)
    _, trace = session.record({"x": np.ones((512, 256), np.float32), "n": np.ones(9, np.float32)})
    branched = as_branched(graph, {"N": 9}, default_order)
    found = liveness(branched, {"N": 9}, list(branched.ops))
    before = max(found.curve)
    hold_in_frames(found)
    assert max(found.curve) == pytest.approx(trace.peak_bytes, rel=0.02)
    assert before < 0.8 * trace.peak_bytes


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
def test_no_buffers_are_kept_for_others_behind_a_reshape_to_constants() -> None:
    """There onnxruntime would know shapes again, although those of the inputs are hidden from it."""
    body = """  %s{0} = Slice(%{1}, %start, %stop, %start) : f32[1024,64]
  %a{0} = MatMul(%s{0}, %w) : f32[1024,64]
  %b{0} = Concat(%a{0}, %a{0}, %a{0}) {{axis=0}} : f32[3072,64]
  %c{0} = Transpose(%b{0}) {{perm=[1,0]}} : f32[64,3072]
  %d{0} = Reshape(%c{0}, %wide) : f32[3072,64]
"""
    text = f"""graph @g(%x: f32[3,1024,64]) -> (f32[1024,64]) {{
  %w = const() {{value=splat(1)}} : f32[64,64]
  %start = const() {{value=[0]}} : i64[1]
  %stop = const() {{value=[1024]}} : i64[1]
  %wide = const() {{value=[3072,64]}} : i64[2]
  %d0 = Reshape(%x, %wide) : f32[3072,64]
{"".join(body.format(k, f"d{k - 1}") for k in range(1, 4))}  %y = Slice(%d3, %start, %stop, %start) : f32[1024,64]
  return %y
}}"""
    graph = parse(text)
    hidden = to_proto(wrap(graph, shapeless=True))
    _, trace = NativeSession(hidden.SerializeToString(), IN_ITS_ORDER).record({"x": np.ones((3, 1024, 64), np.float32)})
    found = with_early_outputs(liveness(graph, {}, default_order(graph), in_place=False))
    assert max(found.curve) == pytest.approx(trace.peak_bytes, rel=0.02)
    shared = reuse_by_shape(found, shapes_onnxruntime_knows(graph))
    assert max(shared.curve) > 1.05 * trace.peak_bytes
