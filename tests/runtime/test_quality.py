"""An examination runs the original once per sample, and says what a difference computed in one go would say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import quality
from memoptc.runtime.compare import Totals, difference
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.metric import Outcome, hits_of, top1
from memoptc.runtime.quality import Examiner, Quality


def _scaling(path: Path, factor: float) -> Path:
    make = onnx.helper
    ends = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N"]) for name in "xy"]
    held = [onnx.numpy_helper.from_array(np.array([factor], np.float32), "f")]
    graph = make.make_graph([make.make_node("Mul", ["x", "f"], ["y"])], "g", ends[:1], ends[1:], held)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found: dict[str, int] = {}
    run = Evaluator.run

    def counted(self: Evaluator, *args: object, **options: object) -> object:
        found[self.label] = found.get(self.label, 0) + 1
        return run(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "run", counted)
    return found


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_the_original_runs_once_per_sample(
    tmp_path: Path, runs: dict[str, int], in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "IN_MEMORY", in_memory)
    monkeypatch.setattr(quality, "_PIECE", 7)
    rng = np.random.default_rng(0)
    data = [Sample({"x": rng.standard_normal(100).astype(np.float32)}, None, str(i)) for i in range(5)]
    examiner = Examiner(_scaling(tmp_path / "one.onnx", 1.0), data, few=2)
    candidate = _scaling(tmp_path / "other.onnx", 1.1)
    for _ in range(3):
        assert examiner.quick(candidate).sqnr_db == pytest.approx(20.0, abs=1e-3)
        assert examiner.full(candidate).sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert runs["the original"] == 5
    assert examiner.samples == (2, 5)


def test_a_candidate_that_has_lost_too_much_is_not_looked_at_further(tmp_path: Path, runs: dict[str, int]) -> None:
    feed, label = {"x": np.array([1.0, 2.0], np.float32)}, np.array([1])
    data = [Sample(feed, label, str(i)) for i in range(9)]
    examiner = Examiner(_scaling(tmp_path / "one.onnx", 1.0), data, top1)
    found = examiner.full(_scaling(tmp_path / "other.onnx", -1.0), lambda hits: hits.lost >= 3)
    assert found.hits == (3, 0, 3)
    assert runs["the candidate"] == 3
    same = examiner.full(_scaling(tmp_path / "same.onnx", 2.0), lambda hits: hits.lost >= 3)
    assert same.hits == (0, 0, 9)


def test_outputs_beyond_what_is_kept_run_again(
    tmp_path: Path, runs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "IN_MEMORY", 0)
    monkeypatch.setattr(quality, "ON_DISK", 3 * 400)
    data = [Sample({"x": np.ones(100, np.float32)}, None, str(i)) for i in range(5)]
    examiner = Examiner(_scaling(tmp_path / "one.onnx", 1.0), data, few=2)
    assert examiner.full(_scaling(tmp_path / "other.onnx", 1.1)).samples == 5
    assert runs["the original"] > 5


def test_energies_that_no_number_holds_are_the_worst() -> None:
    far = Totals("y")
    far.add(difference(np.array([1e-150]), np.array([1e150])))
    assert far.sqnr_db == pytest.approx(-6000)
    ratios = quality._ratios({"y": [1.0, 1.0], "z": [np.inf, np.inf]})
    assert Quality(ratios, 1).sqnr_db == -np.inf


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ((6, 4), (6,)),
        ((6, 4, 1, 1), (6,)),
        ((6, 1, 1, 4), (6, 1)),
        ((6, 1, 4), (6,)),
        ((4,), (1,)),
        ((2, 5, 4), (2, 5)),
        ((2, 4, 5), (2, 5)),
        ((2, 4, 3, 7), (2, 3, 7)),
        ((2, 3, 7, 4), (2, 3, 7)),
        ((6, 4), (2, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_fit_scores_of_any_shape(scores: tuple[int, ...], labels: tuple[int, ...], dtype: type) -> None:
    axis = scores.index(4)
    right = np.random.default_rng(0).integers(0, 4, labels).astype(dtype)
    shape = [n for i, n in enumerate(scores) if i != axis]
    hot = np.moveaxis(np.eye(4, dtype=np.float32)[right.reshape(shape)], -1, axis)
    wrong = right.copy()
    wrong.reshape(-1)[0] = (wrong.reshape(-1)[0] + 1) % 4
    other = {"boxes": np.zeros((5, 9), np.float32), "scores": hot}
    assert hits_of(other, right).all()
    assert hits_of(other, right).size == right.size
    assert list(np.flatnonzero(~hits_of(other, wrong))) == [0]


def test_negative_labels_stand_for_none() -> None:
    scores = {"scores": np.eye(4, dtype=np.float32)[None]}
    assert hits_of(scores, np.array([[0, -100, 2, 0]])).tolist() == [True, True, False]


def test_labels_that_fit_nothing_are_told_with_their_shape() -> None:
    outcome = Outcome({}, {"y": np.zeros((2, 3), np.float32)}, np.zeros(7, np.int64))
    with pytest.raises(InputError, match=re.escape("labels [7] of int64, outputs y [2, 3]")):
        top1([outcome])
