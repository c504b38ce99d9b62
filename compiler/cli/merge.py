"""`memoptc merge A B ... -o DIR`: several models over one file of weights."""

from __future__ import annotations

import json
from pathlib import Path

import click

from memoptc.cli.options import GroupedCommand, Talk, talks


@click.command("merge", cls=GroupedCommand)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a sentence.")
@talks
def command(models: tuple[Path, ...], output: Path, as_json: bool, talk: Talk) -> None:
    """Write MODELS into one folder, over one file of weights that holds equal ones once.

    Each runs as before, in onnxruntime and in `Session`; what `memoptc.runtime.Pool` opens of them maps the file once.
    """
    from memoptc.ir.merge import merge_models
    from memoptc.report.rows import size

    found = merge_models(models, output)
    if as_json:
        files = {"models": [str(path) for path in found.models], "weights": str(found.weights)}
        click.echo(
            json.dumps({**files, "bytes_before": found.bytes_before, "bytes_after": found.bytes_after}, indent=2)
        )
    elif not talk.quiet:
        click.echo(
            f"wrote {len(found.models)} models to {output}: weights {size(found.bytes_before)} -> "
            f"{size(found.bytes_after)} in {found.weights.name}"
        )
