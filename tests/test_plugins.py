"""A pass in a package of its own: written by `memoptc new-pass`, installed, found by name, tested by its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memoptc.ir.diagnostics import InputError
from memoptc.scaffold import new_pass

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "plugin"


def run_its_tests(package: Path, site: Path) -> str:
    """Install a package into a folder, run its tests in a process that sees it, and give what they print."""
    pip = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    built = subprocess.run(
        [sys.executable, "-m", *pip, "--target", str(site), str(package)], capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=package, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_example_is_a_package_that_installs_and_tests_itself(tmp_path: Path) -> None:
    package = shutil.copytree(EXAMPLE, tmp_path / "plugin")
    assert "9 passed" in run_its_tests(package, tmp_path / "site")


@pytest.mark.parametrize("kind", ["rule", pytest.param("pass", marks=pytest.mark.nightly)])
def test_a_new_pass_works_and_its_tests_find_what_breaks_it(kind: str, tmp_path: Path) -> None:
    package = tmp_path / "made"
    files = new_pass("drop-relu-twice", kind, package)
    assert sorted(files) == sorted(file for file in package.rglob("*") if file.is_file())
    assert f"{7 if kind == 'rule' else 6} passed" in run_its_tests(package, tmp_path / "site")

    (source,) = package.glob("src/*/drop_relu_twice.py")
    text = source.read_text()
    source.write_text(
        text.replace("b.Relu(x)", "b.Neg(x)").replace("replace_by(op.operand)", "replace_by(inner.operand)")
    )
    assert source.read_text() != text
    with pytest.raises(AssertionError, match="FAILED"):
        run_its_tests(package, tmp_path / "broken")


@pytest.mark.parametrize(
    ("name", "message"),
    [("Drop Relu", "is no name of"), ("drop--relu", "is no name of"), ("fit", "There is a pass fit already")],
)
def test_a_name_that_cannot_be_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        new_pass(name, "rule", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(InputError, match="is there already"):
        new_pass("drop-relu-twice", "rule", tmp_path / "made")
    with pytest.raises(InputError, match="cannot be made"):
        new_pass("drop-relu-twice", "rule", tmp_path / "nowhere" / "made")
