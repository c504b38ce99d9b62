"""`memoptc drift LOG`: whether to calibrate again, by what a `Shadow` wrote down."""

from __future__ import annotations

from pathlib import Path

import click

from memoptc.cli.options import GroupedCommand, Talk, talks


@click.command("drift", cls=GroupedCommand)
@click.argument("log", type=click.Path(path_type=Path))
@talks
def command(log: Path, talk: Talk) -> int:
    """Say whether the inputs in LOG are still those of the calibration data; exit code 3 when they are not."""
    from memoptc.runtime.drift import drifts, read_log
    from memoptc.runtime.shadow import Figures

    start, calls = read_log(log)
    figures = Figures()
    for line in calls:
        figures.add(line)
    figures.calls = max((line["call"] for line in calls), default=0)
    found = drifts(start["reference"], calls)
    torn = start["torn"]
    told = {k: getattr(figures, k) for k in ("calls", "shadowed", "errors", "agreement", "slowdown")}
    told["torn_lines"] = torn

    def show() -> None:
        if not talk.quiet:
            show_figures()
        show_drift()

    def show_figures() -> None:
        click.echo(f"{figures.shadowed} calls of about {figures.calls} were shadowed, {figures.errors} failed.")
        if figures.agreement is not None:
            click.echo(f"The outputs agree in {figures.agreement:.2%} of {figures.rows} rows.")
        if figures.slowdown is not None:
            click.echo(f"The candidate takes {figures.slowdown:.2f} of the control's time.")

    def show_drift() -> None:
        if torn:
            click.echo(f"{torn} lines of the log are torn, and were left out.")
        if not start["reference"]:
            click.echo("The log has no calibration data to compare with: give Shadow calibration=.")
        for drift in found:
            click.echo(f"{drift}; distributions are {drift.distance:.2f} apart, {drift.bound:.2f} is chance.")
        click.echo("Calibrate again, with inputs like those of now." if found else "No drift is seen.")

    talk.tell(told | {"drift": found}, show, always=True)
    return 3 if found else 0
