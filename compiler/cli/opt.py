"""`memoptc opt`: run passes on a `.mir` or `.onnx` file and print the result as `.mir`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import GroupedCommand, Talk, takes, talks
from memoptc.ir.files import TemporaryFolder
from memoptc.options import Options


@click.command("opt", cls=GroupedCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here (.mir or .onnx), not to stdout.")
@click.option("--no-verify-each", is_flag=True, help="Do not verify the graph after each pass.")
@click.option("--print-after", metavar="NAMES", help="Show the graph after these passes (a,b or all), on stderr.")
@click.option("--print-changed", is_flag=True, help="Show what each pass changes, on stderr.")
@takes("options", Options, "passes", "dims", "plugins", passes={"help": "Passes to run; a reproducer brings its own."})
@talks
def command(
    file: Path,
    output: Path | None,
    no_verify_each: bool,
    print_after: str | None,
    print_changed: bool,
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Run passes on FILE and print the graph; statistics go to stderr."""
    from memoptc import registry
    from memoptc.instruments import PrintAfter, PrintChanged, VerifyEach
    from memoptc.ir.mir import write_mir
    from memoptc.ir.onnx_io import write_onnx
    from memoptc.ir.printer import print_graph
    from memoptc.manager import Instrument, run_pipeline
    from memoptc.pass_base import Context
    from memoptc.pipeline import parse
    from memoptc.runtime.data import Data
    from memoptc.textfile import read_any

    for plugin in options["plugins"]:
        registry.load_plugin(plugin)
    graph, recipe = read_any(file)
    calibration = None
    if recipe.calibration is not None:
        calibration = Data(recipe.calibration, {v.name: v.type for v in graph.inputs}, [v.name for v in graph.defaults])
    instruments: list[Instrument] = [] if no_verify_each else [VerifyEach()]
    if print_after is not None:
        instruments.append(PrintAfter(_to_stderr, [n for n in print_after.split(",") if n != "all"]))
    if print_changed:
        instruments.append(PrintChanged(_to_stderr))
    with TemporaryFolder() as scratch:
        context = Context(
            level=recipe.level,
            target=recipe.target,
            dims={**recipe.dims, **options["dims"]},
            calibration=calibration,
            scratch=Path(scratch),
        )
        context.shapes(graph)
        records = run_pipeline(
            parse(recipe.pipeline if options["passes"] is None else options["passes"]), graph, context, instruments
        )
    if not talk.quiet:
        for warning in context.warnings:
            click.echo(f"warning: {warning}", err=True)
        for record in records:
            did = ", ".join(f"{k} {v}" for k, v in record.stats.items()) or "nothing"
            took = f" ({record.seconds:.2f} s)" if talk.verbose else ""
            click.echo(f"{record.name}: {did}{took}", err=True)
    if talk.verbose:
        for reason, count in context.results.get("declined", Counter()).most_common():
            click.echo(f"declined {count} x {reason}", err=True)
    if output is None:
        click.echo(print_graph(graph), nl=False)
    elif output.suffix == ".onnx":
        write_onnx(graph, output)
    else:
        write_mir(graph, output)


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)
