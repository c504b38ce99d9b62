"""`memoptc study MODEL`: the untouched control against one change at a time, and what each layer costs in accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import Talk, print_json, takes, talks, unused
from memoptc.cli.project import ProjectCommand
from memoptc.option_fields import options_of
from memoptc.options import Options
from memoptc.study.changes import Asked
from memoptc.targets import INTEGERS

ACCURACY = ("min_sqnr", "max_accuracy_loss", "metric", "fallback")


@click.command("study", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; MODEL.study if not given.")
@click.option("--layers", is_flag=True, help="Measure each layer alone in smaller numbers instead; writes nothing.")
@takes("asked", Asked)
@takes(
    "options",
    Options,
    *("level", "calibration", "validation", "jobs", *ACCURACY, "dims", "plugins"),
    level={"help": "With --layers: level."},
    calibration={"help": ".npz, .npy, folder of .npz, or module:function."},
    validation={"help": "As --calibration; to compare and to measure accuracy with."},
)
@talks
def command(
    model: Path,
    output: Path | None,
    layers: bool,
    asked: dict[str, Any],
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Compare MODEL, untouched, with one change at a time and in sequence; write trade-offs and an evidence card."""
    from memoptc.cli.show import Progress, result_console
    from memoptc.report.study import HEADINGS, headline, rows
    from memoptc.study.run import study

    if layers:
        unused("with --layers", "output", "jobs", *(name for name in options_of(Asked) if name != "targets"))
        _layers(model, asked["targets"], options, talk)
        return
    unused("without --layers", "level", *ACCURACY, hint="Add --layers, or ask for it of a compile.")
    if asked["cascade"] is None:
        unused("without --cascade", "max_disagreement")
    folder = output or model.with_name(f"{model.stem}.study")
    data = {name: options[name] for name in ("calibration", "validation", "plugins")}
    what = Asked(**asked, **data, dims=tuple(options["dims"].items()), threads=options["jobs"] or 0)
    with Progress(talk.quiet, talk.progress) as progress:
        found = study(model, folder, what, progress)
    if talk.as_json:
        print_json(found)
        return
    console = result_console()
    console.print(headline(found), markup=False)
    if talk.quiet:
        return
    from rich.markup import escape
    from rich.table import Table

    shown = [0, 1, 3, 4, 5, 7, 8]
    table = Table(*(HEADINGS[i] for i in shown))
    for row in rows(found):
        table.add_row(*(escape(row[i]) for i in shown))
    console.print(table)
    console.print(f"wrote {folder} (study.md, study.html, study.json, models, reports)", markup=False, soft_wrap=True)


def _layers(model: Path, targets: tuple[str, ...], options: dict[str, Any], talk: Talk) -> None:
    """Measure each layer alone in smaller numbers, and show what would run how; nothing is written."""
    from memoptc.api import compile as compile_model
    from memoptc.cli.show import Progress, layer_table, result_console
    from memoptc.levels import Accuracy, pipeline_text

    if len(targets) > 1:
        raise click.UsageError("--layers goes with one --target.")
    target = targets[0] if targets else "int8"
    if target not in INTEGERS or options["calibration"] is None:
        raise click.UsageError(f"--layers goes with --calibration and --target {', '.join(INTEGERS)}.")
    asked = Accuracy(options["min_sqnr"], options["max_accuracy_loss"], options["fallback"], study=True)
    given = {n: options[n] for n in ("level", "calibration", "validation", "metric", "dims", "plugins")}
    pipeline = pipeline_text(options["level"], target, calibrated=True, accuracy=asked)
    with Progress(talk.quiet, talk.progress) as progress:
        given |= {"passes": pipeline, "max_accuracy_loss": asked.max_loss, "verify": "off", "progress": progress}
        result = compile_model(model, target=target, **given)
    found = result.report.precision

    def show() -> None:
        if found is None:
            click.echo("There is nothing to quantize.")
        else:
            result_console().print(layer_table(found, all_layers=True))

    talk.tell(found, show, always=True)
