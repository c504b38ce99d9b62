"""Where the zoo of real models is: `$MEMOPTC_ZOO`, or `../shared/models` beside the checkout; may be absent."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("MEMOPTC_ZOO", ROOT.parent / "shared" / "models"))


def module_of(file: Path, name: str) -> ModuleType:
    """Load a file that is on no import path as a module."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load() -> ModuleType | None:
    """The zoo's own module, or `None` when there is no zoo."""
    file = FOLDER / "zoo.py"
    return module_of(file, "memoptc_zoo") if file.exists() else None


ZOO = load()
NAMES: list[str] = ZOO.names() if ZOO is not None else []


def each_model(*, skip: tuple[str, ...] = (), nightly: tuple[str, ...] = ()) -> Any:
    """Parametrize a test by `name` over every model of the zoo; one skipped test when it is absent.

    Args:
        skip: Models that are left out.
        nightly: Models that only the long form runs.
    """
    if not NAMES:
        reason = f"no zoo of real models at {FOLDER.name} (set MEMOPTC_ZOO)"
        return pytest.mark.parametrize("name", [pytest.param("zoo", marks=pytest.mark.skip(reason=reason))])
    long = pytest.mark.nightly
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=long if n in nightly else ()) for n in NAMES if n not in skip]
    )
