"""A project file, `memoptc.toml`: options of compiles, and the models that a project compiles, checked in beside it.

    [options]                       # of every compile
    target = "int8"
    dim = { batch = 8 }

    [[models]]                      # `memoptc compile` without a model compiles all of these
    model = "models/digits.onnx"
    output = "build/digits.onnx"
    calibration = "data/digits.npz" # and any option, for this model only

Keys are the options of `memoptc compile` without their dashes, or the keywords of `memoptc.compile`. Paths are relative
to the file.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memoptc.file_options import FileOptions
from memoptc.ir.diagnostics import InputError
from memoptc.option_fields import default_of, flags_of, options_of

NAME = "memoptc.toml"
"""Looked for in the working directory, and then in the folders above it."""

_PATHS = ("calibration", "validation", "device", "plugins", "metric")
"""Fields that may name a file of the project, or something else."""
_WRITTEN = ("reports", "dump_dir", "checkpoint")
"""Fields that name files to write."""


@dataclass(frozen=True)
class Entry:
    """A model of a project.

    Args:
        model: Its file.
        output: Where to write it; beside the model when not given.
        options: Words of the command line for it, by field.
    """

    model: Path
    output: Path | None
    options: Mapping[str, list[str]]

    @property
    def files(self) -> set[Path]:
        """The model and, where it is named, the output."""
        return {file.resolve() for file in (self.model, self.output) if file is not None}


@dataclass(frozen=True)
class Project:
    """Contents of a project file.

    Args:
        file: The file.
        options: Words of the command line for every compile, by field.
        models: Models to compile.
    """

    file: Path
    options: Mapping[str, list[str]]
    models: tuple[Entry, ...] = ()

    def options_for(self, model: Path | None) -> dict[str, list[str]]:
        """Give the words for a model, or what is compiled of it, by field: those of its entry before those of all."""
        same = [e for e in self.models if model is not None and model.resolve() in e.files]
        return {**self.options, **(same[0].options if same else {})}


def find_project(folder: Path) -> Path | None:
    """Give the project file of a folder, or of the nearest folder above it that has one."""
    folder = folder.resolve()
    found = next((f / NAME for f in (folder, *folder.parents) if (f / NAME).is_file()), None)
    return None if found is None else Path(os.path.relpath(found))


def read_project(file: Path) -> Project:
    """Read a project file.

    Raises:
        InputError: it cannot be read, or says something that no option is; the message names the nearest one.
    """
    try:
        read = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {(error.strerror or str(error)).lower()}.", hint="Check --config.") from None
    except ValueError as error:
        raise InputError(f"{file} is no TOML: {error}.", hint="See https://toml.io, or docs/commands.md.") from None
    _known(file, read, ("options", "models"), "")
    options, models = read.get("options", {}), read.get("models", [])
    if not isinstance(options, dict) or not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise InputError(
            f"{file}: options are a table, models tables of a list.", hint="Write [options] and [[models]]."
        )
    return Project(file, _words(file, options), tuple(_entry(file, m) for m in models))


def _entry(file: Path, read: dict[str, Any]) -> Entry:
    model, output = read.pop("model", None), read.pop("output", None)
    if not isinstance(model, str) or not isinstance(output, str | None):
        raise InputError(f"{file}: a model is named by its path.", hint='Write model = "models/digits.onnx".')
    options = _words(file, read, "model", "output")
    return Entry(_beside(file, model), None if output is None else _beside(file, output), options)


def _words(file: Path, read: Mapping[str, Any], *more: str) -> dict[str, list[str]]:
    """Give the words of the command line that stand for a table, by field."""
    fields = options_of(FileOptions)
    names = {name.replace("_", "-"): name for name in fields if name != "config"}
    for name, (f, how) in fields.items():
        flag = flags_of(name, default_of(f), how)[0].split("/")[0]
        names |= {flag[2:]: name} if flag.startswith("--") and name != "config" else {}
    _known(file, read, (*names, *more), "options of memoptc compile without their dashes")
    found: dict[str, list[str]] = {}
    for key, value in read.items():
        name = names[key.replace("_", "-")]
        f, how = fields[name]
        spelled, _, opposite = flags_of(name, default_of(f), how)[0].partition("/")
        if isinstance(default_of(f), bool):
            if not isinstance(value, bool) or not (value or opposite or default_of(f) is False):
                raise InputError(f"{file}: {key} is true or false, not {value!r}.", hint=f"Write {key} = true.")
            found[name] = [spelled] if value else [opposite] if opposite else []
            continue
        parts = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        listed = parts if isinstance(parts, list) else [parts]
        if isinstance(value, dict | list) and not isinstance(default_of(f), dict | tuple):
            raise InputError(f"{file}: {key} is one value, not {value!r}.", hint="Write it once.")
        words = [_beside_if(file, name, str(part)) for part in listed]
        found[name] = [w for part in words for w in ([spelled + part] if len(spelled) == 2 else [spelled, part])]
    return found


def _known(file: Path, read: Mapping[str, Any], names: tuple[str, ...], which: str) -> None:
    for key in read:
        if key.replace("_", "-") not in names:
            near = difflib.get_close_matches(key.replace("_", "-"), names, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It holds {which or ' and '.join(names)}."
            raise InputError(f"{file}: there is nothing called {key!r}.", hint=hint)


def _beside(file: Path, path: str) -> Path:
    """Give a path of the file as seen from the working directory."""
    return Path(path) if Path(path).is_absolute() else file.parent / path


def _beside_if(file: Path, name: str, value: str) -> str:
    if name in _WRITTEN or (name in _PATHS and (file.parent / value).exists()):
        return str(_beside(file, value))
    return value
