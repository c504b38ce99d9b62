"""`memoptc opt` and `memoptc bisect`: what they read, and what they say of passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoptc.cli.main import main

CASE = """// pipeline: simplify
graph @case(%x: f32[N,8]) -> (f32[N,8]) {
  %a = Identity(%x) : f32[N,8]
  %b = Relu(%a) : f32[N,8]
  return %b
}
"""
UPDATED = f'{CASE}// ---- expect\n\nmodel {{ir_version=10, opset={{""=21}}}}\n\ngraph @other() -> () {{\n  return\n}}\n'
ENDLESS = """rule turn {
  match %y = Max(%a, %b)
  replace %y = Max(%b, %a)
}
"""


@pytest.mark.parametrize("text", [CASE, UPDATED])
def test_a_case_is_read_up_to_its_expectation(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "case.mir").write_text(text)
    assert main(["opt", str(tmp_path / "case.mir"), "--passes", "simplify,share-common,drop-dead"]) == 0
    told = capsys.readouterr()
    assert "Relu(%x)" in told.out
    assert "Identity" not in told.out
    assert "simplify: " in told.err
    assert told.err.splitlines()[-1] == "nothing: share-common, drop-dead"


def test_bisect_says_which_pass_was_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.mir").write_text(
        "graph @g(%x: f32[N,8], %y: f32[N,8]) -> (f32[N,8]) {\n  %z = Max(%x, %y) : f32[N,8]\n  return %z\n}\n"
    )
    (tmp_path / "turn.rules").write_text(ENDLESS)
    assert main(["opt", str(tmp_path / "m.mir"), "-o", str(tmp_path / "m.onnx"), "-q", "--passes", "lower"]) == 0
    words = ["--passes", "turn,lower", "--plugin", str(tmp_path / "turn.rules")]
    assert main(["bisect", str(tmp_path / "m.onnx"), *words]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == "no pass breaks the numbers"
    assert "turn did not end" in told.err
