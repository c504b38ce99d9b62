"""Every command says its result as one JSON document, errors too; every size may be written as people write sizes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click
import pytest
from accuracy_models import CNN

import memoptc
import memoptc.runtime
from memoptc.cli.main import COMMANDS, cli, main
from memoptc.pipeline import parse

ASKED = {
    "compile": (0, ["{cnn}", "{out}/c.onnx", "-O1", "--no-measure", "--verify", "off"], "verdict files"),
    "opt": (0, ["{cnn}", "--passes", "simplify"], "graph passes"),
    "passes": (0, [], "passes rules pipelines"),
    "rules": (0, ["test", "{rules}", "--instances", "3"], "rules"),
    "new-pass": (0, ["shown-as-json", "-o", "{out}/package"], "files"),
    "frontier": (2, ["{cnn}", "--points", "1", "--report", "{out}/frontier.txt"], "error hint"),
    "profile": (0, ["{cnn}", "--static"], "points nodes"),
    "plan": (0, ["{cnn}"], "arena_bytes buffers"),
    "run": (0, ["{cnn}", "--outputs", "{out}/o.npz"], "outputs median_ms"),
    "show": (0, ["{cnn}", "-o", "{out}/graph.html"], "files nodes"),
    "fits": (0, ["{cnn}", "--limit", "2GiB"], "need"),
    "verify": (0, ["{cnn}", "{cnn}"], "passed outputs"),
    "bisect": (0, ["{cnn}", "--passes", "drop-dead", "--dim", "batch=1"], "culprit"),
    "reduce": (2, ["{cnn}"], "error hint"),
    "study": (2, ["{cnn}", "-o", "{out}/study", "--only", "nothing"], "error hint"),
    "cascade": (2, ["{cnn}", "{cnn}"], "error hint"),
    "merge": (0, ["{cnn}", "-o", "{out}/merged"], "bytes_after"),
    "stages": (0, ["{cnn}", "-o", "{out}/stages"], "weight_bytes"),
    "diff": (0, ["{cnn}", "{cnn}"], "nodes"),
    "drift": (2, ["{cnn}"], "error hint"),
}
"""What each command is asked, with its exit code and keys of its answer; what takes long is asked what it refuses."""

RULES = """rule twice {
  match %a = Neg(%x); %y = Neg(%a)
  replace %y = %x
}
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_one_json_document(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, words, keys = ASKED[command]
    (tmp_path / "twice.rules").write_text(RULES)
    spelled = [w.format(cnn=CNN, out=tmp_path, rules=tmp_path / "twice.rules") for w in words]
    assert main([command, *spelled, "--json"]) == code

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    answer = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert set(keys.split()) <= set(answer)


@pytest.mark.parametrize(
    "words",
    [
        ["bisect", str(CNN), "--passes", "drop-dead", "--dim", "batch=1"],
        ["fits", str(CNN), "--limit", "2GiB"],
        ["compile", str(CNN), "--print-pipeline"],
    ],
    ids=lambda words: words[0],
)
def test_quiet_commands_still_give_what_they_are_called_for(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "-q"]) == 0
    assert capsys.readouterr().out.strip()


def test_mistakes_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "missing.onnx", "--json"]) == 2
    first = json.loads(capsys.readouterr().out)
    assert main(["compile", str(CNN), "--no-such-option", "--json"]) == 2
    second = json.loads(capsys.readouterr().out)
    assert first["exit_code"] == second["exit_code"] == 2
    assert "missing.onnx" in first["error"]
    assert "--no-such-option" in second["error"]


SIZES = {
    ("compile", "memory_budget"): "64MiB",
    ("plan", "spaces"): "sram=64MiB",
    ("run", "memory_limit"): "64MiB",
    ("fits", "limit"): "64MiB",
    ("reduce", "above"): "64MiB",
}
"""Options of commands that take bytes. `study --memory` is a name, `--sizes` a switch."""


def test_options_that_take_bytes_take_sizes() -> None:
    context = click.Context(cli)
    found = set()
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            told = f"{parameter.name} {getattr(parameter, 'help', '')}".lower()
            takes_text = isinstance(parameter, click.Option) and not parameter.is_flag
            if takes_text and not isinstance(parameter.type, click.Choice):
                if any(word in told for word in ("mib", "kib", "bytes", "memory_limit")):
                    found.add((name, str(parameter.name)))
                    assert (name, parameter.name) in SIZES, f"is {name} --{parameter.name} tested with 64MiB?"
                    parameter.type_cast_value(context, SIZES[name, str(parameter.name)])
    assert found == set(SIZES)


def test_python_and_pipelines_take_sizes() -> None:
    for owner in (memoptc, memoptc.runtime):
        for name in owner.__all__:
            kind = getattr(owner, name)
            if not callable(kind) or name == "Contract":  # a contract is what a file holds
                continue
            members = (
                [kind, *(getattr(kind, m) for m in vars(kind) if m == "set_limit")] if inspect.isclass(kind) else [kind]
            )
            for function in members:
                for parameter in inspect.signature(function).parameters.values():
                    if parameter.name in ("memory_limit", "limit", "arena_bytes"):
                        assert "str" in str(parameter.annotation), f"{name}({parameter.name})"
    assert str(parse("fit{budget=64MiB}")) == f"fit{{budget={64 << 20}}}"
    session = memoptc.runtime.Session(CNN, memory="arena", memory_limit="64MiB", arena_bytes="1MiB")
    assert session.memory_limit == 64 << 20
