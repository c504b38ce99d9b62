"""`memoptc profile`: planned activation memory by tensor and node, over one or several input sizes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from memoptc.cli.options import Bindings, common
from memoptc.cli.show import result_console
from memoptc.report.rows import size


@click.command("profile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--dim", "dims", multiple=True, type=Bindings(), help="Extents of a symbolic dimension: N=1,2,4; may be repeated."
)
@click.option("--top", default=10, show_default=True, help="How many tensors to list at the peak.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@common
def command(
    model: Path,
    dims: tuple[tuple[str, tuple[int, ...]], ...],
    top: int,
    as_json: bool,
    plugins: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Show where MODEL's activation memory peaks, from its graph alone (nothing is run)."""
    from memoptc.ir.infer import infer_shapes
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.manager import count_nodes, weight_bytes
    from memoptc.runtime.inputs import InputMaker
    from memoptc.runtime.memory.liveness import peak

    graph = read_onnx(model)
    infer_shapes(graph)
    names = [name for name, _ in dims]
    points: list[dict[str, Any]] = []
    for extents in itertools.product(*(values for _, values in dims)):
        bound = next(InputMaker(graph, dict(zip(names, extents, strict=True))).bindings(), {})
        found = peak(graph, bound)
        points.append(
            {
                "dims": bound,
                "planned_peak_bytes": found.peak_bytes,
                "at": found.op_label,
                "alive": [{"name": n, "bytes": b} for n, b in found.alive],
                "unknown": list(found.unknown),
                "curve": list(found.curve),
                "labels": list(found.labels),
            }
        )
    facts = {"model": str(model), "nodes": count_nodes(graph), "weight_bytes": weight_bytes(graph)}
    if as_json:
        click.echo(json.dumps(facts | {"points": points}, indent=2))
        return
    console = result_console()
    console.print(f"{model}: {facts['nodes']} nodes, weights {size(weight_bytes(graph))}", markup=False)
    table = Table("sizes", "planned peak", "at", title="activations", title_justify="left")
    for point in points:
        sizes = ", ".join(f"{k}={v}" for k, v in point["dims"].items()) or "static"
        table.add_row(escape(sizes), size(point["planned_peak_bytes"]), escape(point["at"]))
    console.print(table)
    last = points[-1]
    table = Table("tensor", "bytes", "share", title="alive at the peak (last line above)", title_justify="left")
    for item in last["alive"][:top]:
        table.add_row(escape(item["name"]), size(item["bytes"]), f"{item['bytes'] / last['planned_peak_bytes']:.0%}")
    console.print(table)
    if last["unknown"]:
        names_text = ", ".join(last["unknown"][:5])
        click.echo(f"{len(last['unknown'])} values have no known size and count as 0: {names_text}", err=True)
