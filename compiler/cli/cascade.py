"""`memoptc cascade SMALL BIG`: two classifiers as one model, the large one only where the small one is not sure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import GroupedCommand, Talk, takes, talks, unused
from memoptc.file_options import FileOptions

_TAKEN = ("calibration", "validation", "dims", "verify", "measure", "jobs", "keep_worst", "force", "reports")


@click.command("cascade", cls=GroupedCommand)
@click.argument("small", type=click.Path(path_type=Path))
@click.argument("big", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write; BIG.cascade.onnx if not given.")
@click.option(
    "--max-disagreement",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.005,
    show_default=True,
    help="Share of inputs that may get another likeliest class than from BIG.",
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="Use this confidence, not the calibrated one: 0 is SMALL, 1 BIG."
)
@takes("options", FileOptions, *_TAKEN)
@talks
def command(
    small: Path,
    big: Path,
    output: Path | None,
    max_disagreement: float,
    threshold: float | None,
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Write one model that asks SMALL first, and BIG where SMALL is not sure enough.

    Both take the same inputs and score the same classes. Compile each by itself before; the cascade needs the memory of
    both, and saves time.
    """
    from memoptc.api import compile_file
    from memoptc.cli.show import Progress, tell_result
    from memoptc.levels import cascade_pipeline

    if threshold is not None:
        unused("with --threshold", "max_disagreement")
    with Progress(talk.quiet, talk.progress) as progress:
        result = compile_file(
            big,
            output or big.with_name(f"{big.stem}.cascade.onnx"),
            level=0,  # it needs more memory than BIG alone: that is named, not refused
            passes=cascade_pipeline(small, max_disagreement, threshold),
            progress=progress,
            **options,
        )
    tell_result(talk, result.report, [*result.files, *options["reports"]])
