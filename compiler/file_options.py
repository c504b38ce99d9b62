"""The options of the compile of one file into another: those of any compile, a project file, and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memoptc.option_fields import option
from memoptc.options import PROOF, Options


@dataclass(frozen=True)
class FileOptions(Options):
    """Options of the compile of one file into another."""

    config: Path | None = option(
        "Project file with options and models; memoptc.toml here or in a folder above if not given, `none` for none.",
        parse=Path,
        metavar="FILE",
    )
    """Read by the command line only; a report names it."""
    reports: Sequence[str | Path] = option(
        "Write a report: .json, .html or .md; may be repeated.", "--report", default=(), parse=Path, group=PROOF
    )
