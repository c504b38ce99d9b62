"""`memoptc study MODEL`: the untouched control against one change at a time, and what each layer costs in accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import accuracy_options, common, dim_option
from memoptc.targets import INTEGERS, TARGETS


@click.command("study")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; MODEL.study if not given.")
@click.option("-O", "level", type=click.IntRange(0, 3), default=2, show_default=True, help="With --layers: level.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, help="Target to try; may be repeated.")
@click.option("--calibration", metavar="DATA", help=".npz, .npy, folder of .npz, or module:function.")
@click.option("--validation", metavar="DATA", help="As --calibration; to compare and to measure accuracy with.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Processes for each need.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Timed runs of all rows together.")
@click.option("--patience", type=float, default=900.0, show_default=True, help="Seconds that one compile may take.")
@click.option("--max-slowdown", type=float, default=1.05, show_default=True, help="Most latency to recommend.")
@click.option("--deployment", metavar="TEXT", default="", help="Where the model shall run, for the evidence card.")
@click.option("--only", metavar="ROW", multiple=True, help="Try this row only, e.g. --only=-O2; may be repeated.")
@click.option("--jobs", type=click.IntRange(min=1), help="Threads onnxruntime may use while measuring.")
@click.option("--layers", is_flag=True, help="Measure each layer alone in smaller numbers instead; writes nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@accuracy_options
@dim_option
@common
def command(
    model: Path,
    output: Path | None,
    level: int,
    targets: tuple[str, ...],
    calibration: str | None,
    validation: str | None,
    repeats: int,
    seconds: float,
    patience: float,
    max_slowdown: float,
    deployment: str,
    only: tuple[str, ...],
    jobs: int | None,
    layers: bool,
    as_json: bool,
    min_sqnr: float | None,
    max_accuracy_loss: float | None,
    metric: str | None,
    fallback: bool,
    dims: tuple[tuple[str, int], ...],
    plugins: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Compare MODEL, untouched, with one change at a time and in sequence; write trade-offs and an evidence card."""
    from memoptc.cli.show import Progress, result_console
    from memoptc.report.study import HEADINGS, headline, render, rows
    from memoptc.study import Asked, study

    if layers:
        data = {"calibration": calibration, "validation": validation, "metric": metric}
        accuracy = (min_sqnr, max_accuracy_loss, fallback)
        _layers(model, level, targets, accuracy, as_json, quiet, dims=dict(dims), plugins=plugins, **data)
        return
    if (min_sqnr, max_accuracy_loss, metric, fallback) != (None, None, None, True):
        raise click.UsageError("An accuracy is asked for with --layers, or of a compile.")
    folder = output or model.with_name(f"{model.stem}.study")
    asked = Asked(
        targets=targets,
        calibration=calibration,
        validation=validation,
        dims=dims,
        plugins=plugins,
        threads=jobs or 0,
        repeats=repeats,
        seconds=seconds,
        patience=patience,
        slowdown=max_slowdown,
        deployment=deployment,
        only=only,
    )
    with Progress(quiet) as progress:
        found = study(model, folder, asked, progress)
    if as_json:
        click.echo(render(found, "study.json"), nl=False)
        return
    console = result_console()
    console.print(headline(found), markup=False)
    if quiet:
        return
    from rich.markup import escape
    from rich.table import Table

    shown = [0, 1, 3, 4, 5, 7, 8]
    table = Table(*(HEADINGS[i] for i in shown))
    for row in rows(found):
        table.add_row(*(escape(row[i]) for i in shown))
    console.print(table)
    console.print(f"wrote {folder} (study.md, study.html, study.json, models, reports)", markup=False, soft_wrap=True)


def _layers(
    model: Path,
    level: int,
    targets: tuple[str, ...],
    accuracy: tuple[float | None, float | None, bool],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure each layer alone in smaller numbers, and show what would run how; nothing is written."""
    from memoptc.api import compile as compile_model
    from memoptc.cli.show import Progress, layer_table, result_console
    from memoptc.levels import Accuracy, pipeline_text

    target = targets[-1] if targets else "int8"
    if target not in INTEGERS or options["calibration"] is None:
        raise click.UsageError(f"--layers goes with --calibration and --target {', '.join(INTEGERS)}.")
    asked = Accuracy(*accuracy, study=True)
    with Progress(quiet) as progress:
        result = compile_model(
            model,
            level,
            target,
            passes=pipeline_text(level, target, calibrated=True, accuracy=asked),
            max_accuracy_loss=asked.max_loss,
            verify="off",
            progress=progress,
            **options,
        )
    precision = result.report.to_json()["precision"]
    if as_json:
        click.echo(json.dumps(precision, indent=2))
    elif result.report.precision is None:
        click.echo("There is nothing to quantize.")
    else:
        result_console().print(layer_table(result.report.precision, all_layers=True))
