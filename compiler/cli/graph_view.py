"""`memoptc show MODEL`: a graph as a page to read: types, bytes, and where each node comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import Talk, takes, talks
from memoptc.cli.project import ProjectCommand
from memoptc.options import Options


@click.command("show", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Page to write, .html; nothing if not given.")
@click.option("--top", default=20, show_default=True, type=click.IntRange(min=0), help="Nodes to list, largest first.")
@takes("options", Options, "dims")
@talks
def command(model: Path, output: Path | None, top: int, options: dict[str, Any], talk: Talk) -> None:
    """Show MODEL's nodes with types, bytes of weights and results, and the original's nodes that they stand for."""
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console
    from memoptc.graph_files import read_any
    from memoptc.ir.diagnostics import InputError
    from memoptc.ir.files import atomic_write
    from memoptc.report.graph_page import graph_rows, render_graph
    from memoptc.report.rows import size

    if output is not None and output.suffix != ".html":
        raise InputError(f"{output} is no name for a page.", hint="Use a name that ends in .html.")
    graph, _ = read_any(model)
    rows, dims = graph_rows(graph, options["dims"])
    if output is not None:
        atomic_write(output, render_graph(model.name, rows, dims).encode())

    def show() -> None:
        console = result_console()
        sizes = ", ".join(f"{name}={extent}" for name, extent in dims.items())
        console.print(
            f"{model.name}{f' at {sizes}' if sizes else ''}: {len(rows)} node{'s' * (len(rows) != 1)}", markup=False
        )
        table = Table("node", "operator", "gives", "bytes", "weights", "from", "by")
        for row in sorted(rows, key=lambda r: -(r.result_bytes or 0) - r.weight_bytes)[:top]:
            gives = ", ".join(f"{name}: {kind}" for name, kind in row.results)
            figures = (size(row.result_bytes) if row.result_bytes is not None else "?", size(row.weight_bytes))
            origin = (_short(row.nodes), ", ".join(row.rules))
            table.add_row(*map(escape, (row.name, row.operator, gives, *figures, *origin)))
        console.print(table)
        if output is not None:
            console.print(f"wrote {output}", markup=False, soft_wrap=True)

    talk.tell({"dims": dims, "nodes": rows, "files": [output] if output else []}, show)


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
