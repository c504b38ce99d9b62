"""`memoptc study MODEL`: what each layer costs in accuracy in smaller numbers, and what would be decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import accuracy_options, common, dim_option
from memoptc.targets import INTEGERS


@click.command("study")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-O", "level", type=click.IntRange(0, 3), default=2, show_default=True, help="Optimisation level.")
@click.option(
    "--target", type=click.Choice(INTEGERS), default="int8", show_default=True, help="Numbers to choose from."
)
@click.option("--calibration", metavar="DATA", required=True, help=".npz, .npy, folder of .npz, or module:function.")
@click.option("--validation", metavar="DATA", help="As --calibration; to measure accuracy with.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@accuracy_options
@dim_option
@common
def command(
    model: Path,
    level: int,
    target: str,
    as_json: bool,
    min_sqnr: float | None,
    max_accuracy_loss: float | None,
    fallback: bool,
    dims: tuple[tuple[str, int], ...],
    plugins: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Measure each layer of MODEL alone in smaller numbers, and show what would run how; nothing is written."""
    from memoptc.api import compile as compile_model
    from memoptc.cli.show import Progress, layer_table, result_console
    from memoptc.levels import Accuracy, pipeline_text

    asked = Accuracy(min_sqnr, max_accuracy_loss, fallback, study=True)
    with Progress(quiet) as progress:
        result = compile_model(
            model,
            level,
            target,
            passes=pipeline_text(level, target, calibrated=True, accuracy=asked),
            max_accuracy_loss=max_accuracy_loss,
            dims=dict(dims),
            plugins=plugins,
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
