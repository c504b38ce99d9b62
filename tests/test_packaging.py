"""What is built holds everything, declares what it imports, and is pinned at the bounds that it names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"compiler": "memoptc", "ir": "memoptc/ir", "runtime": "memoptc/runtime", "passes": "memoptc/passes"}
# Import name -> name of the distribution, where they differ.
DISTRIBUTIONS = {"google": "protobuf"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_files() -> set[str]:
    """Every file of the four folders, by its place in the installed package."""
    return {
        f"{target}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_every_folder_of_modules_is_a_declared_package(project: dict[str, Any]) -> None:
    folders = {str(Path(f).parent).replace("/", ".") for f in package_files() if f.endswith(".py")}
    assert folders == set(project["tool"]["setuptools"]["packages"])


def test_wheel_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {n for n in archive.namelist() if n.startswith("memoptc/")}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "memoptc = memoptc.cli" in archive.read(entry_points).decode()
        assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())
    assert inside == package_files()


def test_imports_are_declared_and_nothing_else_is(project: dict[str, Any]) -> None:
    graph = grimp.build_graph("memoptc", include_external_packages=True, cache_dir=None)
    roots = {m.partition(".")[0] for m in graph.modules} - {"memoptc"} - set(sys.stdlib_module_names)
    imported = {DISTRIBUTIONS.get(r, r).replace("_", "-").lower() for r in roots}
    # What is used where it is there, and nowhere else.
    extras = project["project"]["optional-dependencies"]
    optional = [*extras["fast"], *extras["testing"], *extras["cluster"]]
    declared = {re.match(r"[\w-]+", d).group() for d in [*project["project"]["dependencies"], *optional]}  # type: ignore[union-attr]
    assert imported == declared


def test_lowest_pins_are_the_declared_bounds(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.replace("_", "-").lower().split("==") for line in lines if not line.startswith("#"))
    for dependency in project["project"]["dependencies"]:
        name, bound = dependency.partition(",")[0].split(">=")
        pinned = pins[name].split(".")
        assert pinned[: len(bound.split("."))] == bound.split("."), dependency
        assert set(pinned[len(bound.split(".")) :]) <= {"0"}, f"{name} is pinned above its bound"


def test_pins_name_no_host() -> None:
    for name in ("constraints.txt", "constraints-lowest.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.+!-]+", line) for line in text.splitlines())
