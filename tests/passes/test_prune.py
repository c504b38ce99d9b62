"""prune: what can go goes with all that reads it, what cannot stays; the gate holds on data kept aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from numbers_of import Feed, feed_of, run

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.parser import parse
from memoptc.ir.verifier import verify
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.correct import output_axis
from memoptc.passes.precision._quantize.matrix import replace_constant
from memoptc.passes.shrink._shrink.units import find_units, remove
from memoptc.passes.shrink.prune import Prune
from memoptc.runtime.data import Data
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions
from memoptc.testing import run_pass


def graph(text: str) -> Graph:
    """A graph with random constants where it says `@N`, N the shape."""
    rng = np.random.default_rng(0)
    parts = text.split("@[")
    whole = parts[0]
    for part in parts[1:]:
        shape, _, rest = part.partition("]")
        values = np.abs(rng.standard_normal([int(d) for d in shape.split(",")])).astype(np.float32) + 0.1
        signed = values * rng.choice([-1, 1], values.shape) if "positive" not in rest.partition("\n")[0] else values
        listed = ",".join(repr(float(np.float32(v))) for v in signed.reshape(-1))
        whole += f"const() {{value=[{listed}]}} : f32[{shape}]{rest}"
    found = parse(whole)
    infer_shapes(found)
    return found


MLP = """graph @mlp(%x: f32[N,6]) -> (f32[*]) {
  %w = @[6,16]
  %a = @[16]
  %v = @[16,5]
  %p = MatMul(%x, %w)
  %b = Add(%p, %a)
  %s = Sigmoid(%b)
  %m = Mul(%b, %s)
  %y = MatMul(%m, %v)
  return %y
}"""
GEMMS = """graph @gemms(%x: f32[N,6]) -> (f32[*], f32[*]) {
  %w = @[16,6]
  %c = @[16]
  %v = @[16,5]
  %u = @[7,16]
  %p = Gemm(%x, %w, %c) {transB=1}
  %r = Relu(%p)
  %y = Gemm(%r, %v)
  %z = Gemm(%r, %u) {transB=1}
  return %y, %z
}"""
CHAIN = """graph @chain(%x: f32[N,3,8,8]) -> (f32[*]) {
  %w = @[16,3,3,3]
  %c = @[16]
  %scale = @[16]
  %shift = @[16]
  %mean = @[16]
  %var = @[16] // positive
  %d = @[16,1,3,3]
  %e = @[16]
  %slope = @[16,1,1]
  %v = @[4,16,3,3]
  %p = Conv(%x, %w, %c) {pads=[1,1,1,1]}
  %n = BatchNormalization(%p, %scale, %shift, %mean, %var)
  %r = PRelu(%n, %slope)
  %f = Conv(%r, %d, %e) {group=16, pads=[1,1,1,1]}
  %q = MaxPool(%f) {kernel_shape=[2,2], strides=[2,2]}
  %y = Conv(%q, %v)
  return %y
}"""
FLAT = """graph @flat(%x: f32[N,3,4,4]) -> (f32[*]) {
  %w = @[8,3,1,1]
  %v = @[128,5]
  %p = Conv(%x, %w)
  %r = Relu(%p)
  %f = Flatten(%r)
  %y = Gemm(%f, %v)
  return %y
}"""
TWICE = """graph @twice(%x: f32[N,6]) -> (f32[*]) {
  %w = @[6,16]
  %v = @[16,8]
  %u = @[8,4]
  %p = MatMul(%x, %w)
  %r = Relu(%p)
  %q = MatMul(%r, %v)
  %t = Tanh(%q)
  %y = MatMul(%t, %u)
  return %y
}"""


def halves(before: Graph) -> tuple[Graph, Graph, int]:
    """Half of all units removed, the same units with nobody listening to them, and how many layers have units."""
    removed, silenced = before.clone(), before.clone()
    rng = np.random.default_rng(1)
    choices = [np.sort(rng.choice(u.count, u.count // 2, replace=False)) for u in find_units(before, frozenset())]
    for units, kept in zip(list(find_units(silenced, frozenset())), choices, strict=True):
        gone = np.setdiff1d(np.arange(units.count), kept)
        for cut in units.cuts:
            if cut.op in units.readers and cut.index == 1 and cut.axis == 1 - output_axis(cut.op):
                tensor = cut.op.operands[1].tensor
                assert tensor is not None
                array = tensor.numpy().copy()
                places = (gone[:, None] * cut.each + np.arange(cut.each)).reshape(-1)
                np.moveaxis(array, cut.axis, 0)[places] = 0.0
                replace_constant(silenced, cut.op, 1, array, "test")
    for units, kept in zip(list(find_units(removed, frozenset())), choices, strict=True):
        remove(removed, units, kept, "test")
    verify(removed)
    return removed, silenced, len(choices)


@pytest.mark.parametrize("text", [MLP, GEMMS, CHAIN, FLAT, TWICE], ids=["mlp", "gemms", "chain", "flat", "twice"])
def test_removing_units_is_as_if_nobody_listened_to_them(text: str) -> None:
    before = graph(text)
    removed, silenced, layers = halves(before)
    assert layers == (2 if text is TWICE else 1)
    feed = feed_of(before, {"N": 3})
    expected, found, whole = run(silenced, feed), run(removed, feed), run(before, feed)
    assert expected is not None
    assert found is not None
    assert whole is not None
    for name, value in expected.items():
        assert np.allclose(value, found[name], atol=1e-4)
        assert not np.allclose(value, whole[name], atol=1e-2)


LAYERS = {
    "charlm": 4, "digits_mlp": 2, "fsmn_vad": 7, "squeezenet_fp32": 9, "tashkeel_fp32": 6, "ultraface_rfb320": 21,
    "selfie_seg_256": 11,
}  # fmt: skip
"""Layers of real models whose units can go."""


@zoo.each_model(skip=tuple(n for n in zoo.NAMES if n not in LAYERS))
def test_removing_units_of_real_models_is_as_if_nobody_listened_to_them(name: str) -> None:
    assert zoo.ZOO is not None
    path = Path(zoo.ZOO.path(name))
    before = read_onnx(onnx.load(path), path.parent)
    for value, tensor in list(before.defaults.items()):
        value.replace_by(before.const(tensor, value.name))
        before.erase_input(value)
    infer_shapes(before)
    removed, silenced, layers = halves(before)
    assert layers == LAYERS[name]
    feed = zoo.ZOO.inputs(name)
    expected, found = (Evaluator(to_proto(one), RunOptions(optimize=False)).run(feed) for one in (silenced, removed))
    for key, value in expected.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
            assert np.abs(value - found[key]).max() <= 1e-3 * max(float(np.abs(value).max()), 1e-3), key


@pytest.mark.parametrize(
    "text",
    [
        MLP.replace("return %y", "return %y, %p").replace("(f32[*])", "(f32[*], f32[*])"),
        MLP.replace("%y = MatMul(%m, %v)", "%n = Softmax(%m)\n  %y = MatMul(%n, %v)"),
        CHAIN.replace("%v = @[4,16,3,3]", "%v = @[4,8,3,3]").replace("Conv(%q, %v)", "Conv(%q, %v) {group=2}"),
        """graph @sum(%x: f32[N,16]) -> (f32[*]) {
  %w = @[16,16]
  %v = @[16,5]
  %p = MatMul(%x, %w)
  %s = Add(%p, %x)
  %y = MatMul(%s, %v)
  return %y
}""",
        """graph @shared(%x: f32[N,16]) -> (f32[*]) {
  %w = @[16,16]
  %p = MatMul(%x, %w)
  %y = MatMul(%p, %w)
  return %y
}""",
    ],
    ids=["seen outside", "mixed", "grouped reader", "residual", "shared weights"],
)
def test_what_others_need_stays(text: str) -> None:
    assert list(find_units(graph(text), frozenset())) == []


def context_for(found: Graph, feeds: list[Feed], folder: Path) -> Context:
    return Context(calibration=Data(feeds, {v.name: v.type for v in found.inputs}), scratch=folder)


def with_copies() -> Graph:
    """Sixteen units, of which eight say the same as the other eight."""
    found = graph(MLP)
    (units,) = find_units(found, frozenset())
    for cut in units.cuts:
        tensor = cut.op.operands[cut.index].tensor
        assert tensor is not None
        array = tensor.numpy().copy()
        half = np.take(array, np.arange(8), cut.axis)
        replace_constant(found, cut.op, cut.index, np.concatenate([half, half], cut.axis), "test")
    return found


def test_units_that_say_what_others_say_go_and_the_others_take_over(tmp_path: Path) -> None:
    found = with_copies()
    before = found.clone()
    feeds: list[Feed] = [feed_of(found, {"N": 16}, seed) for seed in range(16)]
    context = context_for(found, feeds, tmp_path)
    stats = run_pass(Prune(min_sqnr=30.0), found, context)
    assert stats["units removed"] >= 8
    (decision,) = context.decisions
    assert decision.what.endswith("of 16 units removed in 1 of 1 layers")
    assert "dB reached on 4 samples" in decision.why
    feed = feed_of(before, {"N": 64}, 99)
    expected, got = run(before, feed), run(found, feed)
    assert expected is not None
    assert got is not None
    error = np.square(expected["y"] - got["y"]).sum() / np.square(expected["y"]).sum()
    assert -10 * np.log10(error) > 25


def test_the_gate_keeps_what_the_outputs_need(tmp_path: Path) -> None:
    found = graph(MLP)
    feeds: list[Feed] = [feed_of(found, {"N": 16}, seed) for seed in range(8)]
    stats = run_pass(Prune(min_sqnr=90.0), found, context_for(found, feeds, tmp_path))
    assert stats["units removed"] == 0
    assert stats["left: outputs need all units"] == 1


def test_zeros_are_zeros_and_said_to_save_nothing(tmp_path: Path) -> None:
    found = graph(MLP)
    feeds: list[Feed] = [feed_of(found, {"N": 16}, seed) for seed in range(8)]
    context = context_for(found, feeds, tmp_path)
    stats = run_pass(Prune(min_sqnr=10.0, form="zeros"), found, context)
    (op,) = (op for op in found.walk("MatMul") if op.result.name == "y")
    tensor = op.operands[1].tensor
    assert tensor is not None
    assert stats["weights zeroed"] == int((tensor.numpy() == 0).sum()) > 0
    (decision,) = context.decisions
    assert "neither faster nor smaller" in decision.what
    assert decision.gain_bytes == 0


def test_data_and_a_limit_are_needed(tmp_path: Path) -> None:
    found = graph(MLP)
    with pytest.raises(InputError, match="prune needs data"):
        run_pass(Prune(), found, Context(scratch=tmp_path))
    feeds: list[Feed] = [feed_of(found, {"N": 16})]
    with pytest.raises(InputError, match="no limit"):
        run_pass(Prune(min_sqnr=None), found, context_for(found, feeds, tmp_path))
    with pytest.raises(InputError, match="form"):
        Prune(form="rows")
