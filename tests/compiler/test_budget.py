"""A budget of the whole process: reached by smaller activations, or refused with what holds it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from runtime_models import normal, parse

import memoptc
from memoptc.allowance import Allowance
from memoptc.budget import Budget
from memoptc.budget_search import search_budget
from memoptc.cli.main import main
from memoptc.ir.diagnostics import BudgetError, InputError
from memoptc.options import Options
from memoptc.process_budget import MARGIN, Held, check_process, held
from memoptc.runtime.measure import measure_need
from memoptc.runtime.memory.need import NeedEstimate
from memoptc.runtime.options import STOCK
from memoptc.runtime.sizes import RESOLUTION

MB = 10**6


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, Budget()),
        (5, Budget(process=5)),
        ("1KiB", Budget(process=1024)),
        ("activations=2kB, weights=3", Budget(activations=2000, weights=3)),
        ("process=1M,activations=7", Budget(1 << 20, 7)),
    ],
)
def test_spellings(written: str | int | None, meant: Budget) -> None:
    assert Budget.of(written) == meant
    assert not meant or Budget.of(str(meant)) == meant


@pytest.mark.parametrize("text", ["much", "activations", "cache=5MB", "activations=1,activations=2", "1MB,2MB"])
def test_what_is_no_budget_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="memory_budget"):
        memoptc.compile(convolutions(tmp_path), memory_budget=text)
    assert main([str(tmp_path / "m.onnx"), "--memory-budget", text]) == 2
    assert "256MiB" in capsys.readouterr().err


def test_a_way_of_running_needs_a_budget(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none"):
        memoptc.compile(convolutions(tmp_path), memory_budget="activations=5MB", run_with="session")


def convolutions(folder: Path) -> Path:
    """A peak of 50 MB between two convolutions over a large picture, which tiles avoid; 7 MB go in and out."""
    weights = {"a": normal(32, 4, 3, 3), "b": normal(4, 32, 3, 3)}
    text = (
        "g (float[1, 4, 448, 448] x) => (float[1, 4, 448, 448] y) {"
        " h = Conv<pads = [1, 1, 1, 1]>(x, a) r = Relu(h) y = Conv<pads = [1, 1, 1, 1]>(r, b) }"
    )
    path = folder / "m.onnx"
    onnx.save(parse(text, **weights), path)
    return path


def test_activations_shrink_until_the_process_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Level 1 tiles nothing by itself; the measured process decides."""
    path, out = convolutions(tmp_path), tmp_path / "out.onnx"
    feed = {"x": np.ones((1, 4, 448, 448), np.float32)}
    before = measure_need(path, feed).need_bytes
    budget = int(before * 0.7)
    arguments = [str(path), "-O1", "-o", str(out), "-q", "--run-with", "stock"]
    assert main([*arguments, "--memory-budget", str(budget)]) == 0
    assert measure_need(out, feed, options=STOCK).need_bytes <= budget
    assert len(onnx.load(out).graph.node) > 3
    assert "took the passes of -O2" in capsys.readouterr().err


def test_out_of_reach_says_what_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "w.onnx"
    onnx.save(parse("g (float[1, 2048] x) => (float[1, 2048] y) { y = MatMul(x, w) }", w=normal(2048, 2048)), path)
    with pytest.raises(BudgetError) as refused:
        memoptc.compile(path, memory_budget="8MB")
    assert "The budget of 8.00 MB is out of reach: the process needs" in refused.value.message
    assert "weights 16.78 MB" in refused.value.message
    assert "--target int8 would take about" in str(refused.value.hint)
    with pytest.raises(BudgetError, match=r"The weights take 16\.\d+ MB, their budget is 8\.00 MB"):
        memoptc.compile(path, memory_budget="weights=8MB")
    kept = memoptc.compile(path, memory_budget="8MB", force=True)
    assert any("out of reach" in warning for warning in kept.report.warnings)


