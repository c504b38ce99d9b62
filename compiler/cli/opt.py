"""`memoptc opt`: run passes on a `.mir` or `.onnx` file and print the result as `.mir`."""

from __future__ import annotations

from pathlib import Path

import click

from memoptc.cli.options import common, dim_option


@click.command("opt")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--passes", metavar="PIPELINE", help="Passes to run; a reproducer brings its own.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here (.mir or .onnx), not to stdout.")
@click.option("--no-verify-each", is_flag=True, help="Do not verify the graph after each pass.")
@dim_option
@common
def command(
    file: Path,
    passes: str | None,
    output: Path | None,
    no_verify_each: bool,
    dims: tuple[tuple[str, int], ...],
    plugins: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Run passes on FILE and print the graph; statistics go to stderr."""
    from memoptc import registry
    from memoptc.instruments import VerifyEach
    from memoptc.ir.mir import write_mir
    from memoptc.ir.onnx_io import write_onnx
    from memoptc.ir.printer import print_graph
    from memoptc.manager import run_pipeline
    from memoptc.pass_base import Context
    from memoptc.pipeline import parse
    from memoptc.textfile import read_any

    for plugin in plugins:
        registry.load_plugin(plugin)
    graph, pipeline = read_any(file)
    context = Context(dims=dict(dims))
    instruments = [] if no_verify_each else [VerifyEach()]
    context.shapes(graph)
    records = run_pipeline(parse(passes if passes is not None else pipeline), graph, context, instruments)
    if not quiet:
        for record in records:
            did = ", ".join(f"{k} {v}" for k, v in record.stats.items()) or "nothing"
            click.echo(f"{record.name}: {did}", err=True)
    if output is None:
        click.echo(print_graph(graph), nl=False)
    elif output.suffix == ".onnx":
        write_onnx(graph, output)
    else:
        write_mir(graph, output)
