"""What people type: two paths, shapes of inputs, nodes left alone, progress in a pipe; a mistake is never a fault."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from accuracy_models import CNN, DATA, FLAGS

import memoptc
from memoptc.cli.main import COMMANDS, EPILOG, SUMMARIES, main
from memoptc.compilation import Compilation
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.node_names import excluding
from memoptc.options import Options
from memoptc.pipeline import parse

COMPILE = [str(CNN), "-O1", "--no-measure", "--verify", "off"]


def test_in_and_out_and_lines_of_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    assert main([COMPILE[0], str(out), *COMPILE[1:], "--progress", "plain", "--input-shape", "image:4,1,8,8"]) == 0
    assert out.is_file()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memoptc: ")]
    assert lines[0] == "memoptc:   0% reading"
    assert lines[-1] == "memoptc: 100% done"
    assert len(lines) == len(set(lines)) > 5
    assert main([COMPILE[0], str(out), *COMPILE[1:], "-o", str(out)]) == 2
    assert "Two places to write" in capsys.readouterr().err


def test_shapes_of_inputs_are_extents(tmp_path: Path) -> None:
    asked = Options(input_shapes=("image:4,1,8,8",), verify="off")
    assert Compilation.of(CNN, asked, tmp_path).options.dims == {"batch": 4}
    for shape, what in {
        "image:4,3,8,8": "axis 1 of the model is always 1",
        "image:4": "the rank of the input is 4",
        "picture:4,1,8,8": "no input 'picture'",
    }.items():
        with pytest.raises(InputError, match=what):
            Compilation.of(CNN, Options(input_shapes=(shape,), verify="off"), tmp_path)
    with pytest.raises(InputError, match="no shape of an input"):
        Options(input_shapes=("image",))
    for other in ({"dims": {"batch": 8}}, {"freeze": {"batch": 8}}):
        with pytest.raises(InputError, match="Dimension batch is said to be"):
            Compilation.of(CNN, Options(input_shapes=("image:4,1,8,8",), verify="off", **other), tmp_path)


def test_excluded_nodes_stay_in_float() -> None:
    options = {"level": 0, "target": "int8", "verify": "off", **DATA}
    kept = memoptc.compile(CNN, exclude=("*Conv_17?",), **options).graph
    coded = {op.name: op.operands[1].op.is_a("DequantizeLinear") for op in kept.walk("Conv")}  # type: ignore[union-attr]
    assert {name for name, quantized in coded.items() if not quantized} == {"node_Conv_170", "node_Conv_172"}
    assert len(coded) > 2


def test_what_nothing_matches_is_an_error() -> None:
    graph = read_onnx(CNN)
    pipeline = parse("simplify,factorize,lower")
    assert excluding(pipeline, graph, ()) is pipeline
    first = next(graph.walk("Conv"))
    (changed,) = (p for p in excluding(pipeline, graph, (first.name,)).passes() if p.name == "factorize")
    assert changed.exclude[0] == first.name  # type: ignore[attr-defined]
    first.name = "block[0]/Conv"  # a name, though its brackets are a pattern
    (changed,) = (p for p in excluding(pipeline, graph, (first.name,)).passes() if p.name == "factorize")
    assert changed.exclude[0] == first.name  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"--exclude conv\* matches no node"):
        excluding(pipeline, graph, ("conv*",))
    with pytest.raises(InputError, match="No pass of this compile"):
        excluding(parse("simplify,lower"), graph, ("Conv",))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", str(CNN), "--inputs", str(CNN)], "is no .npz file"),
        (["run", str(CNN), "--inputs", "none.npz"], "does not exist"),
        (["profile", str(CNN), "--dim", f"batch={10**20}"], "more than a dimension can have"),
        ([*COMPILE, "--exclude", "nothing", *FLAGS], "matches no node"),
        ([*COMPILE, "--dump-dir", str(CNN / "x")], "digits_cnn.onnx"),
    ],
)
def test_a_mistake_is_no_fault(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert what in capsys.readouterr().err.replace("\n", " ")


def test_arrays_of_objects_are_called_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "in.npz", image=np.array(["a", "b"], object))  # type: ignore[arg-type]  # takes it for `allow_pickle`
    assert main(["run", str(CNN), "--inputs", str(tmp_path / "in.npz")]) == 2
    assert "'image' holds Python objects" in capsys.readouterr().err.replace("\n", " ")


def test_a_console_without_box_characters_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["passes"]) == 0
    shown.flush()
    assert b"prune-tokens" in shown.buffer.getvalue()  # type: ignore[attr-defined]


def test_all_exit_codes_are_told() -> None:
    assert [code for code in ("0", "1", "2", "3", "4", "130") if f" {code} " not in EPILOG] == []


def test_a_mistyped_command_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, hint in {"profil": "Did you mean `memoptc profile`?", "wardrobe": "`memoptc --help` lists"}.items():
        assert main([word, str(CNN)]) == 2
        said = capsys.readouterr().err
        assert f"{word}: no command and no file" in said
        assert hint in said
    assert main([str(tmp_path / "profil")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_help_names_every_command_in_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(name for group in SUMMARIES.values() for name in group) == sorted(COMMANDS)
    main(["--help"])
    said = capsys.readouterr().out
    for group in SUMMARIES.values():
        for name, summary in group.items():
            assert [line for line in said.splitlines() if line.split()[:1] == [name] and line.endswith(summary)]


def test_what_a_need_is_made_of_is_shown_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(CNN), "-O0", "--verify", "off", "-o", str(tmp_path / "o.onnx")]
    assert main(asked) == 0
    short = capsys.readouterr().out
    assert "--validation DATA compares both models" in short
    assert main([*asked, "-v"]) == 0
    assert "peak of loading  " not in short
    assert "peak of loading  " in capsys.readouterr().out