@pytest.mark.parametrize("share", [0.005, 0.3])
def test_a_refused_budget_writes_nothing_and_the_one_that_is_named_is_kept(
    share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "w.onnx", tmp_path / "out.onnx"
    onnx.save(parse("g (float[1, 2048] x) => (float[1, 2048] y) { y = MatMul(x, w) }", w=normal(2048, 2048)), path)
    command = [str(path), "-o", str(out), "--no-measure", "--memory-budget"]
    assert main([*command, str(int(share * path.stat().st_size))]) == 4
    assert not list(tmp_path.glob("out*"))
    named = re.search(r"the process needs (\d+\.\d\d) MB", " ".join(capsys.readouterr().err.split()))
    assert named is not None
    assert main([*command, f"{float(named[1]) + 0.01:.2f}MB"]) == 0
    assert out.exists()


def test_a_budget_that_is_kept_is_said(tmp_path: Path) -> None:
    found = memoptc.compile(convolutions(tmp_path), level=1, memory_budget="1GB")
    (decision,) = [d for d in found.report.decisions if d.step == "budget"]
    assert decision.what in ("kept in stock onnxruntime", "kept in Session")
    assert decision.why.startswith("predicted ")
    assert decision.why.endswith("and 20% by which predictions may be low, of 1.00 GB")


def judged(check: Any, needs: Held, sizes: tuple[int, int], unknown: tuple[str, ...] = (), **options: Any) -> list[str]:
    """What `check_process` says of a result; its estimates are of weights alone."""
    estimates = [NeedEstimate(0, n, 0, 0, 0, 0, unknown=unknown) for n in sizes]
    attempt: Any = SimpleNamespace(written=SimpleNamespace(estimates=estimates), warnings=[], decisions=[])
    data: Any = SimpleNamespace(check=check, dims={"batch": 64})
    check_process(attempt, needs, Options(memory_budget=10 * MB, **options), data)
    return [*attempt.warnings]


def test_predictions_are_held_with_a_margin_and_measurements_with_what_processes_differ_by() -> None:
    for how, most in (("predicted", int(10 * MB / MARGIN)), ("measured", 10 * MB - RESOLUTION)):
        options = Options(memory_budget=10 * MB)
        assert judged(None, held((most, most), options, how), (MB, MB)) == []
        with pytest.raises(BudgetError, match=f"the process needs 10\\.00 MB \\({how} "):
            judged(None, held((most + 2, most + 2), options, how), (MB, MB))


def test_sizes_that_are_not_known_are_no_prediction() -> None:
    needs = held((MB, MB), Options(memory_budget=10 * MB), "predicted")
    with pytest.raises(BudgetError, match="cannot be predicted: 1 values have no known size, such as 'v'"):
        judged(None, needs, (MB, MB), ("v",))
    assert judged(None, held((MB, MB), Options(), "measured"), (MB, MB), ("v",)) == []


def test_another_way_of_running_and_larger_extents_are_named_where_the_budget_is_not_kept() -> None:
    options = Options(memory_budget=10 * MB)
    (text,) = judged(None, held((12 * MB, 9 * MB), options, "measured"), (12 * MB, 9 * MB))
    assert text.startswith("The budget is kept in Session only: in stock onnxruntime it needs 12.26 MB")
    (text,) = judged({"batch": 4}, held((9 * MB, 9 * MB), options, "measured"), (30 * MB, 30 * MB))
    assert "kept at batch=4; at batch=64 the process is predicted to need up to 36.00 MB" in text
    needs = held((12 * MB, 9 * MB), replace(options, run_with="stock"), "measured")
    with pytest.raises(BudgetError) as refused:
        judged(None, needs, (12 * MB, 9 * MB), run_with="stock", max_slowdown=1.5)
    assert "--run-with session needs 9.26 MB; or --target int8 would take about" in refused.value.hint
    assert "--max-slowdown 1.5" in refused.value.hint


@dataclass
class FakeAttempt:
    """What `reach` reads of an attempt."""

    pipeline: Any
    form: str
    need: int
    slowdown: float | None
    planned: int

    def __post_init__(self) -> None:
        self.warnings: list[str] = []
        self.choice = SimpleNamespace(form=SimpleNamespace(name=self.form, external=True))
        estimates = [NeedEstimate(0, 0, 0, 30 * MB, 0, 0)] * 2
        self.written = SimpleNamespace(planned_peak_bytes=self.planned, estimates=estimates)


def reached(script: list[tuple[int, float | None]], **options: Any) -> tuple[FakeAttempt, list[FakeAttempt]]:
    """Search with attempts that need so much (MB) and are so slow, one after the other; give the best, and all."""
    built: list[FakeAttempt] = []
    compilation = SimpleNamespace(
        options=Options(memory_budget=10 * MB, external="never", **options),
        data=SimpleNamespace(calibration=None),
        source=SimpleNamespace(graph=None),
    )

    def build(pipeline: Any, form: str = "auto") -> Any:
        need, slowdown = script[len(built)]
        built.append(FakeAttempt(pipeline, form, need * MB, slowdown, need * MB))
        return built[-1]

    attempts: Any = SimpleNamespace(compilation=compilation, build=build, allowance=Allowance())
    best: Any = search_budget(
        attempts,
        build("first", "branch"),
        lambda a: Held("stock", a.need, "measured"),  # type: ignore[attr-defined]
        lambda a, way: a.slowdown,  # type: ignore[attr-defined]
    )
    return best, built


def budget_of(attempt: FakeAttempt) -> int:
    """Bytes that the activations of an attempt were to fit into."""
    return next(p.budget for p in attempt.pipeline.passes() if p.name == "fit")


def test_the_nearest_attempt_counts_not_the_last() -> None:
    """Tiles that are smaller still may cost more, as nodes and copies of weights, than they save."""
    best, built = reached([(30, None), (20, None), (24, None), (20, None)])
    assert best is built[3]
    assert best.pipeline is built[1].pipeline is not built[2].pipeline
    assert best.form == built[1].form


def test_a_slow_result_gets_the_memory_that_is_left() -> None:
    """The fastest that fits is taken; what became no faster ends the search, and what is fast enough needs none."""
    best, built = reached([(4, 1.5), (7, 1.2), (12, None), (8, 1.19), (7, 1.2)])
    assert [budget_of(a) > 4 * MB for a in built[1:4]] == [True] * 3
    assert 7 * MB < budget_of(built[3]) < 12 * MB
    assert best.pipeline is built[1].pipeline
    assert len(built) == 5
    assert len(reached([(4, None)])[1]) == 1


def test_a_budget_far_out_of_reach_is_told_how_far_down_it_goes() -> None:
    best, built = reached([(80, None), (60, None)])
    assert budget_of(built[1]) == 1
    assert best is built[1]
