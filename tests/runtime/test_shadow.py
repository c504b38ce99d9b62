"""Shadow: callers get the control's answers; drift planted in a thousand calls is seen, and only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accuracy_models import CNN, DATA
from native_models import network

from memoptc.cli.main import main
from memoptc.ir.diagnostics import InputError
from memoptc.runtime import Session, Shadow
from memoptc.runtime.drift import drifts, read_log, reference_of
from memoptc.runtime.shadow import Figures

IMAGES = np.load(DATA["validation"])["image"]


class Counting:
    """A session that counts its runs, and fails where it is told to."""

    def __init__(self, session: Any, fails: bool = False) -> None:
        self.session, self.runs, self.fails = session, 0, fails

    def run(self, names: Any, feed: Any, options: Any = None) -> Any:
        self.runs += 1
        if self.fails:
            raise RuntimeError("broken")
        return self.session.run(names, feed)

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def get_inputs(self) -> Any:
        return self.session.get_inputs()


def serve(log: Path, drifted: int, rate: float = 0.1) -> tuple[Shadow, Counting, Counting]:
    """A thousand calls; the last ones with pictures at half the contrast."""
    session = Session(CNN)
    control, candidate = Counting(session), Counting(session)
    shadow = Shadow(control, candidate, rate, log=log, calibration=DATA["calibration"], seed=1)
    for i in range(1000):
        image = IMAGES[i % len(IMAGES)][None]
        shadow.run(None, {"image": image * np.float32(0.5) if i >= 1000 - drifted else image})
    return shadow, control, candidate


def test_planted_drift_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shadow, control, candidate = serve(tmp_path / "log", drifted=400)
    assert control.runs == shadow.figures.calls == 1000
    assert candidate.runs == shadow.figures.shadowed == len(read_log(tmp_path / "log")[1])
    assert 60 < candidate.runs < 140
    assert repr(shadow.figures).startswith("<Figures: ")
    assert shadow.figures.agreement == 1.0
    assert main(["drift", str(tmp_path / "log")]) == 3
    assert "Calibrate again" in capsys.readouterr().out
    assert main(["drift", str(tmp_path / "log"), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)["drift"]
    assert {(d["input"], d["statistic"]) for d in found} >= {("image", "mean"), ("image", "max")}


def test_without_drift_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(tmp_path / "log", drifted=0, rate=0.2)
    assert main(["drift", str(tmp_path / "log")]) == 0
    assert "No drift is seen." in capsys.readouterr().out


def test_few_calls_are_enough_for_a_large_drift() -> None:
    reference = reference_of(DATA["calibration"], Session(CNN).get_inputs())
    near = [
        {"inputs": {"image": {"mean": m, "std": 0.4, "min": 0.0, "max": 1.0}}} for m in reference["image"]["mean"][::25]
    ]
    far = [{"inputs": {"image": {"mean": 9.0, "std": 9.0, "min": -9.0, "max": 9.0}}}] * len(near)
    assert {d.statistic for d in drifts(reference, far)} == {"mean", "std", "min", "max"}
    assert "mean" not in {d.statistic for d in drifts(reference, near)}
    assert drifts(reference, far[:4]) == []


def test_a_candidate_that_fails_or_differs_reaches_no_caller(tmp_path: Path) -> None:
    session = Session(network())
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    wanted = session.run(None, {"x": x})
    broken = Shadow(session, Counting(session, fails=True), 1.0, log=tmp_path / "log")
    assert np.array_equal(broken.run(None, {"x": x})[0], wanted[0])
    assert broken.figures.errors == broken.figures.shadowed == 1
    assert read_log(tmp_path / "log")[1][0]["error"] == "RuntimeError: broken"

    class Other(Counting):
        def run(self, names: Any, feed: Any, options: Any = None) -> Any:
            return [np.roll(value, 1, -1) for value in self.session.run(names, feed)]

    other = Shadow(session, Other(session), 1.0)
    assert np.array_equal(other.run(["y"], {"x": x})[0], wanted[0])
    assert other.figures.agreement == 0.0
    assert other.get_providers() == session.get_providers()
    text = other.openmetrics()
    assert "memoptc_shadow_compared_rows_total 3\n" in text
    assert text.endswith("# EOF\n")


class Fixed:
    """A session that gives the same each time."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)

    def run(self, names: Any, feed: Any, options: Any = None) -> Any:
        return self.values

    def get_outputs(self) -> Any:
        return Session(network()).get_outputs()[:1]


def test_nothing_behind_the_controls_run_reaches_a_caller(tmp_path: Path) -> None:
    ragged = [np.arange(3), np.arange(2)]
    for control, candidate, agreement in (
        (Fixed(ragged), Fixed([np.arange(3), np.arange(2)]), 1.0),
        (Fixed(ragged), Fixed([np.arange(3), np.arange(3)]), 0.75),
        (Fixed(ragged), Fixed(ragged[:1]), 0.0),
        (Fixed(np.zeros(3, np.int64)), Fixed(np.zeros(3, np.int64), ragged), 0.0),
        (Fixed(np.zeros(3, np.int64)), Fixed(ragged), None),
    ):
        shadow = Shadow(control, candidate, 1.0)
        assert shadow.run(None, {"x": ragged, "z": np.ones(2)}) is control.values
        assert (shadow.figures.agreement, shadow.figures.errors) == (agreement, agreement is None)
    (tmp_path / "logs").mkdir()
    shadow = Shadow(Fixed(ragged), Fixed(ragged), 1.0, log=tmp_path / "logs" / "log")
    shadow.run(None, {"x": ragged, "z": np.ones(2)})
    with (tmp_path / "logs" / "log").open("ab") as file:
        file.write(b'{"event": "ca')  # a line that is being written
    assert read_log(tmp_path / "logs" / "log")[1][0]["inputs"].keys() == {"z"}
    shadow.run(None, {"x": ragged, "z": np.ones(2)})  # behind what a full disk took of a line
    assert [len(found) for found in read_log(tmp_path / "logs" / "log")][1] == 2
    again = Shadow(Fixed(ragged), Fixed(ragged), 1.0, log=tmp_path / "logs" / "log")
    again.run(None, {"x": ragged, "z": np.ones(2)})
    with (tmp_path / "logs" / "log").open("ab") as file:
        file.write(b'{"event": "call", "ca\n{"event": "call", "call": 7}\n')  # killed, and another process goes on
    start, calls = read_log(tmp_path / "logs" / "log")
    assert ([call["call"] for call in calls], start["torn"]) == ([1, 7], 1)
    (tmp_path / "logs").rename(tmp_path / "moved")
    shadow.run(None, {"x": ragged})
    assert (shadow.figures.shadowed, shadow.figures.unwritten) == (3, 1)
    with pytest.raises(InputError, match="cannot be written"):
        Shadow(Fixed(), Fixed(), log=tmp_path / "logs" / "log")
    with pytest.raises(InputError, match="cannot be read"):
        read_log(tmp_path / "logs" / "log")


def test_what_makes_no_sense_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no share of calls"):
        Shadow(network(), network(), 2.0)
    (tmp_path / "log").write_text("something else")
    with pytest.raises(InputError, match="no log of"):
        read_log(tmp_path / "log")


def test_a_few_stalls_do_not_decide_the_slowdown() -> None:
    figures = Figures()
    for seconds in [0.0011] * 97 + [0.5] * 3:
        figures.add({"latency_s": {"control": 0.001, "candidate": seconds}, "outputs": {}})
    assert figures.slowdown == pytest.approx(1.1, rel=0.01)
    assert Figures().slowdown is None
