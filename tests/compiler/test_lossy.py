"""Lossy passes: reached by options that people know, and judged by the accuracy that they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from accuracy_models import CNN, DATA
from onnx import TensorProto, helper, numpy_helper

import memoptc
from memoptc.api import pipeline_for
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.options import Options
from memoptc.pass_base import Pass
from memoptc.passes.precision.mix_weights import MixWeights
from memoptc.runtime.accuracy import AccuracyTarget, combined
from memoptc.runtime.judge import GATES, Judge
from memoptc.runtime.verify import verify
from memoptc.steps import prove

CALIBRATION = {"calibration": DATA["calibration"]}


def scorer(path: Path, noise: float = 0.0) -> Path:
    """Ten scores of ten features, off by a multiple of a fixed matrix."""
    rng = np.random.default_rng(0)
    weight = np.eye(10, dtype=np.float32) + noise * rng.normal(size=(10, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def agreement(outcomes: object) -> float:
    """A metric of a user's own."""
    found = [float((o.outputs["y"].argmax(1) == o.label).mean()) for o in outcomes]  # type: ignore[attr-defined]
    return sum(found) / len(found)


def test_each_limit_decides_and_the_deviation_is_reported(tmp_path: Path) -> None:
    original, candidate = scorer(tmp_path / "a.onnx"), scorer(tmp_path / "b.onnx", 0.2)
    x = np.random.default_rng(1).normal(size=(64, 10)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=x.argmax(1))

    def check(target: AccuracyTarget, metric: object = None) -> memoptc.runtime.verify.Verification:
        judge = Judge(accuracy=target)
        return verify(original, candidate, judge, data=tmp_path / "d.npz", every=True, metric=metric)  # type: ignore[arg-type]

    found = check(AccuracyTarget())
    assert found.passed
    assert found.judged_by == {"y": "accuracy target"}
    (output,), accuracy = found.outputs, found.accuracy
    lost = accuracy["control"] - accuracy["candidate"]
    assert (accuracy["samples"], accuracy["control"]) == (64, 1.0)
    assert lost > 0.02
    for limits, reached in (
        ("min_sqnr", output["sqnr_db"]),
        ("max_loss", lost),
        ("max_disagreement", 1 - output["top1_agreement"]),
    ):
        better, worse = (0.99, 1.01) if limits == "min_sqnr" else (1.01, 0.99)
        assert check(AccuracyTarget(**{limits: reached * better})).passed
        failed = check(AccuracyTarget(**{limits: reached * worse}))
        assert len(failed.failures) == 1
    own = check(AccuracyTarget(max_loss=lost * 0.99), agreement)
    assert own.accuracy["metric"] == "agreement"
    assert own.accuracy["candidate"] == accuracy["candidate"]
    assert not own.passed


def test_a_loss_of_nothing_measurable_is_refused(tmp_path: Path) -> None:
    original, candidate = scorer(tmp_path / "a.onnx"), scorer(tmp_path / "b.onnx", 0.01)
    found = verify(original, candidate, Judge(accuracy=AccuracyTarget(max_loss=0.5)))
    assert "no labels" in found.worst
    assert not found.passed


def test_what_several_passes_are_held_to() -> None:
    ratio, loss, share = AccuracyTarget(20.0), AccuracyTarget(None, 0.01), AccuracyTarget(max_disagreement=0.02)
    assert combined([]) is None
    assert combined([ratio, AccuracyTarget(30.0)]) == ratio
    assert combined([ratio, loss, share, share]) == AccuracyTarget(None, 0.01, 0.04)


def test_a_pipeline_that_loses_rank_passes_by_its_accuracy() -> None:
    found = memoptc.compile(CNN, passes="simplify,factorize{max_loss=0.01,min_sqnr=none},drop-dead,lower", **DATA)
    assert found.verification is not None
    assert found.verification.judged_by == {"logits": "accuracy target"}
    assert found.verification.samples == 540
    lost = found.report.accuracy["control"] - found.report.accuracy["candidate"]
    assert lost <= 0.01
    assert "within the accuracy asked for (at most 0.01 of the metric lost)" in found.verdict


