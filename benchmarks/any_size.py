"""Models of any size, compiled once without `--dim`, against a compile for each size: need, sizes down the side.

    python benchmarks/any_size.py MODEL --sizes height=256,512,1024 --sizes width=256,512,1024 [--level 2] [--session]

The n-th extents of all `--sizes` go together; dimensions that are not named are 1. A compile without sizes plans for a
range of them; the target is 1.15 times the need that a compile for the size itself reaches.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from memoptc.api import compile_file
from memoptc.cli.options import Parsed
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.option_fields import parse_bindings
from memoptc.runtime.measure import measure_need
from memoptc.runtime.measuring_process import InSession, Way
from memoptc.runtime.options import RunOptions
from memoptc.runtime.profile import bind_shapes, make_feed

TARGET = 1.15
"""Largest ratio of needs, compiled without sizes over compiled for the size."""


def compiled(model: Path, folder: Path, level: int, dims: dict[str, int], threads: int) -> Path | None:
    """Compile a model into a folder of its own; `None` where nothing is written."""
    folder.mkdir()
    try:
        compile_file(model, folder / "out.onnx", level=level, dims=dims, verify="off", jobs=threads)
    except MemoptcError as problem:
        click.echo(f"{model.name} {dims}: {problem.message}", err=True)
        return None
    return folder / "out.onnx"


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--sizes", type=Parsed(parse_bindings, "extents"), multiple=True, required=True, metavar="NAME=EXTENTS")
@click.option("--level", default=2, show_default=True)
@click.option("--session", is_flag=True, help="Measure in Session instead of in stock onnxruntime.")
@click.option("--threads", default=2, show_default=True)
def main(model: Path, sizes: tuple[tuple[str, tuple[int, ...]], ...], level: int, session: bool, threads: int) -> None:
    """Run the benchmark."""
    graph = read_onnx(model)
    infer_shapes(graph)
    points = [dict(zip([n for n, _ in sizes], p, strict=True)) for p in zip(*(e for _, e in sizes), strict=True)]
    way: Way = InSession() if session else RunOptions(threads=threads)
    table = Table("size", "original MB", "no size MB", "its size MB", "ratio", f"target {TARGET}", title=model.name)
    with tempfile.TemporaryDirectory() as folder:
        once = compiled(model, Path(folder) / "once", level, {}, threads)
        for number, dims in enumerate(points):
            feed = make_feed(graph, model, dims)
            own = compiled(model, Path(folder) / str(number), level, bind_shapes(graph, feed), threads)
            size = " ".join(f"{n}={e}" for n, e in dims.items())
            if once is None or own is None:
                table.add_row(size, "", "", "", "", "NOT compiled")
                continue
            before, free, fixed = (measure_need(p, feed, options=way).need_bytes for p in (model, once, own))
            met = "met" if free <= TARGET * fixed else "NOT met"
            table.add_row(size, *(f"{b / 1e6:.1f}" for b in (before, free, fixed)), f"{free / fixed:.2f}", met)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
