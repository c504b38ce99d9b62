"""The project file: options and models that are checked in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from accuracy_models import CNN

from memoptc.cli.main import main
from memoptc.ir.diagnostics import InputError
from memoptc.project import read_project

TEXT = f"""
[options]
level = 1
measure = false
verify = "off"
dim = {{ batch = 4 }}
skip-pass = "simplify"

[[models]]
model = "{CNN}"
output = "out/first.onnx"
report = ["out/first.json"]
level = 0
skip_passes = []

[[models]]
model = "missing.onnx"
"""


def test_command_line_before_entry_before_options_before_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "memoptc.toml").write_text(TEXT)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")  # the file is in the folder above
    assert main(["compile", "--json"]) == 2  # the second model is missing; the first is compiled all the same
    first, second = json.loads(capsys.readouterr().out)["models"]
    assert "missing.onnx" in second["error"]
    for words in (["-o", "all.onnx"], ["--report", "all.json"]):  # one file for two models
        assert main(["compile", *words]) == 2
        assert "cannot be that of every model" in capsys.readouterr().err
    assert not (tmp_path / "below" / "all.onnx").exists()
    report = json.loads((tmp_path / "out/first.json").read_text())
    assert (tmp_path / "out/first.onnx").is_file()
    for options in (first["options"], report["options"]):
        told = {n: options[n] for n in ("level", "dims", "skip_passes", "measure", "target", "config")}
        assert told == {
            "level": 0,
            "dims": {"batch": 4},
            "skip_passes": [],
            "measure": False,
            "target": "float32",
            "config": "../memoptc.toml",
        }
    assert "--config ../memoptc.toml" in report["command"]
    assert main([str(CNN), "two.onnx", "-O1", "--dim", "batch=2", "--skip-pass", "share-common", "--json"]) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    assert (options["level"], options["dims"], options["skip_passes"]) == (1, {"batch": 2}, ["share-common"])
    assert main([str(CNN), "three.onnx", "-O1", "--skip-pass", "share-common"]) == 0
    assert "../memoptc.toml: --no-measure --verify off --dim batch=4" in capsys.readouterr().err
    assert main([str(CNN), "--config", "none", "--print-pipeline", "--json"]) == 0
    assert "fit" in json.loads(capsys.readouterr().out)["pipeline"]


def test_a_model_that_is_listed_twice_is_compiled_as_each_entry_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = f'[[models]]\nmodel = "{CNN}"\noutput = "%s.onnx"\ntarget = "%s"\n'
    (tmp_path / "memoptc.toml").write_text(
        '[options]\nlevel = 1\nmeasure = false\nverify = "off"\n' + entry % ("a", "float32") + entry % ("b", "float16")
    )
    assert main(["compile", "--json"]) == 0
    assert [m["options"]["target"] for m in json.loads(capsys.readouterr().out)["models"]] == ["float32", "float16"]
    assert main([str(CNN), "-o", "b.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["target"] == "float16"
    assert main(["run", str(CNN)]) == 0  # both entries say the same of what this command takes
    assert main([str(CNN), "--print-pipeline"]) == 2
    assert "2 times, with other options each" in capsys.readouterr().err
    (tmp_path / "memoptc.toml").write_text(entry % ("a", "float32") + entry % ("a", "float16"))
    assert main(["compile"]) == 2
    assert "two models are written to a.onnx" in capsys.readouterr().err


def test_what_is_wrong_with_one_model_is_no_fault_of_memoptc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "memoptc.toml").write_text(f'[[models]]\nmodel = "{CNN}"\nlevel = 9\n')
    assert main(["compile"]) == 2
    assert "9 is not in the range" in capsys.readouterr().err
    text = f'[options]\nreport = ["all.json"]\n[[models]]\nmodel = "{CNN}"\n[[models]]\nmodel = "other.onnx"\n'
    (tmp_path / "memoptc.toml").write_text(text)
    assert main(["compile"]) == 2
    assert "cannot be that of every model" in capsys.readouterr().err


def test_other_commands_read_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the options of a compile, those that a command has: for the model, and for what was compiled of it."""
    (tmp_path / "memoptc.toml").write_text(f"""
[options]
prune-tokens = true
[[models]]
model = "{CNN}"
output = "small.onnx"
dim = {{ batch = 3 }}
""")
    monkeypatch.chdir(tmp_path)
    shutil.copy(CNN, "small.onnx")
    for model in (str(CNN), "small.onnx"):
        assert main(["run", model]) == 0
        assert "memoptc.toml: --dim batch=3\n" in capsys.readouterr().err
    assert main(["plan", "small.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dims"] == {"batch": 3}
    assert main(["plan", "small.onnx", "--json", "--dim", "batch=2"]) == 0
    assert json.loads(capsys.readouterr().out)["dims"] == {"batch": 2}
    assert main(["run", "small.onnx", "--config", "none"]) == 0
    assert "memoptc.toml" not in capsys.readouterr().err
    assert main(["run", "small.onnx", "--config", "missing.toml"]) == 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[options]\ncalibratoin = 'x'", "calibratoin.*calibration"),
        ("[options]\nmax_accuracy_los = 1", "max_accuracy_los.*max-accuracy-loss"),
        ("[option]\nlevel = 1", "option.*options"),
        ("[[models]]\nmodle = 'x'", "named by its path|modle"),
        ("[options]\nforce = 3", "force is true or false"),
        ("[options]\nlevel = [1, 2]", "level is one value"),
        ("level = ", "no TOML"),
    ],
)
def test_what_is_no_option_is_named(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "memoptc.toml").write_text(text)
    with pytest.raises(InputError) as error:
        read_project(tmp_path / "memoptc.toml")
    assert re.search(what, f"{error.value.message} {error.value.hint}")
    assert main(["compile", str(CNN), "--config", str(tmp_path / "memoptc.toml")]) == 2


def test_values_are_held_to_what_options_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "memoptc.toml").write_text("[options]\nlevel = 9\n")
    assert main([str(CNN), "--config", str(tmp_path / "memoptc.toml")]) == 2
    assert "9" in capsys.readouterr().err