def test_passes_share_one_limit_and_a_fifth_of_the_calibration_data_judges() -> None:
    found = memoptc.compile(CNN, level=1, low_rank=True, cluster=256, min_sqnr=25.0, **CALIBRATION)
    assert {d.step for d in found.report.decisions} >= {"factorize", "cluster-weights"}
    proof = found.verification
    assert proof is not None
    assert (proof.inputs, proof.samples) == ("held-out", 51)
    assert proof.outputs[0]["sqnr_db"] >= 25.0


def test_what_misses_its_accuracy_is_not_written() -> None:
    with pytest.raises(GateError, match=r"SQNR .* dB, 60 dB are asked for; first broken by pass factorize"):
        memoptc.compile(CNN, passes="factorize{min_sqnr=10.0},lower", min_sqnr=60.0, **CALIBRATION)


def test_a_lossy_pass_that_can_do_nothing_says_so() -> None:
    found = memoptc.compile(CNN, level=1, prune=0.3, **CALIBRATION)
    assert any(w.startswith("prune changed nothing: ") for w in found.report.warnings)
    assert found.report.verification["bit_exact"]


def test_options_spell_passes() -> None:
    text = pipeline_for(Options(prune=0.3, cluster=16, early_exit=0.04, max_accuracy_loss=0.01, **CALIBRATION))
    limits = "min_sqnr=none,max_loss=0.01"
    for spelled in (f"prune{{{limits},most=0.3}}", "early-exit{max_disagreement=0.04}", f"cluster-weights{{{limits}}}"):
        assert spelled in text
    assert "prune-tokens," in pipeline_for(Options(prune_tokens=True, **CALIBRATION))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prune": 0.3}, "--prune needs data"),
        ({"prune": 1.0, **CALIBRATION}, "--prune 1 is no part"),
        ({"cluster": 17, **CALIBRATION}, "--cluster 17 is no size"),
        ({"cluster": 256, "target": "int8", **CALIBRATION}, "float weights"),
        ({"early_exit": 2.0, **CALIBRATION}, "no share of inputs"),
        ({"low_rank": True, "passes": "lower", **CALIBRATION}, "--low-rank too"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(options: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        Options(**options)  # type: ignore[arg-type]


def test_a_pipeline_of_the_users_own_is_held_to_the_accuracy_that_was_asked_for() -> None:
    graph = read_onnx(CNN)
    asked = Options(target="int8", passes="lower", min_sqnr=45.0)
    assert prove.judge(asked, [], graph).min_sqnr == 45.0
    asked = Options(target="int8", passes="lower", max_accuracy_loss=0.01)
    found = prove.judge(asked, [], graph)
    assert found.accuracy is not None
    assert (found.min_sqnr, found.accuracy.max_loss) == (GATES["int8"].sqnr_db, 0.01)


@pytest.mark.parametrize(
    ("wishes", "passes", "least"),
    [
        ({}, [], GATES["int4"].sqnr_db),
        ({}, [MixWeights(size=0.13)], 0.0),  # bytes were asked for: no more than that a model is left
        ({"metric": "perplexity"}, [], GATES["int4"].sqnr_db),  # measured, and nothing asked of it
        ({"metric": "perplexity", "max_accuracy_loss": 0.3}, [], None),
        ({"metric": "perplexity", "max_accuracy_loss": 0.3}, [MixWeights(size=0.13)], None),
        ({"metric": "perplexity", "max_accuracy_loss": 0.3, "min_sqnr": 9.0}, [], GATES["int4"].sqnr_db),
        ({"min_sqnr": 9.0}, [MixWeights(size=0.13)], 9.0),
    ],
)
def test_a_model_is_judged_by_what_was_asked_for(
    wishes: dict[str, object], passes: list[Pass], least: float | None
) -> None:
    asked = Options(target="int4", calibration="data.npz", **wishes)  # type: ignore[arg-type]
    assert prove.judge(asked, passes, read_onnx(CNN)).min_sqnr == least
