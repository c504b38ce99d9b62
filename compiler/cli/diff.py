"""`memoptc diff A B`: two models, node by node, and the reports of their compiles side by side."""

from __future__ import annotations

from pathlib import Path

import click

from memoptc.cli.options import GroupedCommand, Talk, talks


@click.command("diff", cls=GroupedCommand)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@talks
def command(before: Path, after: Path, talk: Talk) -> int:
    """Show what AFTER has that BEFORE has not, what is gone and what changed; exit code 3 when something differs.

    Both are models, or reports (.json). Of models, reports that lie beside them (MODEL.json) are shown, too.
    """
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.model_diff import diff_models
    from memoptc.plain_values import plain
    from memoptc.report.rows import size
    from memoptc.report.side_by_side import report_of, side_by_side

    reports = [report_of(path) for path in (before, after)]
    rows = side_by_side(reports[0], reports[1]) if reports[0] and reports[1] else []
    models = before.suffix != ".json" or after.suffix != ".json" or not rows
    found = diff_models(read_onnx(before), read_onnx(after)) if models else None

    def show() -> None:
        if found is not None:
            for line in (*found.ports, *map(str, found.nodes)):
                click.echo(line)
            for name, (a, b) in found.operators.items():
                click.echo(f"{name}: {a} -> {b}")
            click.echo(f"weights: {size(found.weight_bytes[0])} -> {size(found.weight_bytes[1])}")
            click.echo("nothing differs" if found.same else f"{len(found.nodes)} nodes differ")
        if rows:
            table = Table("", escape(before.name), escape(after.name), title="reports", title_justify="left")
            for row in rows:
                table.add_row(*map(escape, row))
            result_console().print(table)

    told = {} if found is None else plain(found)
    talk.tell(told | {"reports": [{"what": a, "before": b, "after": c} for a, b, c in rows]}, show)
    same = found.same if found is not None else all(a == b for _, a, b in rows)
    return 0 if same else 3
