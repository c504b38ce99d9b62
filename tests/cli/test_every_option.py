"""No option is silently without effect: in every mode of every command it is used or refused with a message."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from memoptc.cli.main import COMMANDS, main
from memoptc.cli.options import GENERAL, Grouped
from memoptc.cli.project import ProjectCommand

RUN = {"model", "outputs", "inputs", "dims", "seed"}
SESSION = {*RUN, "memory", "memory_limit", "runs", "threads"}
TOKENS = {"model", "outputs", "generate", "prompt_ids", "memory", "memory_limit", "threads", "max_new_tokens"}
TOKENS |= {"max_length", "temperature", "stop"}
LAYERS = {"model", "layers", "targets", "level", "calibration", "validation", "dims"}
LAYERS |= {"min_sqnr", "max_accuracy_loss", "metric", "fallback"}
WHOLE = {"repeats", "seconds", "time_limit", "slowdown", "deployment", "processes", "cluster", "only", "prune_tokens"}
WHOLE |= {
    "early_exit",
    "prune",
    "cascade",
    "feature_statistics",
    "output",
    "jobs",
    "model",
    "targets",
    "calibration",
    "validation",
    "dims",
}
VERIFY = {"original", "candidate", "full", "keep", "metric", "validation", "dims"}
REDUCE = {"model", "output", "trial_seconds", "seconds"}
HOW = {"level", "target", "passes", "dims"}
OPT = {"file", "output", "no_verify_each", "print_after", "print_changed", "traced", "passes", "dims"}

MODES: dict[str, dict[str, set[str]]] = {
    "run": {
        "--memory=stock": SESSION - {"memory_limit"},
        "--memory=arena": SESSION,
        "--memory=planned": {*SESSION, "strict"},
        "--inputs=in.npz": {*SESSION, "arena"} - {"dims", "seed"},
        "--arena": {*RUN, "arena"},
        "--generate --prompt-ids=ids.txt": TOKENS,
        "--generate --prompt-ids=ids.txt --temperature=1": {*TOKENS, "seed", "top_k", "top_p"},
    },
    "fits": {
        "": {"model", "run_with", "inputs", "threads", "dims", "limit", "seconds", "seed"},
        "--limit=1GiB": {"model", "run_with", "inputs", "threads", "dims", "limit", "sizes", "seed"},
        "--inputs=in.npz": {"model", "run_with", "inputs", "threads", "limit", "seconds"},
        "--limit=1GiB --sizes": {"model", "run_with", "threads", "dims", "limit", "sizes", "seconds", "seed"},
    },
    "profile": {
        "": {"model", "top", "static", "threads", "picture", "contract", "dims"},
        "--static": {"model", "top", "static", "threads", "picture", "dims"},
    },
    "study": {
        "": {*WHOLE, "layers"},
        "--cascade=small.onnx": {*WHOLE, "max_disagreement"} - {"cluster"},
        "--layers --calibration=in.npz": LAYERS,
    },
    "verify": {
        "": {*VERIFY, "bit_exact", "target", "max_error", "min_sqnr"} - {"metric"},
        "--validation=in.npz": {*VERIFY, "bit_exact", "target", "max_error", "min_sqnr"},
        "--validation=in.npz --max-error=1": {*VERIFY, "target", "max_error"},
        "--validation=in.npz --bit-exact": {*VERIFY, "bit_exact"},
    },
    "reduce": {
        "--test=true": {*REDUCE, "command_"},
        "--fails": {*REDUCE, *HOW, "fails"},
        "--differs=2": {*REDUCE, *HOW, "differs"} - {"level"},
        "--slow=1": {*REDUCE, *HOW, "slow"} - {"trial_seconds"},
        "--above=100": {*REDUCE, *HOW, "above"},
    },
    "opt": {"": {*OPT, "full"}, "-o out.mir": OPT},
}
"""Command -> words that choose a mode -> the parameters that it uses; all others must be refused."""

VALUES = {"inputs": "in.npz", "prompt_ids": "ids.txt", "temperature": "1", "limit": "1GiB", "differs": "1", "slow": "9"}
VALUES |= {
    "memory_limit": "1GiB",
    "above": "9",
    "only": "-O1",
    "metric": "perplexity",
    "print_after": "all",
    "time_limit": "9s",
}


def _command(name: str) -> click.Command:
    command: click.Command = importlib.import_module(COMMANDS[name]).command
    return command


def _own(name: str) -> list[click.Parameter]:
    """Parameters but those that every command has; a plug-in brings the passes that others name."""
    parameters = [p for p in _command(name).params if p.name not in ("plugins", "config")]
    return [p for p in parameters if not (isinstance(p, Grouped) and p.group == GENERAL)]


def _words(parameter: click.Parameter) -> list[str]:
    assert isinstance(parameter, click.Option)
    assert parameter.name is not None
    flag = (parameter.secondary_opts or parameter.opts)[0]
    if parameter.is_flag:
        return [flag]
    kind: Any = parameter.type
    value = VALUES.get(parameter.name) or ("N=1" if parameter.name == "dims" else "")
    value = value or (kind.choices[0] if isinstance(kind, click.Choice) else "2" if _is_number(kind) else "text")
    return [flag, value] if len(flag) > 2 or value[0] == "-" else [f"{flag}{value}"]


def _is_number(kind: Any) -> bool:
    return isinstance(kind, click.types.IntParamType | click.types.FloatParamType)


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes], ids=lambda text: text or "-"
)
def test_what_a_mode_does_not_use_is_refused(
    name: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("in.npz", x=np.zeros(1))
    Path("ids.txt").write_text("1 2")
    used, known = MODES[name][mode], {p.name for p in _own(name)}
    assert used <= known, used - known
    config = ["--config", "none"] if isinstance(_command(name), ProjectCommand) else []
    models = ["none.onnx"] * sum(isinstance(p, click.Argument) for p in _command(name).params)
    for parameter in _own(name):
        words = [] if isinstance(parameter, click.Argument) else _words(parameter)
        if not words or any(word.split("=")[0] == words[0] for word in mode.split()):
            continue
        assert main([name, *models, *mode.split(), *words, *config]) == 2, words
        said = capsys.readouterr().err
        refused = parameter.opts[0] in said and "none.onnx" not in said
        used_here = parameter.name in used
        assert refused or used_here, f"{name} {mode} takes {words}, and does nothing with it"
        assert not (used_here and "does nothing" in said), f"{name} {mode} {words}: {said}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_is_read(name: str) -> None:
    tree = ast.parse(inspect.getsource(importlib.import_module(COMMANDS[name])))
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    keys = {n.value for node in ast.walk(tree) if isinstance(node, ast.Subscript) for n in ast.walk(node.slice)
            if isinstance(n, ast.Constant)}  # fmt: skip
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    passed_on = {a.value.id for call in calls for a in call.keywords if a.arg is None and isinstance(a.value, ast.Name)}
    whole = {"options", "asked"} & (passed_on | {a.id for call in calls for a in call.args if isinstance(a, ast.Name)})
    for parameter in _own(name):
        if isinstance(parameter, Grouped) and parameter.kind is not None:
            assert whole or parameter.name in keys, f"{name} does nothing with {parameter.opts[0]}"
        elif parameter.name != "action":  # a word with one choice
            assert parameter.name in read, f"{name} does nothing with {parameter.name}"
    plugins = [p for p in _command(name).params if p.name == "plugins"]
    assert not plugins or whole or "plugins" in keys, f"{name} loads no --plugin"


@pytest.mark.parametrize(
    "words",
    [
        "--passes lower --freeze-runtime",
        "-O1 --tune",
        "--checkpoint folder",
        "--verify off --keep-worst",
        "--metric perplexity",
    ],
)
def test_a_compile_refuses_what_nothing_would_come_of(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["none.onnx", *words.split(), "--config", "none"]) == 2
    assert "does nothing" in capsys.readouterr().err
