"""The documents' code blocks run as they are read: in order, each document in a folder of its own.

The info string of a block says what happens with it: `sh` runs in a shell; `python` runs as a script;
`python title=NAME` (any language) writes the file NAME; `sh run=no` and other languages are only shown.
That the examples of passes and rules change something is part of the documents: they look for the count with `grep`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from markdown_it import MarkdownIt

from memoptc.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "examples/README.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


def run(command: list[str], text: str, folder: Path) -> None:
    """Run one block; what it printed is the message when it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONWARNINGS": "error"}
    done = subprocess.run([*command, text], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_run(document: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for token in MarkdownIt().parse((ROOT / document).read_text()):
        if token.type != "fence":
            continue
        language, *words = token.info.split() or [""]
        facts = dict(word.split("=", 1) for word in words if "=" in word)
        if "title" in facts:
            (tmp_path / facts["title"]).write_text(token.content)
        elif facts.get("run") != "no" and language == "sh":
            run(["sh", "-euc"], token.content, tmp_path)
        elif facts.get("run") != "no" and language == "python":
            run([sys.executable, "-c"], token.content, tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for token in MarkdownIt().parse((ROOT / document).read_text()):
        for child in token.children or []:
            target = child.attrs.get("href") or child.attrs.get("src") or ""
            if target and not target.startswith(("http", "#")):
                assert ((ROOT / document).parent / target.partition("#")[0]).exists(), target


def test_every_folder_and_subcommand_is_described() -> None:
    from memoptc.cli.main import COMMANDS

    reference = (ROOT / "docs/commands.md").read_text()
    for command in COMMANDS.keys() - {"compile"}:
        assert f"memoptc {command}" in reference
    readme = (ROOT / "README.md").read_text()
    for folder in ("ir/", "runtime/", "compiler/", "passes/"):
        assert readme.index(f"`{folder}`")


def test_every_example_of_a_pass_or_rule_is_held_to_what_it_changes() -> None:
    """A block that writes a plug-in is followed by a command that fails when the plug-in matched nothing."""
    text = (ROOT / "docs/extend.md").read_text()
    fences = [t for t in MarkdownIt().parse(text) if t.type == "fence"]
    plugins = [t.info.split("title=")[1] for t in fences if t.info.endswith((".py", ".rules"))]
    counted = "".join(
        t.content for t in fences if t.info == "sh" and re.search(r"grep '\S+: .*[1-9]'|grep '\S+ [1-9]'", t.content)
    )
    assert plugins
    assert [name for name in plugins if f"--plugin {name}" not in counted] == []


def test_the_site_builds_and_every_link_in_it_leads_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx_click", reason="the documentation's builder is not installed: pip install '.[docs]'")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), ".", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#:?]+)[^":]*"', page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(site)} links to {target}"
    python = (site / "docs/reference/python.html").read_text()
    public = [n for n in dir(onnxruntime.InferenceSession) if not n.startswith("_")]
    assert len(public) > 20
    assert [name for name in public if f">{name}<" not in python] == []
    passes = (site / "docs/reference/passes.html").read_text()
    files = [path.stem for path in (ROOT / "passes").glob("*/[a-z]*.py")]
    assert files
    assert [name for name in files if f'id="{name.replace("_", "-")}"' not in passes] == []


def test_pictures_are_what_the_commands_beside_them_draw(tmp_path: Path) -> None:
    model = str(ROOT / "examples/models/digits_cnn.onnx")
    for words in (["profile", model, "--picture"], ["plan", model, "--save"]):
        name = {"profile": "memory.svg", "plan": "arena.svg"}[words[0]]
        assert main([*words, str(tmp_path / name), "--dim", "batch=64"]) == 0
        assert (tmp_path / name).read_text() == (ROOT / "docs/pictures" / name).read_text()
