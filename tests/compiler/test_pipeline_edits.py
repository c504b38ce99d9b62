"""--skip-pass and --set: what they change, and that a name which does not run is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoptc.cli import main
from memoptc.ir.diagnostics import InputError
from memoptc.pipeline import parse
from memoptc.pipeline_edits import edited

CNN = str(Path(__file__).parents[2] / "examples/models/digits_cnn.onnx")
TEXT = '(simplify,share-common)*,fit,simplify,to-half{device="auto"}'


def test_passes_are_left_out_and_set_wherever_they_stand() -> None:
    found = edited(parse(TEXT), ["simplify"], ["fit.slowdown=2", "fit.budget=1000", "to-half.format=bfloat16"])
    assert found == parse('(share-common)*,fit{budget=1000,slowdown=2.0},to-half{device="auto",format="bfloat16"}')
    assert edited(parse(TEXT)) == parse(TEXT)


@pytest.mark.parametrize(
    ("skipped", "settings", "message"),
    [
        (["lower"], [], "--skip-pass names 'lower', which does not run"),
        ([], ["lower.x=1"], "--set names 'lower', which does not run"),
        ([], ["fit.nope=1"], "fit has no option nope"),
        ([], ["fit.slowdown=fast"], "slowdown must be"),
        ([], ["fit"], "'fit' sets no option"),
    ],
)
def test_what_changes_nothing_is_an_error(skipped: list[str], settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edited(parse(TEXT), skipped, settings)


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CNN, "-O1", "--skip-pass", "simplify", "--set", "order.effort=2", "--print-pipeline"]) == 0
    out = capsys.readouterr().out
    assert "simplify" not in out
    assert "order{effort=2" in out
    assert main([CNN, "--skip-pass", "nope", "--print-pipeline"]) == 2


@pytest.mark.parametrize("command", ["run", "fits"])
def test_inputs_that_are_missing_are_bad_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, CNN, "--inputs", "nowhere.npz"]) == 2
    assert "does not exist" in capsys.readouterr().err
