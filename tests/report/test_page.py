"""The HTML report as a browser sees it: it renders, logs nothing, and nothing leaves the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from memoptc.api import compile_file
from memoptc.ir.diagnostics import BudgetError, GateError
from memoptc.report.chart import sparkline
from memoptc.report.evidence import card
from memoptc.report.rows import statistics_text
from memoptc.report.verdict import Worse
from memoptc.report.write import render_html, render_markdown, schema

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--no-first-run", "--disable-sync", "--disable-default-apps", "--disable-extensions", "--metrics-recording-only",
    "--no-pings", "--disable-features=OptimizationHints,MediaRouter",
]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of a real compile, measured."""
    folder = tmp_path_factory.mktemp("page")
    result = compile_file(MODELS / "digits_cnn.onnx", folder / "out.onnx", level=2, measure=True)
    return result.report


def test_the_page_is_one_file_and_small(report: Any) -> None:
    page = render_html(report)
    assert len(page.encode()) < 2_000_000
    assert re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?!#)[^"'#\s>)]+""", page) == []
    headings = re.findall(r"<h2>(.*)</h2>", page)
    assert headings[:3] == ["What the process needs", "Evidence card", "Before and after"]
    assert {"Planned activation memory over one run", "What makes the peak", "Passes"} <= set(headings)
    assert re.findall(r'aria-label="([^"]*)"', page) == [
        "what each process needs, by parts", "planned activation memory over one run", "arena before", "arena after",
    ]  # fmt: skip


def test_no_page_shows_a_folder_of_this_machine(report: Any) -> None:
    for text in (render_html(report), render_markdown(report)):
        assert text.replace(str(MODELS / "digits_cnn.onnx"), "").count(str(MODELS)) == 0
        assert "digits_cnn.onnx" in text


