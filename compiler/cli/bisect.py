"""`memoptc bisect MODEL`: the first pass, and the rewrite in it, that breaks the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import Talk, takes, talks
from memoptc.cli.project import ProjectCommand
from memoptc.ir.files import TemporaryFolder
from memoptc.options import Options


@click.command("bisect", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--reduce",
    "reduced",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Also write the smallest model it breaks.",
)
@takes(
    "options",
    Options,
    *("level", "target", "passes", "calibration", "validation", "max_error", "dims", "plugins"),
    passes={"help": "Pipeline to bisect instead of the level's."},
    max_error={"help": "What counts as broken."},
)
@talks
def command(model: Path, reduced: Path | None, options: dict[str, Any], talk: Talk) -> int:
    """Say which pass, and which rewrite in it, first breaks MODEL's numbers; exit code 3 when one does."""
    from memoptc.compilation import Compilation
    from memoptc.steps import prepare, prove, run

    with TemporaryFolder() as folder:
        scratch = Path(folder)
        asked = Options(**options)
        compilation = Compilation.of(model, asked, scratch)
        compilation = compilation.with_control(prepare.prepare(compilation).graph)
        pipeline = run.pipeline(asked, compilation.data.calibration is not None)
        warnings: list[str] = []
        first_bad = prove.find_culprit(compilation, pipeline, warnings.append)
    culprit = str(first_bad) if first_bad.pass_ else ""
    for text in () if talk.quiet else warnings:
        click.echo(f"warning: {text}", err=True)
    told: dict[str, Any] = {"culprit": culprit or None, "warnings": warnings}
    lines = [culprit or "no pass breaks the numbers"]
    if culprit and reduced is not None:
        from memoptc.cli.reduce import describe, portable, reduce_by
        from memoptc.ir.diagnostics import InputError

        plain = portable(
            {name: options[name] for name in ("level", "target", "passes", "max_error", "dims", "plugins")}
        )
        try:
            found = reduce_by(model, reduced, plain, "differs", quiet=talk.quiet)
        except InputError as error:  # what it tries is less than what was found with the data given
            told["reduced"] = {"error": error.message}
            lines.append(f"not reduced: {error.message}")
        else:
            told["reduced"] = found.to_json() | {"file": reduced}
            lines.append(describe(found, reduced))
    talk.tell(told, lambda: click.echo("\n".join(lines)), always=True)
    return 3 if culprit else 0
