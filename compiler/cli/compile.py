"""`memoptc MODEL`: compile, prove, show what changed, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import GroupedCommand, Talk, takes, talks
from memoptc.options import FileOptions


@click.command("compile", cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write; MODEL.opt.onnx if not given.")
@takes("options", FileOptions)
@click.option("--print-pipeline", is_flag=True, help="Print the pipeline that would run, and stop.")
@talks
def command(
    model: Path, out: Path | None, output: Path | None, print_pipeline: bool, options: dict[str, Any], talk: Talk
) -> None:
    """Compile MODEL into one that needs less memory, and prove that it still does the same; written to OUT or -o."""
    from memoptc.api import compile_file, pipeline_for
    from memoptc.cli.show import Progress, tell_result

    if print_pipeline:
        pipeline = pipeline_for(FileOptions(**options))
        talk.tell({"pipeline": f"{pipeline}"}, lambda: click.echo(pipeline))
        return
    if output is not None and out is not None:
        raise click.UsageError(f"Two places to write are named, {out} and {output}.")
    output = output or out or model.with_name(f"{model.stem}.opt.onnx")
    with Progress(talk.quiet, talk.progress) as progress:
        result = compile_file(model, output, progress=progress, **options)
    tell_result(talk, result.report, [*result.files, *options["reports"]])
