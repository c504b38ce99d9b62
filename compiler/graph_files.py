"""Graphs in files, `.mir` or `.onnx`, and the recipe that a reproducer brings along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import atomic_write
from memoptc.ir.mir import read_mir, write_mir
from memoptc.ir.onnx_io import read_onnx

PIPELINE_COMMENT = "// memoptc-pipeline: "
CONTEXT_COMMENT = "// memoptc-context: "


@dataclass(frozen=True)
class Recipe:
    """A pipeline to run on a graph, and the facts that passes then know.

    Args:
        pipeline: The passes.
        level: Optimisation level.
        target: Numbers asked for.
        dims: Extents of symbolic dimensions.
        calibration: Where samples are, when they are in a file.
    """

    pipeline: str = ""
    level: int = 1
    target: str = "float32"
    dims: Mapping[str, int] = field(default_factory=dict)
    calibration: str | None = None

    def header(self) -> str:
        """The comments that carry it in a file."""
        facts = {k: v for k, v in asdict(self).items() if k != "pipeline"}
        return f"{PIPELINE_COMMENT}{self.pipeline}\n{CONTEXT_COMMENT}{json.dumps(facts)}\n"


def read_any(path: Path) -> tuple[Graph, Recipe]:
    """Read a graph, and the recipe in its first lines (an empty one when there is none).

    Raises:
        InputError: the file cannot be read; the message says why.
    """
    if path.suffix != ".mir":
        return read_onnx(path), Recipe()
    graph = read_mir(path)
    pipeline, facts = "", {}
    for line in path.read_text("utf-8").splitlines()[:5]:
        if line.startswith(PIPELINE_COMMENT):
            pipeline = line.removeprefix(PIPELINE_COMMENT).strip()
        if line.startswith(CONTEXT_COMMENT):
            facts = json.loads(line.removeprefix(CONTEXT_COMMENT))
    try:
        return graph, Recipe(pipeline, **facts)
    except TypeError:
        raise InputError(f"{path}: its header says {', '.join(facts)}, which this version does not know.") from None


def write_with_recipe(graph: Graph, path: Path, recipe: Recipe, why: str) -> list[Path]:
    """Write a reproducer: the graph, the passes that fail on it, and how. Weights go beside it, as in `write_mir`.

    Args:
        graph: The graph.
        path: The `.mir` file.
        recipe: What fails.
        why: How; its first line is written down.

    Returns:
        The files written.
    """
    files = write_mir(graph, path)
    head = f"{recipe.header()}// {why.splitlines()[0]}\n"
    atomic_write(path, (head + path.read_text("utf-8")).encode("utf-8"))
    return files
