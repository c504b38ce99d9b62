"""Commands whose options may stand in a project file, `memoptc.toml`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import Grouped, GroupedCommand
from memoptc.file_options import FileOptions
from memoptc.option_fields import GENERAL
from memoptc.options import Options

if TYPE_CHECKING:
    from memoptc.project import Project

_FILES = ("model", "out", "output", "original", "candidate")
"""Parameters of commands that may name a model of the project, or what is compiled of it."""

_ADDED = ("dims", "freeze")
"""Fields whose words name what they bind: those of the file and of the command line are put together."""


class ProjectCommand(GroupedCommand):
    """A command that reads the options of a compile which it takes from a project file, too.

    What the command line says goes first. The model's entry is found by the model, or by what is compiled of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if all(parameter.name != "config" for parameter in self.params):
            told = "Project file with options; memoptc.toml, here or above, if not given; none for none."
            path: Any = click.Path(path_type=Path)
            self.params.append(
                Grouped(["--config"], help=told, metavar="FILE", type=path, expose_value=False,
                        callback=_keep_config, group=GENERAL)
            )  # fmt: skip

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, then once more with what the project file says in front of it."""
        rest = super().parse_args(ctx, list(args))
        sources = {p.name: ctx.get_parameter_source(str(p.name)) for p in self.params}
        ctx.meta["given"] = sources.get
        project = _project(ctx.params.get("config", ctx.meta.get("config")))
        if project is None:
            return rest
        taken = {p.name for p in self.params if isinstance(p, Grouped) and p.kind in (Options, FileOptions)}
        said = {n for n in taken if sources[n] is click.core.ParameterSource.COMMANDLINE}
        files = [f for name in _FILES if (f := ctx.params.get(name)) is not None]
        model = ctx.params.get("model", ctx.params.get("original"))
        words = [
            word
            for name, found in project.options_for(files, taken).items()
            if name not in said or name in _ADDED
            for word in found
        ]
        ctx.params.clear()
        rest = super().parse_args(ctx, [*words, *args])
        if "config" in ctx.params:
            ctx.params["config"] = project.file
        ctx.meta["project"], ctx.meta["words"] = project, args
        if words and model is not None and not (ctx.params["quiet"] or ctx.params["as_json"]):
            click.echo(f"{project.file}: {shlex.join(words)}", err=True)
        return rest


def _keep_config(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    ctx.meta["config"] = value


def _project(config: Path | None) -> Project | None:
    from memoptc.project import find_project, read_project

    if config is not None and str(config) == "none":
        return None
    file = config or find_project(Path())
    return None if file is None else read_project(file)
