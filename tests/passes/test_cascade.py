"""cascade: the small model answers where it is sure enough, the large one the rest; both are kept bit for bit."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from memoptc.cli.main import cli
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.ir.verifier import verify
from memoptc.pass_base import Context
from memoptc.passes.shrink.cascade import Cascade
from memoptc.runtime.data import Data
from memoptc.testing import run_pass

WIDTH, CLASSES = 12, 4
Floats = npt.NDArray[np.float32]


def classifier(
    noise: float, symbol: str | int, *, softmax: bool = False, classes: int = CLASSES, name: str = "x"
) -> onnx.ModelProto:
    """Scores by one product; two of different noise agree on most inputs. A Shape carries the symbol into the graph."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, classes)).astype(np.float32)
    weight += noise * np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", [name, "w"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Reshape", ["a", "s"], ["scores"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], ["y"], axis=1))
    output = "y" if softmax else "scores"
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [symbol, WIDTH])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [symbol, classes])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def inputs(batch: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((batch, WIDTH)).astype(np.float32)


def run(model: onnx.ModelProto, x: Floats) -> Floats:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Floats = session.run(None, {"x": x})[0]
    return found


LARGE = classifier(0.0, "n", softmax=True)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small one.onnx"
    onnx.save(classifier(0.3, "batch", softmax=True), path)
    return path


def data(samples: int, seed: int = 0) -> Data:
    feeds = [{"x": inputs(1, 1000 * seed + i)} for i in range(samples)]
    return Data(feeds, {value.name: value.type for value in read_onnx(LARGE).inputs})


def cascaded(context: Context, **options: Any) -> tuple[onnx.ModelProto, Counter[str]]:
    graph = read_onnx(LARGE)
    stats = run_pass(Cascade(**options), graph, context)
    verify(graph)
    return to_proto(graph), stats


@pytest.mark.parametrize("batch", [1, 5])
def test_at_threshold_0_it_is_the_small_model_and_at_1_the_large_one(batch: int, small: Path) -> None:
    x = inputs(batch, 7)
    for threshold, model in ((0.0, onnx.load(small)), (1.0, LARGE)):
        made, stats = cascaded(Context(), small=str(small), threshold=threshold)
        assert stats["cascades"] == 1
        np.testing.assert_array_equal(run(made, x), run(model, x))
        assert [str(d.dim_param or d.dim_value) for d in made.graph.output[0].type.tensor_type.shape.dim] == ["n", "4"]


@pytest.mark.parametrize(("scale", "margin"), [(1e4, 1.0), (0.0, 0.0)])
def test_thresholds_hold_where_the_small_model_is_wholly_sure_and_where_it_has_a_tie(
    scale: float, margin: float, small: Path
) -> None:
    """A confidence of exactly 1 does not end at threshold 1, and one of exactly 0 does at threshold 0."""
    x = inputs(1, 7) * np.float32(scale)
    first, second = np.sort(run(onnx.load(small), x))[0, ::-1][:2]
    assert first - second == margin
    large = classifier(3.0, "n", softmax=True)
    large.graph.initializer[0].CopyFrom(numpy_helper.from_array(inputs(WIDTH, 9)[:, :CLASSES].copy(), "w"))
    large.graph.node.insert(0, helper.make_node("Add", ["x", "one"], ["moved"]))
    large.graph.node[1].input[0] = "moved"
    large.graph.initializer.append(numpy_helper.from_array(np.arange(WIDTH, dtype=np.float32), "one"))
    for threshold, alone in ((0.0, onnx.load(small)), (1.0, large)):
        graph = read_onnx(large)
        assert run_pass(Cascade(small=str(small), threshold=threshold), graph, Context())["cascades"] == 1
        np.testing.assert_array_equal(run(to_proto(graph), x), run(alone, x))
    assert not np.array_equal(run(large, x), run(onnx.load(small), x))


def test_a_batch_goes_the_way_of_its_hardest_row_and_agreement_holds_on_other_data(small: Path) -> None:
    context = Context(calibration=data(300), validation=data(100, seed=1))
    made, _ = cascaded(context, small=str(small), max_disagreement=0.05)
    threshold = float(re.findall(r"confidence of ([\d.]+)", context.decisions[-1].what)[0])
    alone, whole = onnx.load(small), LARGE
    taken, wrong = Counter[bool](), 0
    for seed in range(5000, 5200):
        x = inputs(1 + seed % 3, seed)
        ordered = np.sort(run(alone, x), axis=1)
        easy = bool((ordered[:, -1] - ordered[:, -2]).min() >= threshold)
        taken[easy] += 1
        np.testing.assert_array_equal(run(made, x), run(alone if easy else whole, x))
        wrong += int((run(made, x).argmax(1) != run(whole, x).argmax(1)).any())
    assert min(taken[True], taken[False]) > 20
    assert wrong <= 0.05 * 200 + 3 * np.sqrt(0.05 * 200)
    assert "100 validation samples" in context.decisions[-1].why


@pytest.mark.parametrize("opsets", [(18, 20), (21, 18)])
def test_the_model_of_the_older_opset_follows_the_other(opsets: tuple[int, int], tmp_path: Path) -> None:
    small, large = classifier(0.3, "n", softmax=True), classifier(0.0, "n", softmax=True)
    for model, opset in zip((small, large), opsets, strict=True):
        model.opset_import[0].version = opset
    onnx.save(small, tmp_path / "small.onnx")
    graph, x = read_onnx(large), inputs(3, 7)
    for threshold, alone in ((0.0, small), (1.0, large)):
        copy = graph.clone()
        assert run_pass(Cascade(small=str(tmp_path / "small.onnx"), threshold=threshold), copy, Context())["cascades"]
        verify(copy)
        made = to_proto(copy)
        assert made.opset_import[0].version == max(opsets)
        np.testing.assert_array_equal(run(made, x), run(alone, x))


def test_no_rows_and_rows_without_a_number_go_the_way_of_the_large_model_or_nowhere(small: Path) -> None:
    """A smallest of nothing is refused, and a smallest among NaN may be a number: neither may decide."""
    made, _ = cascaded(Context(), small=str(small), threshold=0.01)
    assert run(made, inputs(0, 1)).shape == (0, CLASSES)
    for place in (0, 2):
        x = inputs(3, 21)
        x[place] = np.nan
        np.testing.assert_array_equal(run(made, x), run(LARGE, x))


def test_validation_data_make_the_small_model_surer(small: Path) -> None:
    """Rows on which the two disagree raise the threshold; where hardly any agrees, the small model answers none."""
    thresholds, alone = [], onnx.load(small)
    rows = [inputs(1, seed) for seed in range(9000, 11000)]
    wrong = [x for x in rows if run(alone, x).argmax() != run(LARGE, x).argmax()]
    right = [x for x in rows if run(alone, x).argmax() == run(LARGE, x).argmax()]
    for feeds in (right[:100], right[:60] + wrong[:40]):
        held = Data([{"x": x} for x in feeds], {value.name: value.type for value in read_onnx(LARGE).inputs})
        context = Context(calibration=data(300), validation=held)
        made, _ = cascaded(context, small=str(small), max_disagreement=0.05)
        thresholds.append(float(re.findall(r"confidence of ([\d.]+)", context.decisions[-1].what)[0]))
        assert sum(run(made, x).argmax() != run(LARGE, x).argmax() for x in feeds) <= 0.05 * len(feeds)
    assert thresholds[0] < thresholds[1]
    held = Data([{"x": x} for x in wrong[:60]], {value.name: value.type for value in read_onnx(LARGE).inputs})
    _, stats = cascaded(Context(calibration=data(300), validation=held), small=str(small), max_disagreement=0.05)
    assert stats == {"left: the small model is sure enough of no sample": 1}


def test_validation_samples_too_few_to_show_it_have_no_more_disagreement_either(small: Path) -> None:
    """The proof counts them, and one among so few is more than was allowed."""
    alone, rows = onnx.load(small), [inputs(1, seed) for seed in range(9000, 11000)]
    wrong = [x for x in rows if run(alone, x).argmax() != run(LARGE, x).argmax()]
    feeds = [x for x in rows if run(alone, x).argmax() == run(LARGE, x).argmax()][:27] + wrong[:3]
    held = Data([{"x": x} for x in feeds], {value.name: value.type for value in read_onnx(LARGE).inputs})
    made, stats = cascaded(Context(calibration=data(300), validation=held), small=str(small), max_disagreement=0.03)
    assert stats == {"cascades": 1}
    assert all(run(made, x).argmax() == run(LARGE, x).argmax() for x in feeds)


def test_a_small_model_that_never_agrees_is_left_out(tmp_path: Path) -> None:
    other = classifier(0.0, "n")
    weight = numpy_helper.to_array(other.graph.initializer[0])
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(-weight, "w"))
    onnx.save(other, tmp_path / "other.onnx")
    context = Context(calibration=data(300))
    made, stats = cascaded(context, small=str(tmp_path / "other.onnx"), max_disagreement=0.01)
    assert stats == {"left: the small model is sure enough of no sample": 1}
    assert "agrees too seldom" in context.warnings[-1]
    np.testing.assert_array_equal(run(made, inputs(3, 3)), run(LARGE, inputs(3, 3)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (classifier(0.1, "n", classes=5), "scores 5 classes, the large model 4"),
        (classifier(0.1, "n", name="z"), "takes z: f32"),
        (classifier(0.1, 1), "which is narrower than the large model's"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(other: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=message):
        cascaded(Context(calibration=data(64)), small=str(tmp_path / "other.onnx"))


def test_too_few_samples_are_named_with_how_many_it_takes(small: Path) -> None:
    with pytest.raises(InputError, match=r"64 samples cannot show a disagreement of at most 0\.50%") as refusal:
        cascaded(Context(calibration=data(64)), small=str(small))
    assert "460 or more" in refusal.value.hint


def test_the_command_writes_a_model_that_is_held_to_the_agreement(small: Path, tmp_path: Path) -> None:
    onnx.save(LARGE, tmp_path / "large.onnx")
    np.savez(tmp_path / "easy.npz", x=inputs(400, 11))
    words = ["cascade", str(small), str(tmp_path / "large.onnx"), "--max-disagreement", "0.05", "--no-measure"]
    done = CliRunner().invoke(cli, [*words, "--calibration", str(tmp_path / "easy.npz")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "at most 5.00% disagreement" in done.stdout
    made = onnx.load(tmp_path / "large.cascade.onnx")
    assert [node.op_type for node in made.graph.node].count("If") == 1
