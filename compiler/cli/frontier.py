"""`memoptc frontier`: how small a model gets, and at what price."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import Talk, takes, talks, unused
from memoptc.cli.project import ProjectCommand
from memoptc.options import Options

if TYPE_CHECKING:
    from memoptc.frontier import Frontier


@click.command("frontier", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--points", default=10, show_default=True, type=click.IntRange(min=1), help="Most budgets to try.")
@click.option("--seconds", default=10.0, show_default=True, help="Timed runs in all; 0 measures nothing.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write the curve: .svg, .html or .json; may be repeated.",
)
@takes(
    "options",
    Options,
    *("level", "target", "calibration", "validation", "max_slowdown", "jobs", "dims", "plugins"),
    level={"least": 2},
    max_slowdown={"help": "Largest predicted ratio of latencies."},
)
@talks
def command(
    model: Path,
    points: int,
    seconds: float,
    reports: tuple[Path, ...],
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Compile MODEL for smaller and smaller memory budgets; verify, enforce and measure each."""
    from memoptc.cli.show import Progress
    from memoptc.frontier import SHARES, frontier
    from memoptc.report.frontier import check_frontier_path, write_frontier

    if not seconds:
        unused("with --seconds 0, which measures nothing", "jobs")
    for path in reports:
        check_frontier_path(path)
    with Progress(talk.quiet, talk.progress) as progress:
        found = frontier(
            model,
            Options(**options),
            shares=SHARES[:points],
            seconds=seconds,
            say=progress,
        )
    for path in reports:
        write_frontier(found, path)
    talk.tell(lambda: found.to_json() | {"files": list(reports)}, lambda: _print(found, reports))


def _print(found: Frontier, reports: tuple[Path, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console
    from memoptc.report.frontier import HEADINGS, rows
    from memoptc.report.rows import size

    console = result_console()
    latency = f", {found.latency_ms:.1f} ms" if found.latency_ms else ""
    console.print(
        f"{found.model}: planned {size(found.planned_bytes)}, run peak {size(found.run_peak_bytes)}{latency}",
        markup=False,
    )
    table = Table(*HEADINGS)
    for row in rows(found):
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    for path in reports:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
