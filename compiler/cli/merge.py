"""`memoptc merge A B ... -o DIR`: several models over one file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import GroupedCommand, Talk, talks


@click.command("merge", cls=GroupedCommand)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@talks
def command(models: tuple[Path, ...], output: Path, talk: Talk) -> None:
    """Write MODELS into one folder, over one file of weights that holds equal ones once.

    Each runs as before, in onnxruntime and in `Session`; what `memoptc.runtime.Pool` opens of them maps the file once.
    """
    from memoptc.ir.merge import merge_models
    from memoptc.report.rows import size

    found = merge_models(models, output)
    told: dict[str, Any] = {"models": [str(path) for path in found.models], "weights": str(found.weights)}
    told |= {"bytes_before": found.bytes_before, "bytes_after": found.bytes_after}
    talk.tell(
        told,
        lambda: click.echo(
            f"wrote {len(found.models)} models to {output}: weights {size(found.bytes_before)} -> "
            f"{size(found.bytes_after)} in {found.weights.name}"
        ),
    )
