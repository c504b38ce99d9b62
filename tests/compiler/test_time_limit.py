"""A compile ends in the time that it is given, with a whole and proven model, and says what it left out."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from memoptc.allowance import GATES, PASSES, SEARCHES, Allowance, parse_seconds
from memoptc.api import compile_file
from memoptc.cli.main import main
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.parser import parse
from memoptc.manager import run_pipeline
from memoptc.options import Options
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Pipeline
from memoptc.runtime.evaluate import Evaluator

DIGITS = Path(__file__).parents[2] / "examples" / "models" / "digits_cnn.onnx"
TINY = 1e-6


NOW = [0.0]
"""Seconds of the clock that limits go by in these tests."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the test moves."""
    NOW[0] = 0.0
    monkeypatch.setattr("memoptc.allowance.time", SimpleNamespace(monotonic=lambda: NOW[0], thread_time=lambda: NOW[0]))
    return NOW


class Patient(Pass):
    """Search until the compile's time for searches is over, then settle for what there is."""

    def run(self, graph: Graph, context: Context) -> None:
        while not context.is_late("the rest of a search"):
            NOW[0] += 10.0
        NOW[0] = 49.9
        context.stats["settled"] += 1


class Stubborn(Pass):
    """Never end."""

    def run(self, graph: Graph, context: Context) -> None:
        while True:
            NOW[0] = 51.0


class Indispensable(Pass):
    """Run whatever the time."""

    kept = True

    def run(self, graph: Graph, context: Context) -> None:
        context.stats["ran"] += 1


def small_graph() -> Graph:
    return parse("graph @g(%x: f32[2]) -> (f32[2]) {\n  %a = Sin(%x) : f32[2]\n  return %a\n}\n")


@pytest.mark.parametrize("options", [{"level": 1}, {"level": 2}, {"level": 2, "target": "int8"}])
def test_a_tiny_limit_leaves_a_whole_and_proven_model(options: dict[str, object], tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    result = compile_file(DIGITS, output, time_limit=TINY, **options)
    (said,) = [w for w in result.report.warnings if "time limit" in w]
    assert "simplify" in said
    assert "--time-limit" in said
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.mode == "fast"
    onnx.checker.check_model(onnx.load(output))
    feed = {"image": np.ones((2, 1, 8, 8), np.float32)}
    for (_, a), (_, b) in zip(Evaluator(DIGITS).run(feed).items(), Evaluator(output).run(feed).items(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gates_hold_what_is_measured_within_a_tiny_limit(tmp_path: Path) -> None:
    result = compile_file(DIGITS, tmp_path / "out.onnx", time_limit=TINY, measure=True)
    assert result.report.candidate.measured is not None
    assert "timing the tier planned" in " ".join(result.report.warnings) or "more" in result.report.warnings[-1]


def test_without_a_limit_nothing_is_left_out(tmp_path: Path) -> None:
    result = compile_file(DIGITS, tmp_path / "out.onnx")
    assert not [w for w in result.report.warnings if "time limit" in w]


@pytest.mark.parametrize("options", [{"target": "int8"}, {"target": "float16"}, {"passes": "to-half,drop-dead"}])
def test_numbers_asked_for_have_more_time_and_leave_no_floats_behind(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Allowance, "spent", (PASSES + GATES) / 2 * 100.0)
    output = tmp_path / "out.onnx"
    found = compile_file(DIGITS, output, time_limit=100.0, level=2, measure=False, force=True, **options)
    assert 0 < found.report.candidate.weight_bytes < 0.6 * found.report.control.weight_bytes


def test_a_target_that_the_time_left_out_is_not_said_to_be_of_no_use(tmp_path: Path) -> None:
    found = compile_file(DIGITS, tmp_path / "out.onnx", time_limit=TINY, target="int8", measure=False)
    assert "--target int8 changed nothing: the compile's time was over." in found.report.warnings
    found = compile_file(DIGITS, tmp_path / "out.onnx", time_limit=TINY, passes="prune", measure=False)
    assert not [w for w in found.report.warnings if "nothing it applies to" in w]


def test_a_search_that_ended_by_itself_left_nothing_out(clock: list[float]) -> None:
    allowance = Allowance(100.0)
    allowance.grant(measuring=20.0)
    clock[0] = 30
    with allowance.search(measured=True) as is_spent:
        assert not is_spent()
        clock[0] = 70  # the only attempt that it took
    assert not allowance.warning
    with allowance.search(measured=True) as is_spent:
        assert is_spent()


def test_a_search_settles_a_pass_is_ended_and_what_is_needed_runs(clock: list[float]) -> None:
    allowance = Allowance(100.0)
    context = Context(allowance=allowance)
    records = run_pipeline(Pipeline((Patient(), Stubborn(), Patient(), Indispensable())), small_graph(), context)
    assert [r.stats for r in records if r.name == "patient"] == [{"settled": 1}]
    assert records[-1].stats == {"ran": 1}
    assert list(allowance.left_out) == ["the rest of a search", "stubborn", "patient"]
    assert not context.warnings  # one line at the end says it all


def test_what_a_first_attempt_left_out_stays_out_and_another_gets_its_time(clock: list[float]) -> None:
    allowance = Allowance(100.0)
    with allowance.building():
        clock[0] = 30
        assert not allowance.leaves_out("early", PASSES)
        clock[0] = 51
        assert allowance.leaves_out("late", PASSES)
        assert not allowance.leaves_out("numbers", GATES)
    clock[0] = 60
    with allowance.building():
        assert not allowance.leaves_out("early", PASSES)
        assert allowance.leaves_out("late", PASSES)
        assert allowance.left(SEARCHES) == pytest.approx(1.5 * 51)
    assert allowance.is_late("another attempt", needs=allowance.attempt)
    assert list(allowance.left_out) == ["late", "another attempt"]


def test_the_limit_that_nobody_gives_grows_with_the_model() -> None:
    small, large = Allowance(nodes=10), Allowance(nodes=10_000, weights=10**9)
    assert small.seconds < large.seconds < Allowance(nodes=10_000, weights=10**9, data=True).seconds
    before = small.seconds
    small.grant(measuring=20.0)
    assert small.seconds > before


def test_a_limit_that_nobody_gives_does_not_go_by_the_clock(clock: list[float]) -> None:
    allowance = Allowance()
    clock[0] = 1e9
    assert not allowance.is_late("anything")
    assert allowance.by_clock(PASSES) == math.inf


@pytest.mark.parametrize(("clock", "work"), [(10.0, 640.0), (640.0, 10.0)], ids=["many processors", "a busy machine"])
def test_a_limit_that_nobody_gives_goes_by_the_machine_in_no_way(
    clock: float, work: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memoptc.allowance._clocks", lambda: (0.0, 0.0))
    allowance = Allowance()
    monkeypatch.setattr("memoptc.allowance._clocks", lambda: (clock, work))
    assert allowance.spent == 10.0
    assert not allowance.is_late("anything", SEARCHES)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("1.5min", 90.0), ("2h", 7200.0), (0.5, 0.5), ("1e-06", 1e-6)]
)
def test_times_are_read(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1s", "5 minutes", "nan", math.inf, "1.2.3"])
def test_what_is_no_time_is_refused(text: str | float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no time"):
        Options(time_limit=text)


def test_the_command_line_takes_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    assert main([str(DIGITS), "-o", str(output), "--no-measure", "--time-limit", "0.000001s"]) == 0
    assert "--time-limit" in capsys.readouterr().err
    assert output.exists()
    assert main([str(DIGITS), "--time-limit", "soon"]) == 2
    assert "write one such as 90s" in capsys.readouterr().err
