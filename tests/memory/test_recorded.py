"""The memory model against what onnxruntime really allocates: kernels' workspace, random graphs, real models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_models import usable
from sampled import SAMPLED, built, drawn
from zoo import ZOO, each_model

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, ModelInfo, Op, Output
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.ops import TABLE
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.configuration import AS_WRITTEN
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.workspace import kernel_workspace
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.profile import AS_PLANNED, bind_shapes, profile

pytestmark = pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")

rng = np.random.default_rng(0)
PRODUCERS = {DType.FLOAT: "Neg", DType.BOOL: "Not"}
"""Operators that give any operand of a type."""


def f32(*shape: int) -> Any:
    """Made-up floats."""
    return rng.standard_normal(shape).astype(np.float32)


def u8(*shape: int) -> Any:
    """Made-up codes."""
    return rng.integers(0, 255, shape).astype(np.uint8)


def i8(*shape: int) -> Any:
    """Made-up signed codes."""
    return rng.integers(-127, 127, shape).astype(np.int8)


S, Z, Z8 = np.float32(0.1), np.uint8(3), np.int8(0)
MS = "com.microsoft"


def op(op_type: str, *operands: Any, results: int = 1, domain: str = "", opset: int = 17, **attrs: Any) -> Any:
    """One case: an operator, its inputs first, then its constants (wrapped in a list) or `None`."""
    label = ",".join("x".join(map(str, np.shape(o[0] if isinstance(o, list) else o))) or "-" for o in operands)
    text = ",".join(f"{k}={v}" for k, v in attrs.items())
    return pytest.param(op_type, operands, results, domain, opset, attrs, id=f"{op_type}({label}){text}")


def rnn(kind: str, gates: int, sequence: int, batch: int, both: bool, *, bias: bool, **attrs: Any) -> Any:
    """A recurrent operator with constant weights."""
    d, i, h = 2 if both else 1, 7, 12
    operands = [f32(sequence, batch, i), [f32(d, gates * h, i)], [f32(d, gates * h, h)]]
    operands += [[f32(d, 2 * gates * h)]] if bias else []
    attrs |= {"hidden_size": h, "direction": "bidirectional" if both else "forward"}
    return op(kind, *operands, results=3 if kind == "LSTM" else 2, **attrs)


KERNELS = [
    op("Conv", f32(1, 8, 32, 32), [f32(16, 8, 3, 3)], pads=[1] * 4),
    op("Conv", f32(1, 64, 8, 8), [f32(128, 64, 3, 3)], pads=[1] * 4),
    op("Conv", f32(2, 64, 20), [f32(64, 64, 3)]),
    op("Conv", f32(1, 16, 12, 12), [f32(16, 1, 5, 5)], group=16, strides=[2, 2]),
    op("Conv", f32(1, 64, 16, 16), [f32(32, 64, 1, 1)]),
    op("Conv", f32(1, 64, 16, 16), [f32(32, 64, 1, 1)], strides=[2, 2]),
    op("ConvTranspose", f32(2, 8, 16, 16), [f32(8, 4, 3, 3)], group=2, strides=[2, 2]),
    op("ConvInteger", u8(1, 8, 32, 32), [i8(16, 8, 3, 3)], pads=[1] * 4),
    *(rnn(k, g, s, b, d, bias=w) for k, g in (("LSTM", 4), ("RNN", 1)) for s, b, d, w in (
        (5, 3, False, False), (5, 3, True, True), (1, 1, False, True))),
    *(rnn("GRU", 3, s, b, d, bias=w, linear_before_reset=r) for s, b, d, w in (
        (5, 3, False, False), (5, 3, True, True), (1, 1, False, True)) for r in (0, 1)),
    op("LRN", f32(2, 8, 16, 16), size=5),
    op("Resize", f32(2, 3, 16, 16), None, [np.array([1, 1, 2, 3], np.float32)], mode="linear"),
    op("Resize", f32(2, 3, 16, 16), None, [np.array([1, 1, 2, 2], np.float32)], mode="nearest"),
    op("Einsum", f32(2, 3, 4, 5), f32(2, 3, 6, 5), equation="bhid,bhjd->bhij"),
    op("Einsum", f32(1, 8, 12, 16), f32(1, 8, 10, 16), equation="b h i d, b h j d -> b h i j"),
    op("Einsum", f32(2, 8, 12, 10), f32(2, 10, 8, 16), equation="bhnm,bmhd->bnhd"),
    op("Einsum", f32(5, 6, 7), f32(7, 8), equation="abc,cd->abd"),
    op("QLinearConv", u8(1, 8, 16, 16), [S], [Z], [i8(16, 8, 3, 3)], [S], [Z8], [S], [Z], pads=[1] * 4),
    op("QLinearConv", u8(1, 3, 16, 16), [S], [Z], [i8(16, 3, 3, 3)], [S], [Z8], [S], [Z]),
    op("QLinearConv", u8(1, 8, 16, 16), [S], [Z], [i8(16, 8, 1, 1)], [S], [Z8], [S], [Z]),
    op("QLinearConv", u8(1, 16, 16, 16), [S], [Z], [i8(16, 4, 3, 3)], [S], [Z8], [S], [Z], group=4),
    op("QLinearMatMul", u8(3, 5, 64), [S], [Z], [i8(64, 96)], [S], [Z8], [S], [Z]),
    op("QGemm", u8(50, 64), [S], [Z], [i8(64, 96)], [S], [Z8], None, [S], [Z], domain=MS),
    op("QLinearAveragePool", u8(1, 8, 32, 32), [S], [Z], [S], [Z], domain=MS, kernel_shape=[2, 2], strides=[2, 2]),
    op("DynamicQuantizeMatMul", f32(3, 50, 64), [i8(64, 96)], [S], [Z8], domain=MS),
    op("BiasGelu", f32(3, 50, 64), [f32(64)], domain=MS),
    op("FastGelu", f32(3, 50, 64), [f32(64)], domain=MS),
    op("FusedConv", f32(1, 8, 16, 16), [f32(8, 8, 3, 3)], [f32(8)], domain=MS, pads=[1] * 4, activation="Relu"),
    op("Attention", f32(2, 32, 64), [f32(64, 192)], [f32(192)], domain=MS, num_heads=4),
    op("MultiHeadAttention", f32(2, 32, 64), f32(2, 32, 64), f32(2, 32, 64), domain=MS, num_heads=4),
    op("MultiHeadAttention", f32(2, 48, 68), f32(2, 32, 68), f32(2, 32, 64), domain=MS, num_heads=4, scale=1.0),
    op("MultiHeadAttention", f32(1, 300, 16), f32(1, 200, 16), f32(1, 200, 16), domain=MS, num_heads=2),
    op("MultiHeadAttention", f32(2, 32, 64), f32(2, 32, 64), f32(2, 32, 64), domain=MS, num_heads=4, unidirectional=1),
    op("MultiHeadAttention", f32(2, 32, 64), f32(2, 4, 48, 16), f32(2, 4, 48, 16), domain=MS, num_heads=4),
    op("MultiHeadAttention", f32(2, 32, 64), f32(2, 48, 64), f32(2, 48, 64), None, None, f32(2, 4, 32, 48), domain=MS,
       num_heads=4),
]  # fmt: skip


@pytest.mark.parametrize(("op_type", "operands", "results", "domain", "opset", "attrs"), KERNELS)
def test_the_workspace_of_a_kernel(
    op_type: str, operands: tuple[Any, ...], results: int, domain: str, opset: int, attrs: dict[str, Any]
) -> None:
    """What the table says is what the kernel allocates besides its results, within 1 % and 64 bytes."""
    g = Graph("one", ModelInfo(opset_imports={"": opset, MS: 1}, ir_version=8))
    b = Builder(g)
    values, feed = [], {}
    for index, given_ in enumerate(operands):
        if given_ is None:
            values.append(g.absent())
        elif isinstance(given_, list):
            values.append(b.const(np.asarray(given_[0]), f"c{index}"))
        else:
            feed[f"x{index}"] = given_
            values.append(g.add_input(f"x{index}", TensorType(DType.from_numpy(given_.dtype), given_.shape)))
    made = b.op(op_type, values, attrs, domain=domain, outputs=results)
    g.set_outputs(list(made.results))
    infer_shapes(g)
    session = NativeSession(to_proto(g).SerializeToString(), AS_PLANNED)
    session.run(feed)
    _, trace = session.record(feed)
    scratch = trace.without(frozenset(trace.outputs.values())).peak_bytes
    assert kernel_workspace({})(made) == pytest.approx(scratch, rel=0.01, abs=64)


def _recorded(g: Graph, feed: dict[str, Any]) -> int:
    session = NativeSession(to_proto(g).SerializeToString(), AS_PLANNED)
    return session.record(feed)[1].peak_bytes


@pytest.mark.parametrize("key", SAMPLED)
def test_a_sample_allocates_what_its_definition_says(key: str) -> None:
    """To the byte: results in place or not, views, workspace.

    Operands that may be overwritten are results of other ops, which die here, and float results are reduced to a
    number: then one buffer more, or less, moves the peak.
    """
    for seed in range(3):
        op, feed = built(key, drawn(key, seed))
        g = op.graph
        assert g is not None
        for index, value in enumerate(op.operands):
            if index in (0, *TABLE[key].in_place) and value.is_input and value.dtype in PRODUCERS:
                before = g.insert_before(op, Op(PRODUCERS[value.dtype], [value], [value.type]))
                op.set_operand(index, before.result)
        outputs = [
            g.append(Op("ReduceMax", [r], [None], {"keepdims": 0})).result if r.dtype == DType.FLOAT else r
            for r in op.results
        ]
        g.set_outputs(outputs, [Output(f"z{i}") for i in range(len(outputs))])
        infer_shapes(g)
        found = liveness(g, {}, alignment=1, fused=False, workspace=kernel_workspace({}, fused=False))
        assert max(found.curve, default=0) == _recorded(g, feed), f"{op}, seed {seed}"


HOISTED = ("Shape", "Size", "Cast")
"""onnxruntime runs Shape and Size early whatever the order says, and drops pairs of casts even unoptimized."""


@given(st.integers(0, 2**32 - 1))
def test_random_graphs_allocate_what_the_model_says(seed: int) -> None:
    """To the byte, whatever is in place, a view, unused, or returned."""
    g = graphs.random_graph(seed, 12, control=False)
    if any(o.op_type in HOISTED for o in g.ops):
        return
    found = liveness(g, graphs.BINDINGS, alignment=1, fused=False)
    assert max(found.curve, default=0) == _recorded(g, graphs.feeds(g))


UNKNOWN = {"silero_vad": "its If branches give different shapes, so sizes behind them are not known"}


def _check_model(path: Any, feed: dict[str, Any], most: float) -> None:
    g = read_onnx(path)
    infer_shapes(g)
    point = profile(g, bind_shapes(g, feed), configuration=AS_WRITTEN)
    session = NativeSession(str(path), AS_PLANNED)
    _, trace = session.record(feed)
    session.close()
    assert point.planned_peak_bytes == pytest.approx(trace.peak_bytes, rel=most, abs=1024)


@each_model()
def test_real_models_allocate_what_the_model_says(name: str) -> None:
    """With onnxruntime's optimizer off: within 5 % in every size (what is not known is named)."""
    assert ZOO is not None
    for variant in (None, *ZOO.meta(name).get("variants", {})):
        _check_model(ZOO.path(name), ZOO.inputs(name, variant), 0.05)


@each_model(nightly=("fns_candy", "long_attention_4k"))  # ten seconds each; unfrozen they run always
def test_frozen_models_allocate_what_the_model_says(name: str, tmp_path: Any) -> None:
    """The same for what onnxruntime's extended optimization leaves."""
    from memoptc.runtime.freeze import optimize

    assert ZOO is not None
    frozen = tmp_path / "frozen.onnx"
    optimize(ZOO.path(name), frozen)
    most = 0.25 if name in UNKNOWN else 0.05
    for variant in (None, *ZOO.meta(name).get("variants", {})):
        _check_model(frozen, ZOO.inputs(name, variant), most)


def test_what_the_table_does_not_know_counts_as_nothing() -> None:
    g = Graph("one", ModelInfo(opset_imports={"": 17}, ir_version=8))
    b = Builder(g)
    x = g.add_input("x", TensorType(DType.FLOAT, None))
    w = b.const(f32(8, 8, 3, 3), "w")
    made = b.op("Conv", [x, w])
    g.set_outputs([made.result])
    workspace: Callable[[Any], int] = kernel_workspace({})
    assert workspace(made) == 0
    with pytest.raises(InputError):
        NativeSession(b"")
