"""early-exit: confident batches end early, all others are computed as before; agreement holds on data kept aside."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import pytest
from encoders import encoder

from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.verifier import verify
from memoptc.pass_base import Context
from memoptc.passes.shrink._exit.heads import Head, fit_head, threshold_for
from memoptc.passes.shrink._exit.scores import class_scores
from memoptc.passes.shrink.early_exit import EarlyExit
from memoptc.runtime.data import Data
from memoptc.runtime.loss_bound import disagreements, samples_for
from memoptc.testing import run_pass

Floats = npt.NDArray[np.float32]
MODEL = encoder(4, 9, readout="first")


def data(samples: int, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.standard_normal((1, 9, 8)).astype(np.float32)} for _ in range(samples)]
    return Data(feeds, {value.name: value.type for value in read_onnx(MODEL).inputs})


def exited(options: EarlyExit, context: Context) -> tuple[onnx.ModelProto, Counter[str]]:
    graph = read_onnx(MODEL)
    stats = run_pass(options, graph, context)
    verify(graph)
    return to_proto(graph), stats


@lru_cache(4)
def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, x: Floats) -> Floats:
    found: Floats = session(model.SerializeToString()).run(None, {"x": x})[0]
    return found


def inputs(batch: int, seed: int = 5) -> Floats:
    return np.random.default_rng(seed).standard_normal((batch, 9, 8)).astype(np.float32)


def test_threshold_one_is_the_whole_model_bit_for_bit() -> None:
    model, stats = exited(EarlyExit(threshold=1.0), Context(calibration=data(64)))
    assert stats["exits"] == 1
    for batch in (1, 3):
        np.testing.assert_array_equal(run(model, inputs(batch)), run(MODEL, inputs(batch)))


def test_threshold_zero_is_the_head_alone() -> None:
    """The scores come from a linear map of the pooled hidden state, whatever the input."""
    model, _ = exited(EarlyExit(threshold=0.0), Context(calibration=data(64)))
    branch = next(node for node in model.graph.node if node.op_type == "If")
    x = inputs(50)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.add().name = next(
        captured
        for attribute in branch.attribute
        if attribute.name == "then_branch"
        for node in attribute.g.node
        for captured in node.input
    )
    np.testing.assert_array_equal(run(model, x), run(copy, x))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_goes_the_way_of_its_hardest_sample(batch: int) -> None:
    options = EarlyExit(max_disagreement=0.3)
    model, stats = exited(options, Context(calibration=data(200)))
    assert stats["exits"] >= 1
    early = 0
    for seed in range(20):
        x = inputs(batch, seed)
        whole, found = run(MODEL, x), run(model, x)
        alone = [run(model, x[i : i + 1]) for i in range(batch)]
        same = [np.array_equal(one, run(MODEL, x[i : i + 1])) for i, one in enumerate(alone)]
        early += not any(same)
        if any(same):
            np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    assert early, "some batch of easy samples leaves early"


def test_agreement_holds_on_other_data() -> None:
    options = EarlyExit(max_disagreement=0.2)
    context = Context(calibration=data(300), validation=data(100, seed=1))
    model, stats = exited(options, context)
    assert stats["exits"] >= 1
    x = inputs(1, 9)
    agree = [run(model, x := inputs(1, seed)).argmax() == run(MODEL, x).argmax() for seed in range(100, 200)]
    assert np.mean(agree) >= 0.8 - 0.08
    assert "validation samples" in context.decisions[-1].why


def test_too_few_samples_are_named_with_how_many_it_takes() -> None:
    context = Context(calibration=data(64))
    _, stats = exited(EarlyExit(max_disagreement=0.005), context)
    assert stats["left: too few samples for the disagreement allowed"] == 1
    assert f"{2 * samples_for(0.005)} or more" in context.warnings[0]


def test_validation_samples_too_few_to_show_it_make_exits_surer() -> None:
    """Of ten samples no more than the share that is allowed may disagree: the threshold rises, the exit stays."""
    options = EarlyExit(max_disagreement=0.2)
    early, _ = exited(options, Context(calibration=data(300)))
    rows = [inputs(1, seed) for seed in range(1000, 1400)]
    agrees = [run(early, x).argmax() == run(MODEL, x).argmax() for x in rows]
    wrong = [x for x, same in zip(rows, agrees, strict=True) if not same]
    right = [x for x, same in zip(rows, agrees, strict=True) if same]
    few = right[:7] + wrong[:3]
    held = Data([{"x": x} for x in few], {value.name: value.type for value in read_onnx(MODEL).inputs})
    model, stats = exited(options, Context(calibration=data(300), validation=held))
    assert stats["exits"] >= 1
    assert sum(run(model, x).argmax() != run(MODEL, x).argmax() for x in few) <= 2


def test_validation_data_on_which_agreement_does_not_hold_take_it_back() -> None:
    options = EarlyExit(max_disagreement=0.45)
    early, stats = exited(options, Context(calibration=data(300)))
    assert stats["exits"] >= 1
    wrong = [
        {"x": x} for seed in range(1000, 1400) if run(early, x := inputs(1, seed)).argmax() != run(MODEL, x).argmax()
    ]
    assert wrong, "some sample disagrees"
    few = wrong[:2]  # that cannot show how sure an exit has to be, and of which none may disagree
    held = Data(few, {value.name: value.type for value in read_onnx(MODEL).inputs})
    context = Context(calibration=data(300), validation=held)
    model, stats = exited(options, context)
    assert stats["left: agreement does not hold on validation data"] == 1
    assert "0.00% of the validation samples" in context.warnings[0]
    assert all(node.op_type != "If" for node in model.graph.node)


def test_exits_are_as_sure_as_validation_data_ask_for() -> None:
    options, limit = EarlyExit(max_disagreement=0.45), 0.45
    early, _ = exited(options, Context(calibration=data(300)))
    samples: dict[bool, list[Floats]] = {True: [], False: []}
    for seed in range(1000, 1600):
        x = inputs(1, seed)
        samples[bool(run(early, x).argmax() == run(MODEL, x).argmax())].append(x)
    wrong = len(samples[False])
    chosen = [*samples[False], *samples[True][: int(wrong / 0.43) - wrong]]  # within the limit, but not surely
    allowed = disagreements(limit, len(chosen))
    assert allowed is not None
    assert allowed < wrong <= limit * len(chosen)
    held = Data([{"x": x} for x in chosen], {value.name: value.type for value in read_onnx(MODEL).inputs})
    model, stats = exited(options, Context(calibration=data(300), validation=held))
    assert stats["exits"] >= 1
    assert sum(run(model, x).argmax() != run(MODEL, x).argmax() for x in chosen) <= allowed


def test_samples_of_equal_confidence_leave_together_or_stay() -> None:
    """Against all thresholds that there are, tried one by one."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        confidence, agrees = rng.integers(0, 4, 8) / 4, rng.random(8) < 0.7
        among, wrong = rng.random(8) < 0.8, int(rng.integers(0, 3))
        head = Head(np.zeros((1, 2), np.float32), np.zeros(2, np.float32), confidence, agrees)
        good = [t for t in confidence[among] if (among & (confidence >= t) & ~agrees).sum() <= wrong]
        assert threshold_for(head, among, wrong) == min(good, default=None)


