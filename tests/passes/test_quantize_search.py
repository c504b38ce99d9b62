"""quantize-search: the layer that fails is found and named; accuracy asked for is met at the least cost, or exit 3."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from accuracy_models import CNN, DATA, FLAGS, data_for, failing_model
from decoders import Style, decoder
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from runtime_models import normal, parse

from memoptc.api import compile as compile_model
from memoptc.cli.main import main
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.layer_precision import LayerPrecision
from memoptc.passes.precision._quantize.tradeoff import (
    Layer,
    StateChange,
    greedy_moves,
    needed,
    shortest,
)
from memoptc.passes.precision.quantize_search import QuantizeSearch
from memoptc.runtime.data import Data, Sample
from memoptc.runtime.metric import Outcome
from memoptc.runtime.quality import Examiner


def test_the_layer_with_outliers_is_found_named_and_kept(tmp_path: Path) -> None:
    model, data = failing_model(tmp_path / "m.onnx"), data_for(tmp_path / "data")
    plain = compile_model(model, 2, "int8", calibration=data, passes="quantize", verify="fast", force=True)
    assert plain.report.verification["outputs"][0]["sqnr_db"] < 15.0
    found = compile_model(model, 2, "int8", calibration=data, min_sqnr=28.0)
    precision = found.report.to_json()["precision"]
    decided = {row["layer"]: row["decision"] for row in precision["layers"]}
    assert list(decided) == [f"product_{i}" for i in range(5)]
    assert decided["product_3"] != "integer"
    assert list(decided.values()).count("integer") >= 3
    assert min(precision["layers"], key=lambda row: row["alone_db"])["layer"] == "product_3"
    assert precision["reached"]["sqnr_db"] >= 28.0
    assert found.report.verification["outputs"][0]["sqnr_db"] >= 28.0
    assert any(d.what.startswith("product_3") for d in found.report.decisions)
    # weights of all layers are integers still, where that is enough
    assert decided["product_3"] == "integer weights"
    assert found.report.candidate.weight_bytes < 0.35 * found.report.control.weight_bytes


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 12), st.integers(5, 20))
def test_a_search_of_few_looks_still_meets_what_is_asked(count: int, enough: int, guess: int, looks: int) -> None:
    moves = [StateChange(f"l{i}", LayerPrecision.FLOAT, 1.0, 1.0) for i in range(count)]
    measured = []

    def good(chosen: Sequence[StateChange]) -> bool:
        measured.append(len(chosen))
        return len(chosen) >= enough

    chosen = shortest(moves, good, guess, looks=looks)
    assert (chosen is None) == (enough > count)
    assert chosen is None or len(chosen) >= enough
    assert len(measured) <= looks + 1


@pytest.mark.parametrize(("asked", "coded"), [("none", True), ("200.0", False)])
def test_weights_alone_are_coded_where_that_is_accurate_enough(asked: str, coded: bool) -> None:
    steps = f"quantize-search{{min_sqnr={asked},weights_only=true}},drop-dead,lower"
    report = compile_model(CNN, 2, "int8", **DATA, passes=steps, measure=False).report
    assert (report.candidate.weight_bytes < 0.35 * report.control.weight_bytes) == coded
    reached = report.verification["outputs"][0]["sqnr_db"]  # None: the same numbers
    assert (reached is not None and reached > 30.0) if coded else reached is None


def test_no_fallback_ends_with_3_and_names_the_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = failing_model(tmp_path / "m.onnx"), data_for(tmp_path / "data")
    output = tmp_path / "out.onnx"
    flags = ["--target=int8", f"--calibration={data}", "--min-sqnr=28", "--no-fallback", "--no-measure", "-q"]
    assert main([str(model), f"--output={output}", *flags]) == 3
    said = capsys.readouterr().err
    assert "28 dB was asked for" in said
    assert "product_3" in said
    assert "dB was reached" in said
    assert not output.exists()
    assert main([str(model), f"--output={output}", *flags, "--force", "--verify=off"]) == 0
    assert "28 dB was asked for" in capsys.readouterr().err
    assert output.exists()


def test_accuracy_on_labels_is_kept() -> None:
    found = compile_model(CNN, 2, "int8", **DATA, max_accuracy_loss=0.0)
    reached = found.report.to_json()["precision"]["reached"]
    assert reached["metric"] >= reached["metric_before"]
    assert found.report.accuracy is not None
    assert found.report.accuracy["candidate"] >= found.report.accuracy["control"]


def test_a_metric_of_the_users_own_decides() -> None:
    def worst_margin(outcomes: Iterable[Outcome]) -> float:
        return -max(float(np.abs(next(iter(o.outputs.values()))).max()) for o in outcomes)

    easy = compile_model(CNN, 2, "int8", **DATA, metric=worst_margin, max_accuracy_loss=10.0)
    hard = compile_model(CNN, 2, "int8", **DATA, metric=worst_margin, max_accuracy_loss=0.0)
    assert easy.report.precision is not None
    assert hard.report.precision is not None
    assert not easy.report.precision["layers"]
    reached = hard.report.precision["reached"]
    assert reached["metric"] >= reached["metric_before"]
    with pytest.raises(InputError, match="what may be lost"):
        compile_model(CNN, 2, "int8", **DATA, metric=worst_margin)


def test_asked_for_more_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"dB was reached; what costs most: node_Conv"):
        compile_model(CNN, 2, "int8", **DATA, min_sqnr=60.0, fallback=False)
    all_float = compile_model(CNN, 2, "int8", **DATA, min_sqnr=120.0)
    assert {row["decision"] for row in all_float.report.to_json()["precision"]["layers"]} == {"float"}
    with pytest.raises(InputError, match="with --calibration only"):
        compile_model(CNN, 2, "int8", min_sqnr=20.0)
    with pytest.raises(InputError, match="int8, uint8, int4, mixed"):
        compile_model(CNN, 2, "float16", calibration=DATA["calibration"], min_sqnr=20.0)


def test_study_prints_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--layers", str(CNN), *FLAGS, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["layers"]) == 8
    assert all(row["measured"] and row["decision"] == "integer" for row in found["layers"])
    assert main(["study", "--layers", str(CNN), *FLAGS, "--min-sqnr=45", "-q"]) == 0
    out = capsys.readouterr().out
    assert "node_linear" in out
    assert "integer weights" in out or "float" in out


def test_the_same_data_gives_the_same_model() -> None:
    first, second = (compile_model(CNN, 2, "int8", **DATA, min_sqnr=42.0) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_operators_of_an_old_opset_are_imported(tmp_path: Path) -> None:
    text = "g (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) { c = Conv(x, w, b) y = Relu(c) }"
    weights = {"w": normal(4, 3, 3, 3, seed=1), "b": normal(4, seed=2)}
    feeds = [{"x": normal(1, 3, 8, 8, seed=s)} for s in range(3, 7)]
    for least in (20.0, 60.0):
        found = compile_model(parse(text, 11, **weights), 2, "int8", calibration=feeds, min_sqnr=least)
        assert found.report.verification["passed"]
        assert found.report.precision is not None
        assert found.report.precision["reached"]["sqnr_db"] >= least


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_weights_become_integers(direction: str) -> None:
    ways = 2 if direction == "bidirectional" else 1
    text = (
        f"g (float[S, N, 24] x) => (float[S, {ways}, N, 32] y, float[{ways}, N, 32] h) "
        f'{{ y, h = LSTM <hidden_size=32, direction="{direction}"> (x, w, r, b) }}'
    )
    weights = {
        "w": normal(ways, 128, 24, seed=1, scale=0.2),
        "r": normal(ways, 128, 32, seed=2, scale=0.2),
        "b": normal(ways, 256, seed=3, scale=0.2),
    }
    feeds = [{"x": normal(9, 2, 24, seed=s)} for s in range(4, 12)]
    found = compile_model(parse(text, **weights), 2, "int8", calibration=feeds, min_sqnr=30.0)
    assert [op.op_type for op in found.graph.walk() if op.domain == "com.microsoft"] == ["DynamicQuantizeLSTM"]
    assert found.report.candidate.weight_bytes < 0.35 * found.report.control.weight_bytes
    assert min(o["sqnr_db"] for o in found.report.verification["outputs"]) >= 30.0
    kept = compile_model(parse(text, **weights), 2, "int8", calibration=feeds, min_sqnr=100.0)
    assert [op.op_type for op in kept.graph.walk("LSTM")] == ["LSTM"]


FIGURE = st.floats(1e-6, 1e-2)
LAYER = st.tuples(FIGURE, st.floats(0, 1), st.floats(0, 1), st.integers(1, 1000), st.integers(1, 1000), st.booleans())


@given(st.lists(LAYER, min_size=1, max_size=5), st.booleans())
@example(  # what the last move of a layer was built upon goes when that goes
    [(2**-7, 0.0, 0.0, 1, 1, False), (2**-7, 0.0, 0.0, 4, 3, False), (2**-8, 0.25, 0.0, 1, 1, True)], False
)
def test_the_choice_meets_what_is_asked_at_no_avoidable_cost(
    figures: list[tuple[float, float, float, int, int, bool]], mixed: bool
) -> None:
    layers = []
    for i, (noise, share, blocks, nbytes, work, product) in enumerate(figures):
        states = {LayerPrecision.INT8: {"y": noise}}
        states |= {LayerPrecision.INT8_WEIGHTS: {"y": noise * share}} if product else {}
        states |= {LayerPrecision.INT4_WEIGHTS: {"y": blocks * 1e-2}} if mixed else {}
        layers.append(Layer(f"l{i}", "Conv", nbytes, float(work), states, True))
    steps = greedy_moves(layers)

    def noise_of(chosen: Sequence[StateChange]) -> float:
        found = steps.states(chosen)
        return sum(layer.alone(found[layer.name]) for layer in layers)

    limit = noise_of([]) / 3
    for guess in (1, needed(layers, steps, limit)):
        chosen = shortest(steps.moves, lambda m: noise_of(m) <= limit, guess)
        assert chosen is not None
        assert noise_of(chosen) <= limit
        if len({m.layer for m in chosen}) == len(chosen):  # no move builds upon another
            for move in chosen[1:]:
                assert noise_of([m for m in chosen if m is not move]) > limit
    assert steps.states(steps.moves) == {layer.name: LayerPrecision.FLOAT for layer in layers}
    assert noise_of(steps.moves[: needed(layers, steps, limit)]) <= limit * (1 + 1e-9)
    assert shortest(steps.moves, lambda m: False) is None
    kept = greedy_moves(layers, floats=False)
    assert LayerPrecision.FLOAT not in kept.states(kept.moves).values()


@pytest.mark.parametrize(("target", "asked"), [("int8", None), ("int4", 25.0)])
def test_weights_of_a_decoder_are_read_as_codes_at_every_step(target: str, asked: float | None) -> None:
    """Codes for integer products, and of 8 bits per channel, would be decoded anew, as a whole, for each token."""
    rng = np.random.default_rng(0)
    data = [{"input_ids": rng.integers(0, 97, (1, 24))} for _ in range(4)]
    result = compile_model(decoder(Style(width=32)), 2, target, calibration=data, min_sqnr=asked)
    kinds = Counter(op.op_type for op in result.graph.walk())
    assert kinds["DequantizeLinear"] == 0
    bits = Counter(op.attrs["bits"] for op in result.graph.walk("com.microsoft::MatMulNBits"))
    assert (bits.keys() == {4, 8}) if asked else (bits == {int(target.removeprefix("int")): 15})
    assert {op.attrs["accuracy_level"] for op in result.graph.walk("com.microsoft::MatMulNBits")} == {4}
    assert result.report.verification["passed"]
    assert target == "int4" or any("weights of a decoder" in decision.what for decision in result.report.decisions)


def _products(path: Path) -> Path:
    """Two products; what the second reads is as large as the samples are."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=s, scale=s[0] ** -0.5).astype(np.float32) for s in ((16, 64), (64, 48)))
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["p"], name="first"),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 48])],
        [numpy_helper.from_array(first, "w0"), numpy_helper.from_array(second, "w1")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_with_data_samples_that_reach_further_err_no_more_than_without(tmp_path: Path) -> None:
    model, rng = _products(tmp_path / "m.onnx"), np.random.default_rng(1)
    data = [{"x": rng.standard_normal((1, 16), np.float32)} for _ in range(20)]
    compile_model(model, 2, "int8", calibration=data, measure=False).save(tmp_path / "a.onnx")
    compile_model(model, 2, "int8", measure=False).save(tmp_path / "b.onnx")
    further = [{"x": 3 * rng.standard_normal((1, 16), np.float32)} for _ in range(20)]
    examiner = Examiner(model, [Sample(feed, None, "further") for feed in further])
    errs = [examiner.full(path).sqnr_db for path in (tmp_path / "a.onnx", tmp_path / "b.onnx")]
    assert errs[0] > errs[1] - 0.5
    assert (tmp_path / "a.onnx").stat().st_size < 1.1 * (tmp_path / "b.onnx").stat().st_size


def test_what_data_chose_is_dropped_where_unseen_samples_are_more_exact_without(tmp_path: Path) -> None:
    """What is fitted shows one direction only, and loudly; what is held out shows all."""
    model = parse(
        "g (float[N, 64] x) => (float[N, 64] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        a=normal(64, 64, seed=1),
        b=normal(64, 64, seed=2),
    )
    rng = np.random.default_rng(0)
    loud, held_out = 10 * rng.standard_normal((1, 64), np.float32), rng.standard_normal((4, 1, 64), np.float32)
    data = [{"x": held_out[i // 5] if i % 5 == 4 else loud * np.float32(1 + 0.01 * i)} for i in range(20)]
    found = compile_model(model, 2, "int8", calibration=data, measure=False)
    assert ("quantize", "the form that needs no data") in [(d.step, d.what) for d in found.report.decisions]
    compile_model(model, 2, "int8", measure=False).save(tmp_path / "without.onnx")
    examiner = Examiner(model, [Sample({"x": x}, None, "held out") for x in held_out])
    without = examiner.full(tmp_path / "without.onnx").sqnr_db
    assert found.report.verification["outputs"][0]["sqnr_db"] == pytest.approx(without, abs=0.05)


def test_a_form_that_is_more_exact_but_costs_more_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = Path(CNN)
    flags = ["--target=int8", f"--calibration={DATA['calibration']}", f"--validation={DATA['validation']}"]
    assert main([str(model), *flags, "--no-measure", f"--output={tmp_path / 'm.onnx'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not chosen: the form that needs no data has" in said
    assert "give the data as --validation instead of --calibration" in said
    assert "million multiplications take instead of 0" in said
    assert main([str(model), *flags[:1], flags[2], "--no-measure", f"--output={tmp_path / 'm.onnx'}"]) == 0
    assert "not chosen" not in capsys.readouterr().out


@pytest.mark.parametrize(("extent", "taken"), [(8, True), (64, False)])
def test_the_form_without_data_is_taken_where_no_run_would_show_what_it_costs(extent: int, taken: bool) -> None:
    """A small convolution before large products may compute in float; one that does most of the work pays in codes."""
    model = parse(
        f"g (float[N, 1, {extent}, {extent}] x) => (float[N, 64] y) {{"
        " c = Conv<pads = [1, 1, 1, 1]>(x, k) r = Relu(c)"
        f" p = AveragePool<kernel_shape = [{extent // 8}, {extent // 8}], strides = [{extent // 8}, {extent // 8}]>(r)"
        " f = Flatten(p) h = MatMul(f, a) s = Relu(h) y = MatMul(s, b) }",
        k=normal(8, 1, 3, 3, seed=1),
        a=normal(512, 256, seed=2),
        b=normal(256, 64, seed=3),
    )
    rng = np.random.default_rng(0)
    loud = 10 * rng.standard_normal((1, 1, extent, extent), np.float32)
    held_out = rng.standard_normal((4, 1, 1, extent, extent), np.float32)
    data = [{"x": held_out[i // 5] if i % 5 == 4 else loud * np.float32(1 + 0.01 * i)} for i in range(20)]
    found = compile_model(model, 2, "int8", calibration=data, measure=False)
    assert (("quantize", "the form that needs no data") in [(d.step, d.what) for d in found.report.decisions]) == taken
    assert any(d.step == "not chosen" for d in found.report.decisions) != taken


def test_a_convolution_among_floats_keeps_its_activations_where_their_codes_cost_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(32, 3, 4, 4), scale=0.15).astype(np.float32)
    kernel[0] *= 300  # a channel whose range all others share
    weights = {
        "k": kernel,
        "gain": np.ones(32, np.float32),
        "w0": rng.normal(size=(32, 256), scale=32**-0.5).astype(np.float32),
        "w1": rng.normal(size=(256, 64), scale=256**-0.5).astype(np.float32),
        "reach": np.float32([300] + [1] * 31),
        "rows": np.array([0, 32, -1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="patches", strides=[4, 4]),
        helper.make_node("Reshape", ["c", "rows"], ["f"]),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Div", ["t", "reach"], ["e"], name="even_out"),
        helper.make_node("LayerNormalization", ["e", "gain"], ["n"]),
        helper.make_node("MatMul", ["n", "w0"], ["p"], name="up"),
        helper.make_node("Tanh", ["p"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["y"], name="down"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 64])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), model)
    data = [{"x": rng.standard_normal((1, 3, 32, 32), np.float32)} for _ in range(10)]
    found = compile_model(model, 2, "int8", calibration=data, measure=False, passes="quantize-search")
    assert any("patches: with weights in 8 bits" in d.what for d in found.report.decisions)
    assert found.report.verification["outputs"][0]["sqnr_db"] > 30.0


@pytest.mark.parametrize(("side", "in_float"), [(2, True), (12, False)])
def test_convolutions_that_gain_no_time_from_integers_compute_in_float(side: int, in_float: bool) -> None:
    """Their weights are constants once onnxruntime has loaded them: decoded in each run they cost time."""
    names, channels = ("w1", "w2", "w3"), 64
    body = " ".join(
        f"a{i} = Conv<pads=[1, 1, 1, 1]>(r{i}, {name}) r{i + 1} = Relu(a{i})" for i, name in enumerate(names)
    )
    shape = f"float[1, {channels}, {side}, {side}]"
    weights = {n: normal(channels, channels, 3, 3, seed=i, scale=0.06) for i, n in enumerate(names)}
    model = parse(f"g ({shape} r0) => ({shape} r3) {{ {body} }}", 13, **weights)
    feeds = [{"r0": normal(1, channels, side, side, seed=i) ** 7} for i in range(20)]
    graph = read_onnx(model)
    infer_shapes(graph)
    QuantizeSearch().run(graph, Context(calibration=Data(feeds, {v.name: v.type for v in graph.inputs})))
    decoders = {op.operands[1].op.op_type for op in graph.walk("Conv") if op.operands[1].op is not None}
    assert decoders == ({"Gather"} if in_float else {"DequantizeLinear"})
    assert in_float == (not any(graph.walk("QuantizeLinear")))


@pytest.mark.parametrize(("taps", "fallback", "in_float"), [(9, True, True), (3, True, False), (9, False, False)])
def test_a_convolution_whose_columns_of_codes_outgrow_the_model_computes_in_float(
    taps: int, fallback: bool, in_float: bool
) -> None:
    """Of 9 x 9 taps there are 81 copies of an image."""
    weights = {"w1": normal(16, 3, 3, 3, scale=0.2), "w2": normal(3, 16, taps, taps, seed=1, scale=0.03)}
    body = f"a = Conv<pads=[1, 1, 1, 1]>(x, w1) r = Relu(a) y = Conv<pads={[taps // 2] * 4}>(r, w2)"
    model = parse(f"g (float[1, 3, 128, 128] x) => (float[1, 3, 128, 128] y) {{ {body} }}", 13, **weights)
    feeds = [{"x": normal(1, 3, 128, 128, seed=i)} for i in range(2)]
    graph = read_onnx(model)
    infer_shapes(graph)
    context = Context(calibration=Data(feeds, {v.name: v.type for v in graph.inputs}))
    QuantizeSearch(min_sqnr=5.0, fallback=fallback).run(graph, context)
    weight = list(graph.walk("Conv"))[-1].operands[1].op
    assert weight is not None
    assert weight.is_a("DequantizeLinear") != in_float
    assert any(d.what.endswith(": in float") for d in context.decisions) == in_float
