"""Cases of the passes with random edits: the pipeline of the case, and draws of level, target and writing options.

`tests/fuzz/long_run.py` does the same for thousands of models, with a log and tables of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.long_run import run, summary, try_seed

CI_SEEDS, NIGHTLY_SEEDS = 8, 3000


def test_numbers_are_kept() -> None:
    entries = [try_seed(seed) for seed in range(CI_SEEDS)]
    assert [f"{e['seed']} {e['name']} {e['fault']}" for e in entries if e["fault"]] == []
    assert sum(e["counts"].get("models", 0) for e in entries) > CI_SEEDS / 2
    assert any(key.startswith("pass ") for e in entries for key in e["counts"])


@pytest.mark.nightly
def test_numbers_are_kept_at_length(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert list(run(range(10**6, 10**6 + NIGHTLY_SEEDS), log, 120.0)) == []
    assert "0 faults" in summary(log)


def test_a_log_becomes_tables(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"seed": 0, "name": "a", "fault": "", "operators": {"Relu": 2}, "seconds": 1.5,'
        ' "counts": {"models": 1, "way level=1 external=always": 1, "way passes=a,b": 1, "pass narrow": 120}}\n'
        '{"seed": 1, "name": "b", "fault": "y differs", "counts": {"models": 1, "pass order": 3}}\n'
        '{"seed": 2, "name": "", "fault": "", "counts": {"refused": 1}}\n'
    )
    text = summary(log)
    assert text.startswith(
        "2 models, 1 refused by onnxruntime, 0 end it, 2 compiles, 1 faults, 0 passes ended early; slowest"
    )
    assert "ways: external=always 1, level=1 1, own pipeline 1\npasses: narrow 120\nless than 100:" in text
    assert "order 3" in text
    assert "1 operators: Relu 1\n1 b: y differs" in text
