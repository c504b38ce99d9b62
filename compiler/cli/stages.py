"""`memoptc stages MODEL -o DIR`: a model as several, one after the other, where one does not fit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import Talk, takes, talks
from memoptc.cli.project import ProjectCommand
from memoptc.options import Options


@click.command("stages", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--count", type=click.IntRange(min=2), default=2, show_default=True, help="How many stages.")
@takes("options", Options, "dims")
@talks
def command(model: Path, output: Path, count: int, options: dict[str, Any], talk: Talk) -> None:
    """Cut MODEL where few bytes cross, and write its stages over one file of weights.

    Each stage runs in any onnxruntime, `memoptc.runtime.Stages` runs one after the other: its process needs the weights
    of one or two stages at a time, and the time to load them.
    """
    from memoptc.ir.onnx_io import read_onnx
    from memoptc.ir.stages import split
    from memoptc.report.rows import size
    from memoptc.runtime.inputs import by_symbol, check_symbols

    graph = read_onnx(model, lazy=True)
    dims = by_symbol(graph, options["dims"])
    check_symbols({value.name: value.type for value in graph.inputs}, dims)
    found = split(model, output, count, dims)
    lines = []
    for number, (names, weights) in enumerate(zip(found.stages, found.weight_bytes, strict=True)):
        crossing = f", hands over {size(found.crossing_bytes[number])}" if number < len(found.crossing_bytes) else ""
        lines.append(f"stage{number}.onnx: {len(names)} nodes, weights {size(weights)}{crossing}")
    talk.tell(asdict(found), lambda: click.echo("\n".join(lines)))
