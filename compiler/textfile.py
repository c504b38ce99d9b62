"""Graphs in files, `.mir` or `.onnx`, and the pipeline that a reproducer brings along."""

from __future__ import annotations

from pathlib import Path

from memoptc.ir.core import Graph
from memoptc.ir.files import atomic_write
from memoptc.ir.mir import read_mir, write_mir
from memoptc.ir.onnx_io import read_onnx

PIPELINE_COMMENT = "// memoptc-pipeline: "


def read_any(path: Path) -> tuple[Graph, str]:
    """Read a graph, and the pipeline that its first lines name (`""` when they name none).

    Raises:
        InputError: the file cannot be read; the message says why.
    """
    if path.suffix != ".mir":
        return read_onnx(path), ""
    graph = read_mir(path)
    for line in path.read_text("utf-8").splitlines()[:5]:
        if line.startswith(PIPELINE_COMMENT):
            return graph, line.removeprefix(PIPELINE_COMMENT).strip()
    return graph, ""


def write_with_pipeline(graph: Graph, path: Path, pipeline: str, why: str) -> None:
    """Write a reproducer: the graph, the passes that fail on it, and how."""
    write_mir(graph, path)
    head = f"{PIPELINE_COMMENT}{pipeline}\n// {why.splitlines()[0]}\n"
    atomic_write(path, (head + path.read_text("utf-8")).encode("utf-8"))
