"""Batch separability: what is proven gives the same samples in any split, and what mixes samples is not proven."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from runtime_models import convolutions, mlp, parse

from memoptc.ir.batch import NotSeparableError, separable_batch
from memoptc.ir.core import Graph
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.ops import names_where
from memoptc.ir.parser import parse as parse_text
from memoptc.testing import random_graph

RNG = np.random.default_rng(0)


def graph(model: onnx.ModelProto) -> Graph:
    """Read a model and infer its shapes."""
    read = read_onnx(model)
    infer_shapes(read)
    return read


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """In onnxruntime, node by node."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


MASKED = """masked (int64[N, S] ids, bool[N, S] mask) => (float[N, S, 8] y) {
    n = Shape <start = 0, end = 1> (ids)  s = Shape <start = 1, end = 2> (ids)
    none = Constant <value = int64[0] {}> ()
    n0 = Reshape(n, none)  s0 = Reshape(s, none)
    rows = Range(zero, n0, one)  columns = Range(zero, s0, one)
    last = Constant <value = int64[1] {-1}> ()  two = Constant <value = int64[2] {1, 2}> ()
    ends = Constant <value = int64[2] {0, 2}> ()
    r = Unsqueeze(rows, two)  c = Unsqueeze(columns, ends)
    c1 = Squeeze(c, ends)  c2 = Reshape(c1, spread)
    full = Concat <axis = 0> (n, s, unit)
    r2 = Expand(r, full)  c3 = Expand(c2, full)
    where = Concat <axis = 2> (r2, c3)
    kept = GatherND(mask, where)
    e = Gather(table, ids)
    k = Unsqueeze(kept, last)
    k2 = Cast <to = 1> (k)
    flat = Constant <value = int64[2] {-1, 8}> ()
    f = Reshape(e, flat)
    g = MatMul(f, w)
    eight = Constant <value = int64[1] {8}> ()
    back = Concat <axis = 0> (n, s, eight)
    h = Reshape(g, back)
    y = Mul(h, k2)
}"""


def masked() -> onnx.ModelProto:
    """Tokens with a mask that is looked up by the numbers of samples, as torch exports it; rows of a product merged."""
    return parse(
        MASKED,
        18,
        spread=np.array([1, -1, 1]),
        unit=np.array([1]),
        zero=np.array(0),
        one=np.array(1),
        table=RNG.standard_normal((5, 8)).astype(np.float32),
        w=RNG.standard_normal((8, 8)).astype(np.float32),
    )


@pytest.mark.parametrize("model", [mlp(), convolutions(), masked()], ids=["mlp", "convolutions", "masked"])
def test_what_is_proven_holds_in_onnxruntime(model: onnx.ModelProto) -> None:
    found = separable_batch(graph(model))
    feed: dict[str, Any] = {
        "x": RNG.standard_normal((5, *([16] if len(model.graph.node) == 3 else [3, 16, 16]))).astype(np.float32),
        "ids": RNG.integers(0, 5, (5, 7)),
        "mask": RNG.integers(0, 2, (5, 7)).astype(bool),
    }
    runner = session(model)
    names = [i.name for i in runner.get_inputs()]
    assert found.inputs == dict.fromkeys(names, 0)
    (whole,) = runner.run(None, {n: feed[n] for n in names})
    parts = [runner.run(None, {n: feed[n][a:b] for n in names})[0] for a, b in ((0, 1), (1, 3), (3, 5))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)


MIXES = {
    "a sum over samples": "y = ReduceSum <keepdims = 0> (x, zero)  z = Add(x, y)",
    "a softmax over samples": "z = Softmax <axis = 0> (x)",
    "a mean by the number of samples": "n = Shape(x) m = Cast <to = 1> (n) z = Div(x, m)",
    "samples beside each other": "t = Transpose <perm = [1, 0]> (x) z0 = MatMul(x, t) z = MatMul(z0, x)",
    "samples turned round": "z = Slice(x, last, before, zero, last)",
    "samples moved": "z = Concat <axis = 0> (half, x)",
    "a scale for all": "q, s, p = DynamicQuantizeLinear(x)  z = DequantizeLinear(q, s, p)",
    "the number of a sample": "s = Shape(x) n = Gather(s, nought) r = Range(nought, n, unit) "
    "f = Cast <to = 1> (r) u = Unsqueeze(f, one) z = Add(x, u)",
    "rows that change hands": "s = Constant <value = int64[2] {2, -1}> () a = Reshape(x, s) "
    "t = Transpose <perm = [1, 0]> (a) b = Shape(x) z = Reshape(t, b)",
    "noise": "r = RandomNormalLike(x) z = Add(x, r)",
}


@pytest.mark.parametrize("body", MIXES.values(), ids=MIXES.keys())
def test_what_mixes_samples_is_refused(body: str) -> None:
    model = parse(
        f"mixes (float[N, 2] x) => (float[M, 2] z) {{ {body} }}",
        18,
        zero=np.array([0]), one=np.array([1]), last=np.array([-1]), before=np.array([-9999]),
        nought=np.array(0), unit=np.array(1), half=np.zeros((1, 2), np.float32),
    )  # fmt: skip
    with pytest.raises(NotSeparableError, match="'"):
        separable_batch(graph(model))


@pytest.mark.parametrize("op", sorted(names_where(lambda o: o.rounds_by_position)))
def test_kernels_that_round_by_position_are_named(op: str) -> None:
    model = parse(f"rounds (float[N, 37] x) => (float[N, 37] y) {{ y = {op}(x) }}", 18)
    assert op in separable_batch(graph(model)).reorders


def test_random_graphs_keep_what_is_proven() -> None:
    proven = 0
    for seed in range(300):
        made = random_graph(seed, control=False)
        infer_shapes(made)
        try:
            found = separable_batch(made)
        except NotSeparableError:
            continue
        runner = session(to_proto(made))
        extents = {v.name: [d if isinstance(d, int) else 6 for d in v.shape or ()] for v in made.inputs}
        feed = {}
        for port in runner.get_inputs():
            kind = np.dtype(np.float32) if "float" in port.type else np.dtype(port.type[7:-1].replace("bool", "bool_"))
            feed[port.name] = np.array(RNG.standard_normal(extents[port.name]) * 2, kind)
        whole = runner.run(None, feed)
        cut = {n: np.split(v, [1, 4], found.inputs[n]) if n in found.inputs else [v] * 3 for n, v in feed.items()}
        parts = [runner.run(None, {n: v[i] for n, v in cut.items()}) for i in range(3)]
        for index, (name, axis) in enumerate(found.outputs.items()):
            joined = np.concatenate([p[index] for p in parts], axis)
            np.testing.assert_allclose(joined, whole[index], rtol=1e-4, atol=1e-4, err_msg=f"seed {seed}, {name}")
        proven += 1
    assert proven >= 8


def test_a_branch_that_returns_samples_of_outside_mixes_them() -> None:
    """The use is that of the branch's return, which is no operator."""
    text = """graph @g(%x: f32[N,4], %c: bool[]) -> (f32[N,N]) {
      %i = If(%c)
        region then_branch() -> (f32[N,4]) {
          return %x
        }
        region else_branch() -> (f32[N,4]) {
          return %x
        }
      %t = Transpose(%i) {perm=[1,0]} : f32[4,N]
      %y = MatMul(%x, %t) : f32[N,N]
      return %y
    }"""
    with pytest.raises(NotSeparableError):
        separable_batch(parse_text(text))
