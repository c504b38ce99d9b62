"""The command line answers what needs no model without loading the compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from memoptc.cli.main import COMMANDS

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "sympy", "lark", "networkx", "rich", "jinja2", "google")

SCRIPT = """
import json, sys
from memoptc.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("\\n" + json.dumps([code, sorted({m.partition(".")[0] for m in sys.modules})]))
"""


def loaded(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code or 0, [m for m in modules if m in HEAVY]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_of_the_compiler(command: str) -> None:
    assert loaded(*([command] if command else []), "--help") == (0, [])


def test_completion_loads_nothing_of_the_compiler() -> None:
    environment = {"_MEMOPTC_COMPLETE": "bash_complete", "COMP_WORDS": "memoptc compile --tar", "COMP_CWORD": "2"}
    assert loaded(**environment) == (0, [])


def test_bad_usage_loads_nothing_of_the_compiler() -> None:
    assert loaded("compile", "m.onnx", "--no-such-option") == (2, [])
