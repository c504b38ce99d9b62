"""`memoptc diff A B`: two models, node by node."""

from __future__ import annotations

from pathlib import Path

import click

from memoptc.cli.options import GroupedCommand, Talk, talks


@click.command("diff", cls=GroupedCommand)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@talks
def command(before: Path, after: Path, talk: Talk) -> int:
    """Show what AFTER has that BEFORE has not, what is gone and what changed; exit code 3 when something differs."""
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.model_diff import diff_models
    from memoptc.report.rows import size

    found = diff_models(read_onnx(before), read_onnx(after))

    def show() -> None:
        for line in (*found.ports, *map(str, found.nodes)):
            click.echo(line)
        for name, (a, b) in found.operators.items():
            click.echo(f"{name}: {a} -> {b}")
        click.echo(f"weights: {size(found.weight_bytes[0])} -> {size(found.weight_bytes[1])}")
        click.echo("nothing differs" if found.same else f"{len(found.nodes)} nodes differ")

    talk.tell(found, show)
    return 0 if found.same else 3
