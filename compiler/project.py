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
from collections.abc import Collection, Container, Mapping
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
        """The model and the output."""
        return {self.model.resolve(), written_for(self.model, self.output).resolve()}


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

    def options_for(self, files: Collection[Path], names: Container[str]) -> dict[str, list[str]]:
        """Give the words for a model by field: those of its entry before those of all.

        Args:
            files: What a command names: the model, what is compiled of it, or both.
            names: Fields that the command takes.

        Raises:
            InputError: the model has several entries with other words for these fields, and no output is named.
        """
        named = {file.resolve() for file in files}
        shared = [len(named & entry.files) for entry in self.models]
        same = [e for e, count in zip(self.models, shared, strict=True) if 0 < count == max(shared)]
        chosen = [{n: words for n, words in e.options.items() if n in names} for e in same]
        if any(words != chosen[0] for words in chosen):
            raise InputError(
                f"{self.file} lists {same[0].model} {len(same)} times, with other options each.",
                hint="Name the output, too, or --config none.",
            )
        return {**{n: words for n, words in self.options.items() if n in names}, **(chosen[0] if chosen else {})}


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
    entries = tuple(_entry(file, m) for m in models)
    written: set[Path] = set()
    for entry in entries:
        output = written_for(entry.model, entry.output).resolve()
        if output in written:
            raise InputError(
                f"{file}: two models are written to {output.name}.", hint="Give each an output of its own."
            )
        written.add(output)
    return Project(file, _words(file, options), entries)


def written_for(model: Path, output: Path | None) -> Path:
    """Give where a model is written: beside it where no output is named."""
    return output or model.with_name(f"{model.stem}.opt.onnx")


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
        flags = [flag.partition("/")[0] for flag in flags_of(name, default_of(f), how)]
        names |= {flag[2:]: name for flag in flags if flag.startswith("--") and name != "config"}
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