def test_a_head_is_judged_on_samples_that_it_was_not_fitted_to() -> None:
    """Scores that have nothing to do with the features: a head repeats those that it has seen, and no others."""
    rng = np.random.default_rng(0)
    features, scores = rng.standard_normal((80, 200)), rng.standard_normal((80, 5))
    head = fit_head(features, scores)
    own = (features @ head.weight + head.bias).argmax(1) == scores.argmax(1)
    assert own.mean() > 0.8
    assert head.agrees.mean() < 0.5


@pytest.mark.parametrize("options", [{"most": 3}, {"threshold": 2.0}, {"max_disagreement": 1.0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        EarlyExit(**options)  # type: ignore[arg-type]


def test_without_data_it_asks_for_some() -> None:
    with pytest.raises(InputError, match="needs data"):
        exited(EarlyExit(), Context())


TEXT = """<ir_version: 9, opset_import: ["" : 18]> g (float[N,4,8] x) => (float[N,3] y) {
    f = Reshape (x, flat)  h = MatMul (f, w)  h2 = MatMul (h, w)  h3 = MatMul (h2, w)  h4 = MatMul (h3, w)
    t = Reshape (h4, back)  m = ReduceMean <keepdims = 0> (t, one)  s = MatMul (m, last)  y = %s (s) }"""


def of_tokens(end: str) -> onnx.ModelProto:
    """Layers over the tokens of all sequences, one after the other."""
    rng, model = np.random.default_rng(0), onnx.parser.parse_model(TEXT % end)
    weights = {"w": rng.standard_normal((8, 8)), "last": rng.standard_normal((8, 3))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    arrays |= {"flat": np.array([-1, 8]), "back": np.array([-1, 4, 8]), "one": np.array([1])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


@pytest.mark.parametrize("hidden", [False, True])
def test_rows_that_are_no_samples_get_no_exit(hidden: bool) -> None:
    model = of_tokens("Identity")
    if hidden:  # what the shapes do not say, the data does
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    graph, rng = read_onnx(model), np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 4, 8)).astype(np.float32)} for _ in range(64)]
    stats = run_pass(EarlyExit(threshold=0.5), graph, Context(calibration=Data(feeds, {"x": graph.inputs[0].type})))
    assert "exits" not in stats
    assert any("left: no border" in key for key in stats)


def test_a_softmax_over_the_batch_gives_no_probabilities_of_classes() -> None:
    over_classes, over_batch = (read_onnx(of_tokens(f"Softmax <axis = {axis}>")) for axis in (1, 0))
    assert class_scores(over_classes).name == "s"
    assert class_scores(over_batch).name == "y"
