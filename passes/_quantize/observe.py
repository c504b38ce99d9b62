"""A graph on its way through the pipeline, as a file that calibration can run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from memoptc.ir.core import Graph, Value
from memoptc.ir.onnx_io import write_into
from memoptc.ir.onnx_write import Names
from memoptc.pass_base import Context

T = TypeVar("T")


def observe(
    graph: Graph, values: Iterable[Value], context: Context, look: Callable[[Path, dict[str, Value]], dict[str, T]]
) -> dict[Value, T]:
    """Write a graph, look at some of its values, and remove the file.

    Args:
        graph: The top graph.
        values: What to look at.
        context: Its `scratch` is where the file lies for so long.
        look: From the file and the values by name to what was seen, by name.
    """
    path = Path(context.scratch) / "calibrate.onnx"
    names = Names()
    names.assign(graph)
    by_name = {names.of[v]: v for v in values}
    if not by_name:
        return {}
    write_into(graph, path)
    try:
        return {by_name[name]: seen for name, seen in look(path, by_name).items()}
    finally:
        path.unlink()
        path.with_name(path.name + ".data").unlink(missing_ok=True)
