"""`memoptc profile`: activation memory by tensor and node, planned and recorded, over one or several input sizes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import Talk, takes, talks, unused
from memoptc.cli.project import ProjectCommand
from memoptc.option_fields import parse_bindings
from memoptc.options import Options

if TYPE_CHECKING:
    from memoptc.runtime.profile import Profile, Recorded


@click.command("profile", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--top", default=10, show_default=True, help="How many tensors to list at the peak.")
@click.option("--static", is_flag=True, help="Plan only: run nothing.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Intra-op threads.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw memory over the run, and its growth (.svg).")
@click.option("--contract", is_flag=True, help="Write MODEL.session.json: how to run MODEL as it is in less memory.")
@takes(
    "options",
    Options,
    "dims",
    dims={"help": "Extents of a symbolic dimension: N=1,2,4; may be repeated.", "parse": parse_bindings},
)
@talks
def command(
    model: Path,
    top: int,
    static: bool,
    threads: int,
    picture: Path | None,
    contract: bool,
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Show where MODEL's memory goes: on paper, and recorded inside onnxruntime."""
    from memoptc.cli.show import Progress
    from memoptc.ir.decoder import recognised
    from memoptc.ir.diagnostics import InputError
    from memoptc.ir.infer import infer_shapes
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.manager import count_nodes, weight_bytes
    from memoptc.runtime import profile as profiler
    from memoptc.runtime.configuration import AS_WRITTEN, STOCK_DEFAULT
    from memoptc.runtime.contract import Contract, contract_path, load_contract

    if picture is not None and picture.suffix != ".svg":
        raise InputError(f"{picture} is no name for a picture.", hint="Use a name that ends in .svg.")
    if static:
        unused("with --static", "contract", hint="A contract is recorded: leave --static out.")
    graph = read_onnx(model)
    infer_shapes(graph)
    points: list[Profile] = []
    contracted = (load_contract(contract_path(model)) or Contract()).options
    sizes = list(itertools.product(*(values for values in options["dims"].values())))
    feed: dict[str, Any] = {}
    with Progress(talk.quiet, talk.progress) as progress:
        for number, extents in enumerate(sizes):
            progress("planning", number / len(sizes))
            asked = dict(zip(options["dims"], extents, strict=True))
            bound = profiler.likely_extents(graph, asked)
            if not static:
                progress("running", (number + 0.5) / len(sizes))
                feed = profiler.make_feed(graph, model, asked)
                bound |= profiler.bind_shapes(graph, feed)
            point = profiler.profile(graph, bound, threads)
            if not static:
                for kind, way in (
                    ("as_planned", AS_WRITTEN.options),
                    ("stock", STOCK_DEFAULT.options),
                    ("session", contracted),
                ):
                    setattr(point, kind, profiler.record(model, feed, replace(way, threads=threads)))
            points.append(point)
    decoder = recognised(graph, inferred=True)
    facts = {
        "model": str(model),
        "decoder": None if decoder is None else str(decoder),
        "nodes": count_nodes(graph),
        "weight_bytes": weight_bytes(graph),
        "file_bytes": model.stat().st_size,
    }
    if picture is not None:
        from memoptc.ir.files import atomic_write
        from memoptc.report.stacked import picture as draw

        atomic_write(picture, draw(points, model.name).encode())
    if contract:
        _write_contract(model, feed, threads, points[-1])
    talk.tell(facts | {"points": points}, lambda: _print(facts, points, top))


def _write_contract(model: Path, feed: dict[str, Any], threads: int, point: Profile) -> None:
    from memoptc.runtime.contract import contract_path
    from memoptc.runtime.measured_contract import make_contract

    made = make_contract(model, feed, threads=threads)
    made = replace(made, peaks={str(point.configuration): point.planned_peak_bytes} | dict(made.peaks))
    made.save(contract_path(model))
    click.echo(f"wrote {contract_path(model)}", err=True)


def _print(facts: dict[str, Any], points: list[Profile], top: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console
    from memoptc.report.chart import sparkline
    from memoptc.report.rows import size
    from memoptc.runtime.configuration import AS_WRITTEN, SESSION, STOCK_DEFAULT

    console = result_console()
    last = points[-1]
    packed = f", in the kernels' own layout {size(last.stock.loaded_bytes)}" if last.stock else ""
    console.print(
        f"{facts['model']}: {facts['nodes']} nodes, file {size(facts['file_bytes'])}, weights "
        f"{size(facts['weight_bytes'])}{packed}",
        markup=False,
        soft_wrap=True,
    )
    if facts["decoder"]:
        console.print(f"decoder: {facts['decoder']}", markup=False, soft_wrap=True)
    table = Table(title="activations", title_justify="left")
    recorded = [f"recorded ({c})" for c in (AS_WRITTEN, STOCK_DEFAULT, SESSION)]
    for heading in ("sizes", f"planned peak ({last.configuration})", "workspace", *recorded, "at"):
        table.add_column(heading, justify="left" if heading in ("sizes", "at") else "right")
    for point in points:
        sizes = ", ".join(f"{k}={v}" for k, v in point.dims.items()) or "static"
        table.add_row(
            escape(sizes),
            size(point.planned_peak_bytes),
            size(point.workspace_bytes),
            *(_recorded(found) for found in (point.as_planned, point.stock, point.session)),
            escape(point.at),
        )
    console.print(table)
    console.print(f"over the run, up to {size(last.planned_peak_bytes)}:", markup=False)
    console.print(sparkline(last.found.curve, width=console.width - 2), markup=False)
    table = Table("tensor", "bytes", "share", "made by", "kept for", title="alive at the peak", title_justify="left")
    for item in last.alive[:top]:
        name = f"{item.name}" + (" (workspace)" if item.workspace and "inside" not in item.name else "")
        share = item.nbytes / last.planned_peak_bytes
        table.add_row(escape(name), size(item.nbytes), f"{share:.0%}", escape(item.made), escape(item.freed))
    console.print(table)
    access = last.access
    console.print(
        f"Access: each byte written is read {access['reads_per_byte']:.1f} times; live ranges last "
        f"{access['live_range_median']:.0f} steps (median), {access['live_range_max']:.0f} at most; "
        f"{access['held_share']:.0%} of bytes times steps are only kept for later.",
        soft_wrap=True,
    )
    if last.formula is not None and not isinstance(last.formula, int):
        console.print(f"At the peak {last.formula} bytes are alive.", markup=False, soft_wrap=True)
    if last.as_planned and last.as_planned.method != "recorder":
        console.print(f"Recorded figures are of a {last.as_planned.method}.", soft_wrap=True)
    if last.unknown:
        names = ", ".join(last.unknown[:5])
        click.echo(f"{len(last.unknown)} values have no known size and count as 0: {names}", err=True)


def _recorded(found: Recorded | None) -> str:
    from memoptc.report.rows import size

    return "" if found is None else size(found.run_peak_bytes)
