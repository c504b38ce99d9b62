"""`memoptc MODEL`: compile, prove, show what changed, write; without a model, all that `memoptc.toml` lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import Talk, print_json, takes, talks
from memoptc.cli.project import ProjectCommand
from memoptc.file_options import FileOptions

if TYPE_CHECKING:
    from memoptc.project import Project


@click.command("compile", cls=ProjectCommand)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write; MODEL.opt.onnx if not given.")
@takes("options", FileOptions)
@click.option("--print-pipeline", is_flag=True, help="Print the pipeline that would run, and stop.")
@talks
def command(
    model: Path | None,
    out: Path | None,
    output: Path | None,
    print_pipeline: bool,
    options: dict[str, Any],
    talk: Talk,
) -> int:
    """Compile MODEL into one that needs less memory, and prove that it still does the same; written to OUT or -o.

    Options may stand in a file memoptc.toml, too; without MODEL, all models that it lists are compiled.
    """
    from memoptc.api import compile_file, pipeline_for
    from memoptc.cli.show import Progress, tell_result
    from memoptc.project import written_for

    context = click.get_current_context()
    project = context.meta.get("project")
    if print_pipeline:
        pipeline = pipeline_for(FileOptions(**options))
        talk.tell({"pipeline": f"{pipeline}"}, lambda: click.echo(pipeline), always=True)
        return 0
    if model is None:
        if project is None or not project.models:
            raise click.UsageError("Missing argument 'MODEL', and no memoptc.toml here lists models.")
        reports = any(word.partition("=")[0] == "--report" for word in context.meta["words"])
        reports = reports or "reports" in project.options
        if output is not None or (reports and len(project.models) > 1):
            raise click.UsageError("One file cannot be that of every model; name MODEL, or outputs in memoptc.toml.")
        return _compile_all(project, context.meta["words"], talk)
    if output is not None and out is not None:
        raise click.UsageError(f"Two places to write are named, {out} and {output}.")
    output = written_for(model, output or out)
    with Progress(talk.quiet, talk.progress) as progress:
        result = compile_file(model, output, progress=progress, **options)
    files = [*result.files, *options["reports"]]
    if isinstance(context.obj, list):
        context.obj.append(result.report.to_json() | {"files": files})
        return 0
    tell_result(talk, result.report, files)
    return 0


def _compile_all(project: Project, words: list[str], talk: Talk) -> int:
    """Compile every model of a project; one that fails does not keep the others from being compiled.

    Returns:
        The exit code of the first that failed; 0 when none did.
    """
    from memoptc.cli.main import error_report, report_error
    from memoptc.project import written_for

    code, told = 0, []
    for entry in project.models:
        if not talk.as_json and not talk.quiet:
            click.echo(f"{entry.model}:")
        output = str(written_for(entry.model, entry.output))
        asked = ["--config", str(project.file), str(entry.model), *words, "-o", output]
        reports: list[dict[str, Any]] = []
        try:
            if entry.output is not None:
                entry.output.parent.mkdir(parents=True, exist_ok=True)
            with command.make_context("compile", asked, obj=reports if talk.as_json else None) as context:
                command.invoke(context)
        except Exception as error:
            message, hint, status = error_report(error)
            report_error(f"{entry.model}: {message}", hint)
            reports.append({"error": message, "hint": hint, "exit_code": status})
            code = code or status
        told += [{"model": entry.model} | report for report in reports]
    if talk.as_json:
        print_json({"models": told})
    return code
