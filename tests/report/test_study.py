"""A study: rows, domination, the card; what fails stays; what was interrupted goes on; a folder whole or not at all."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from memoptc.cli import main
from memoptc.ir.diagnostics import InputError
from memoptc.report.study import card, headline, render
from memoptc.report.study import rows as table
from memoptc.runtime.compare import Totals, difference
from memoptc.study import elsewhere
from memoptc.study import run as running
from memoptc.study.changes import Asked, Change, changes
from memoptc.study.elsewhere import Job, compile_there, run_all, shipped
from memoptc.study.findings import Row, Study
from memoptc.study.run import study

EXAMPLES = Path(__file__).parents[2] / "examples/models"
CNN, DATA = EXAMPLES / "digits_cnn.onnx", str(EXAMPLES / "digits_validation.npz")
CALIBRATION = str(EXAMPLES / "digits_calibration.npz")


def measured(name: str, need: int, ms: float, low: float = 0.9, **rest: Any) -> Row:
    kind = "control" if name == "control" else "alone"
    spread = {"median": need, "least": need - 1000, "most": need + 1000}
    slowdown = {"ratio": low + 0.05, "low": low, "high": low + 0.1}
    times = {"p50": ms, "p95": ms, "p99": ms}
    return Row(name, kind, "onnxruntime", need_bytes=spread, latency_ms=times, slowdown=slowdown, **rest)


def of(rows: list[Row]) -> Study:
    found = Study(
        {"name": "m.onnx", "sha256": "0", "bytes": 1}, "a board", {}, "memoptc study m.onnx", {}, "", rows, 1.05, 3
    )
    found.judge()
    return found


def test_rows_that_another_beats_are_not_marked_and_the_one_that_gains_most_is_taken() -> None:
    exact, coarse = {"bit_exact": True, "inputs": "validation", "samples": 8}, {"inputs": "validation", "samples": 8}
    found = of(
        [
            measured("control", 50_000_000, 10.0),
            measured("smaller", 30_000_000, 10.0, checked=exact),
            measured("beaten", 40_000_000, 12.0, checked=exact),
            measured("slow", 10_000_000, 30.0, low=2.9, checked=exact),
            measured("coarse", 20_000_000, 5.0, low=0.5, checked=coarse, sqnr_db=30.0),
            measured("wrong", 1_000_000, 1.0, checked=coarse, failure="outputs differ by more than allowed"),
            Row("broken", "alone", "onnxruntime", failure="exit code 2: no such pass"),
        ]
    )
    assert [row.name for row in found.rows if row.pareto] == ["smaller", "slow", "coarse"]
    assert found.recommended == "coarse"
    assert headline(found).startswith("Take coarse, better in need and latency: needs 20.00 MB")
    facts = dict(card(found))
    assert facts["Failed changes"] == ("wrong: outputs differ by more than allowed; broken: exit code 2: no such pass")
    assert "need 20.00 MB" in facts["Improved"]
    assert "no labels" in facts["Worse, or at risk"]
    for name in ("study.md", "study.html"):
        assert "no such pass" in render(found, name)


def test_accuracy_within_its_standard_error_is_a_risk_and_no_gain() -> None:
    accuracy = {"metric": "top-1", "control": 0.9926, "candidate": 0.9944, "samples": 540}
    facts = dict(card(of([measured("control", 50_000_000, 10.0), measured("int8", 9_000_000, 5.0, accuracy=accuracy)])))
    assert "top-1" not in facts["Improved"]
    assert "cannot be told apart on 540 samples" in facts["Worse, or at risk"]


def test_a_row_that_is_faster_at_the_same_need_is_taken() -> None:
    accuracy = {"metric": "top-1", "control": 0.99, "candidate": 0.98, "samples": 100}
    rows = [
        measured("control", 50_000_000, 10.0),
        measured("a little smaller", 48_000_000, 10.0, sqnr_db=60.0),
        measured("early-exit", 50_100_000, 6.0, low=0.55, sqnr_db=20.0, accuracy=accuracy),
        measured("larger", 60_000_000, 2.0, low=0.15),
        measured("coarse", 20_000_000, 4.0, low=0.35, accuracy={**accuracy, "candidate": 0.5}),
    ]
    found = of(rows)
    assert {row.name for row in rows if row.pareto} >= {"early-exit", "larger", "coarse"}
    assert found.recommended == "early-exit"
    assert headline(found).startswith("Take early-exit, better in latency: needs 50.10 MB")
    facts = dict(card(found))
    assert "latency 0.60" in facts["Improved"]
    assert "cannot be told apart on 100 samples" in facts["Worse, or at risk"]


def test_less_perplexity_is_better() -> None:
    better = {"metric": "perplexity", "control": 20.0, "candidate": 19.0, "samples": 100}
    worse = {**better, "candidate": 21.0}
    rows = [measured("control", 50_000_000, 10.0), measured("good", 40_000_000, 10.0, checked={}, accuracy=better)]
    found = of([*rows, measured("bad", 30_000_000, 10.0, accuracy=worse)])
    assert found.recommended == "good"
    assert headline(found).startswith("Take good, better in need and accuracy")
    assert "perplexity 19.0000 instead of 20.0000" in dict(card(found))["Improved"]


def test_noise_makes_no_recommendation() -> None:
    found = of([measured("control", 50_000_000, 10.0), measured("same", 49_900_000, 10.0)])
    assert found.recommended == "control"
    assert headline(found).startswith("Keep the original")


def test_each_change_alone_then_in_sequence() -> None:
    names = [change.name for change in changes(Asked(targets=("int8",)))]
    assert names[:4] == ["Session", "fusion", "tiling", "int8"]
    assert names[-3:] == ["-O2 + int8", "-O2 + Session", "-O2 + int8 + Session"]
    with pytest.raises(InputError, match="no row 'int4'"):
        changes(Asked(only=("int4",)))


def test_a_row_that_is_none_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row 'int4'"):
        study(CNN, tmp_path / "out", Asked(only=("int4",)))
    assert list(tmp_path.iterdir()) == []


def test_less_work_is_tried_alone_and_the_examples_that_flip_are_named() -> None:
    rows = {change.name: change.arguments for change in changes(Asked(prune_tokens=0.005, early_exit=0.02))}
    assert rows["prune-tokens"] == ("-O0", "--prune-tokens", "--max-accuracy-loss", "0.005")
    assert rows["early-exit"] == ("-O0", "--early-exit", "0.02")
    totals = Totals("y")
    for likeliest in (0, 1, 0, 1):
        totals.add(difference(np.eye(2, dtype=np.float32)[[0]], np.eye(2, dtype=np.float32)[[likeliest]]))
    assert totals.to_json()["flipped"] == [1, 3]
    row = measured("early-exit", 1, 1.0, flipped=totals.flipped, checked={"samples": 4})
    assert table(of([measured("control", 2, 1.0), row]))[1][-1] == "2 of 4: 1, 3"


def test_a_cascade_and_the_features_that_are_zero_are_rows(tmp_path: Path) -> None:
    """A model behind itself, which always agrees: the first one answers every sample."""
    small = CNN.with_name("small.onnx")
    asked = Asked(cascade=small, max_disagreement=0.02, feature_statistics=True, prune=0.3)
    rows = {change.name: change.arguments for change in changes(asked)}
    assert rows["prune"] == ("-O0", "--prune", "0.3")
    assert rows["feature-statistics"] == ("-O0", "--passes", "feature-statistics,lower")
    assert rows["cascade"] is not None
    assert f'cascade{{small="{small}",max_disagreement=0.02}}' in rows["cascade"][2]
    with pytest.raises(InputError, match="not sent to a cluster"):
        Asked(cascade=small, cluster="tcp://nowhere:1")
    asked = Asked(
        cascade=CNN, max_disagreement=0.02, feature_statistics=True, calibration=CALIBRATION, validation=DATA,
        only=("cascade", "feature-statistics"), repeats=1, seconds=0.2,
    )  # fmt: skip
    found = study(CNN, tmp_path / "out", asked)
    assert [row.failure for row in found.rows] == ["", "", ""]
    assert "calibration samples" in found.row("cascade").decided[0]
    assert "are zero for a whole batch" in found.row("feature-statistics").decided[0]
    assert found.row("feature-statistics").checked["bit_exact"]
    assert found.row("cascade").decided[0] in render(found, "study.md")


def test_failures_stay_and_an_interrupted_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = [
        Change("-O1", "in sequence", ("-O1",)),
        Change("-O1 + Session", "in sequence", ("-O1",), session=True),
        Change("no such", "alone", ("--passes", "no-such-pass")),
    ]
    monkeypatch.setattr(running, "changes", lambda asked: tried)
    asked = Asked(validation=DATA, repeats=1, seconds=0.2)
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(running, "_measure", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            study(CNN, folder, asked)
    assert not folder.exists()
    with monkeypatch.context() as patch:
        patch.setattr(elsewhere, "run_here", _interrupt)  # nothing is compiled a second time
        found = study(CNN, folder, asked)
    assert [row.name for row in found.rows if row.usable] == ["control", "-O1", "-O1 + Session"]
    assert found.row("-O1").checked == {
        "inputs": "validation", "samples": 540, "mode": "full", "passed": True, "bit_exact": True
    }  # fmt: skip
    assert "no-such-pass" in found.row("no such").failure
    assert found.failure_check.endswith("was reported (exit code 3).")
    assert not folder.with_name("out.partial").exists()
    assert {"study.md", "study.json", "study.html", "O1.onnx", "O1.report.json"} <= {p.name for p in folder.iterdir()}
    content = json.loads((folder / "study.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["control", *(change.name for change in tried)]
    assert study(CNN, folder, asked).to_json() == content
    assert study(CNN, folder, replace(asked, processes=2, cluster="tcp://nowhere:1")).to_json() == content
    assert main(["study", str(CNN), "-o", str(folder)]) == 2
    assert "is not this study" in capsys.readouterr().err


def test_compiles_are_the_same_wherever_they_run(tmp_path: Path) -> None:
    """What a worker of a cluster does with bytes gives the files of a compile in place, byte for byte."""
    words = ["--no-measure", "-O1", "--verify", "full"]
    jobs = [Job([str(CNN), *words, "--validation", DATA], tmp_path / f"{n}.onnx", tmp_path / f"{n}.json") for n in "ab"]
    ended: dict[str, str] = {}
    run_all(jobs, CNN, 2, "", 100.0, lambda job, failure: ended.update({job.output.name: failure}))
    assert ended == {"a.onnx": "", "b.onnx": ""}
    shipped = {"0/m.onnx": CNN.read_bytes(), "1/d.npz": Path(DATA).read_bytes()}
    failure, made = compile_there(["0/m.onnx", *words, "--validation", "1/d.npz"], shipped, "a.onnx", 100.0)
    assert failure == ""
    assert made["a.onnx"] == (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    there, here = json.loads(made["report.json"]), json.loads((tmp_path / "a.json").read_text())
    assert there["verification"] == here["verification"]
    assert compile_there(["0/m.onnx", "--no-such"], shipped, "a.onnx", 100.0)[0].startswith("exit code 2")
    with pytest.raises(InputError, match="Dask"):
        run_all(jobs, CNN, 1, "tcp://127.0.0.1:1", 1.0, lambda job, failure: None)


def test_what_a_worker_needs_goes_by_the_words_that_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.load(CNN)
    onnx.save_model(model, "m.onnx", save_as_external_data=True, location="w.bin")
    for folder in ("data", "int8"):  # the second is named as a target is
        Path(folder).mkdir()
    np.savez("data/a.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    words = ["m.onnx", "--target", "int8", "--calibration", "./data/", "--validation", "data"]
    files, names = shipped([words, ["m.onnx", "-O1"]], Path("m.onnx"))
    assert files.keys() == {"0/m.onnx", "0/w.bin", "1/data/a.npz", "2/data/a.npz"}
    assert names == [["0/m.onnx", "--target", "int8", "--calibration", "1/data", "--validation", "2/data"],
                     ["0/m.onnx", "-O1"]]  # fmt: skip
    contents = {name: file.read_bytes() for name, file in files.items()}
    assert compile_there([*names[1], "--no-measure", "--validation", "2/data"], contents, "a.onnx", 100.0)[0] == ""


def test_how_to_repeat_a_study_says_all_that_was_asked(tmp_path: Path) -> None:
    told = [
        "--target",
        "int8",
        "--max-slowdown",
        "1.2",
        "--time-limit",
        "60.0",
        "--only=-O2",
        "--deployment",
        "a board",
    ]
    asked = Asked(targets=("int8",), slowdown=1.2, time_limit=60.0, only=("-O2",), deployment="a board", processes=2)
    words = shlex.split(running._command(CNN, tmp_path, asked))
    assert all(word in words for word in told)
    assert "--processes" not in words


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