def test_a_bar_in_a_name_ends_no_cell_of_a_table(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [{**row, "name": "logits|raw\nfirst"} for row in report.verification["outputs"]]
    monkeypatch.setattr(report, "verification", {**report.verification, "outputs": outputs})
    monkeypatch.setattr(report.passes[0], "stats", {"left: a|b": 1})
    width = 0
    for line in render_markdown(report).splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not found or not width or found == width, line
        width = found
    assert "logits\\|raw<br>first" in render_markdown(report)


def test_the_card_says_what_was_made_of_what_and_how_to_repeat_it(report: Any) -> None:
    told = dict(card(report))
    assert told["How to repeat"].startswith("memoptc ")
    assert f"sha256 {report.artefacts[0]['sha256']}" in told["Artefact"]
    assert report.model["sha256"] in told["Measured with"]
    assert "need measured against the original's" in told["Failure check"]
    report.verification["passed"], kept = None, report.verification["passed"]
    report.verification["mode"], mode = "off", report.verification["mode"]
    assert "outputs were not compared" in dict(card(report))["Worse, or at risk"]
    report.verification.update(passed=kept, mode=mode)


def test_the_worst_example_is_shown_and_its_inputs_are_kept_on_request_or_failure(tmp_path: Path) -> None:
    """Outputs that differ most are a few numbers; inputs, which may be private, are a file that one asks for."""
    data = MODELS / "digits_validation.npz"
    common: dict[str, Any] = {"passes": "to-half,lower", "validation": str(data), "measure": False}
    quiet = compile_file(MODELS / "digits_cnn.onnx", tmp_path / "a.onnx", target="float16", **common)
    assert [file.name for file in quiet.files] == ["a.onnx", "a.session.json"]
    example = quiet.report.verification["example"]
    assert example["where"].startswith("digits_validation.npz, sample ")
    place = example["place"][-1] - example["first"]
    assert example["original"][place] != example["candidate"][place]
    (deciles,) = (output["error_deciles"] for output in quiet.report.verification["outputs"])
    assert deciles == sorted(deciles)
    assert deciles[-1] > 0
    page = render_html(quiet.report)
    assert f"Worst example: {example['where']}" in page
    assert "Inputs are not kept" in page

    kept = compile_file(MODELS / "digits_cnn.onnx", tmp_path / "b.onnx", target="float16", keep_worst=True, **common)
    with np.load(kept.files[-1]) as sample:
        assert {"input/image", "original/logits", "candidate/logits"} == set(sample.files)
        differences = np.abs(sample["original/logits"] - sample["candidate/logits"])
    assert np.isclose(differences.max(), abs(example["original"][place] - example["candidate"][place]))

    with pytest.raises(GateError, match="Verification failed") as failure:
        compile_file(MODELS / "digits_cnn.onnx", tmp_path / "c.onnx", max_error=1e-9, **common)
    assert str(tmp_path / "c.worst.npz") in failure.value.hint
    assert sorted(file.name for file in tmp_path.glob("c*")) == ["c.worst.npz"]
    # a compile that is refused for something else keeps nobody's inputs
    with pytest.raises(BudgetError):
        compile_file(
            MODELS / "digits_cnn.onnx",
            tmp_path / "d.onnx",
            target="float16",
            memory_budget="activations=1KiB",
            **common,
        )
    assert list(tmp_path.glob("d*")) == []


def test_the_json_form_has_what_the_schema_says(report: Any) -> None:
    data = json.loads(json.dumps(report.to_json()))
    jsonschema.validate(data, schema())
    assert set(data["candidate"]["session"]) <= {"arena", "planned"}
    assert data["candidate"]["alive"][0]["bytes"] > 0


def test_a_page_of_a_large_plan_stays_small(report: Any) -> None:
    from memoptc.runtime.memory.plan import Plan
    from memoptc.runtime.memory.problem import Buffer, Problem

    buffers = tuple(Buffer(f"a buffer with rather a long name {i}", 64, i, i + 40, 64) for i in range(20_000))
    kept = report.candidate.plan
    report.candidate.plan = Plan(Problem(buffers), tuple(64 * (i % 41) for i in range(20_000)), "made up")
    try:
        page = render_html(report)
    finally:
        report.candidate.plan = kept
    assert len(page.encode()) < 2_000_000
    assert "the 18800 smallest are not drawn" in page


def browse(html: str, folder: Path) -> tuple[str, list[str], set[str]]:
    """Open a page; give its DOM, what it logs, and what it asks of the network.

    The browser has requests of its own (updates, time); those that a page causes name its origin as initiator.
    """
    page, log = folder / "page.html", folder / "net.json"
    page.write_text(html, encoding="utf-8")
    run = subprocess.run(
        [
            CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
            "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-1000:]
    logged = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    asked = set()
    for event in json.loads(log.read_text(encoding="utf-8", errors="replace"))["events"]:
        params = event.get("params", {})
        if "initiator" in params and params["initiator"] != "not an origin":
            asked.add(str(params.get("url", "")))
    return run.stdout, logged, {url for url in asked if not url.startswith(("file:", "data:"))}


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_the_page_renders_and_asks_for_nothing(report: Any, tmp_path: Path) -> None:
    dom, logged, asked = browse(render_html(report), tmp_path)
    assert "Arena: addresses over the run" in dom
    assert dom.rstrip().endswith("</html>")
    assert (logged, asked) == ([], set())


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_a_page_that_asks_for_something_is_noticed(tmp_path: Path) -> None:
    """The check above can fail."""
    bad = '<html><body><img src="http://example.invalid/x.png"><script>console.error("no")</script></body></html>'
    _, logged, asked = browse(bad, tmp_path)
    assert any("no" in line for line in logged)
    assert asked == {"http://example.invalid/x.png"}


def test_a_curve_in_one_line() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "  "
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([50, 100], top=200) == "▂▄"
    long = sparkline([1] * 999 + [1000] + [1] * 9000, width=10)
    assert long == "█" + "▁" * 9


def test_what_grew_from_nothing_is_said_in_words() -> None:
    grew = Worse("activations in Session", "0 B", "6.96 MB", float("inf"), "activations take 6.96 MB more")
    assert str(grew).startswith("activations in Session from nothing (6.96 MB instead of 0 B)")


def test_a_loss_of_the_task_is_named_among_what_got_worse(report: Any) -> None:
    accuracy = {"metric": "top-1", "control": 0.5, "candidate": 0.375, "samples": 128}
    (found,) = [w for w in replace(report, accuracy=accuracy).worse if w.what == "top-1"]
    assert (found.before, found.after) == ("0.5000", "0.3750")
    assert found.why.startswith("16 fewer of 128 samples are right")
    perplexity = accuracy | {"metric": "perplexity"}
    assert not [w for w in replace(report, accuracy=perplexity).worse if w.what == "perplexity"]
    assert not [w for w in replace(report, accuracy=accuracy | {"candidate": 0.5}).worse if w.what == "top-1"]
    assert "top-1 0.75" in dict(card(replace(report, accuracy=accuracy)))["Worse, or at risk"]


def test_the_card_tells_what_improved_and_no_parts_of_it(report: Any) -> None:
    control, candidate = report.control, report.candidate

    def improved(file_bytes: int, nodes: int, accuracy: dict[str, Any] | None = None) -> str:
        changed = replace(candidate, file_bytes=file_bytes, nodes=nodes, weight_bytes=1)
        return dict(card(replace(report, candidate=changed, accuracy=accuracy)))["Improved"]

    smaller = improved(control.file_bytes // 2, control.nodes)
    assert "file " in smaller
    assert "file " not in improved(2 * control.file_bytes, control.nodes)
    assert "nodes" not in improved(control.file_bytes // 2, 1)  # no row of the card
    assert "weights at rest" not in smaller
    better = {"metric": "top-1", "control": 0.5, "candidate": 0.75, "samples": 128}
    told = improved(control.file_bytes, control.nodes, better)
    assert "top-1" in told
    assert "weights at rest" not in told
    assert "top-1" not in improved(control.file_bytes, control.nodes, better | {"candidate": 0.25})


def test_the_card_is_in_the_data_too(report: Any) -> None:
    assert report.to_json()["evidence"] == dict(card(report))


def test_what_a_pass_counted_is_written_for_people() -> None:
    assert statistics_text({"peak bytes": 270336, "merged": 8, "bytes of notes": 0}) == "peak bytes 270.34 kB, merged 8"
