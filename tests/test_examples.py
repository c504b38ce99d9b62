"""Every numbered example runs as it stands, from a folder of its own, with warnings as errors."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(p.name for p in EXAMPLES.glob("[0-9][0-9]_*.py"))


def test_there_are_examples() -> None:
    assert [s[:2] for s in SCRIPTS] == [f"{i:02d}" for i in range(1, len(SCRIPTS) + 1)]
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs(script: str, tmp_path: Path) -> None:
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-W", "error", examples / script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize(
    ("script", "package"),
    [("torch_export.py", "onnxscript"), ("optimum_model.py", "optimum"), ("olive_pass.py", "olive")],
)
def test_hook_runs(script: str, package: str, tmp_path: Path) -> None:
    for needed in ("torch", package):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, examples / "hooks" / script], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"


OURS = EXAMPLES / "plugin/src/memoptc_fuse_activations/fuse_activations.py"
THEIRS = EXAMPLES / "plugin/onnxscript_rules.py"


def code_lines(file: Path) -> tuple[int, int]:
    """Lines of code, and those of them that are patterns and replacements; no imports, docstrings, `__main__`."""
    lines, rules = set[int](), set[int]()
    text = file.read_text("utf-8").splitlines()
    for node in ast.parse("\n".join(text)).body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.If) or is_text(node):
            continue
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        gone = {n for c in getattr(node, "body", ()) if is_text(c) for n in range(c.lineno, c.end_lineno + 1)}
        code = {n for n in range(first, (node.end_lineno or first) + 1) if text[n - 1].strip()} - gone
        lines |= code
        if isinstance(node, ast.FunctionDef) and "float32" not in node.name:
            rules |= code
    return len(lines), len(rules)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_lines_of_rules_are_as_the_documentation_counts_them() -> None:
    said = (EXAMPLES.parent / "docs/extend.md").read_text("utf-8")
    found = {
        name: tuple(map(int, re.findall(rf"^\| {name} \|.*?(\d+) \|.*?(\d+) \|$", said, re.M)[0]))
        for name in ("patterns and replacements", "all")
    }
    (ours, our_rules), (theirs, their_rules) = code_lines(OURS), code_lines(THEIRS)
    assert found == {"patterns and replacements": (our_rules, their_rules), "all": (ours, theirs)}


def test_the_rules_for_onnxscript_rewrite_the_three_activations() -> None:
    pytest.importorskip("onnxscript")
    done = subprocess.run([sys.executable, THEIRS], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["QuickGelu", "Mish", "Softsign"], done.stderr
