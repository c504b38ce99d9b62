"""Hooks for `run_pipeline`: verify, print, dump, stop early, leave a reproducer."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from memoptc.ir.core import Graph
from memoptc.ir.mir import write_mir
from memoptc.ir.printer import print_graph
from memoptc.ir.verifier import verify
from memoptc.manager import Instrument, PassFailed, run_pipeline
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Pipeline
from memoptc.report.model import PassRecord
from memoptc.textfile import write_with_pipeline


class VerifyEach(Instrument):
    """Verify the graph after every pass that changed it."""

    def __init__(self) -> None:
        self._version = -1

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Raise `VerifyError` when the pass left a broken graph."""
        if graph.version != self._version:
            verify(graph)
            self._version = graph.version


class PrintChanged(Instrument):
    """Show what each pass changed, as a diff of the text form.

    Args:
        write: Takes the text.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._before = ""

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        """Remember the graph."""
        self._before = print_graph(graph, weights="elide")

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Show the difference."""
        lines = difflib.unified_diff(
            self._before.splitlines(),
            print_graph(graph, weights="elide").splitlines(),
            "before",
            f"after {pass_}",
            lineterm="",
        )
        self._write("\n".join(lines))


class Dump(Instrument):
    """Write the graph as `.mir` after each pass, numbered.

    Args:
        folder: Where to; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Write one file."""
        write_mir(graph, self._folder / f"{index:03d}-{pass_.name}.mir")


class CheckEach(Instrument):
    """Compare numbers with the original after each pass that changed the graph.

    Args:
        error: Gives the largest relative error of a graph against the original.
    """

    def __init__(self, error: Callable[[Graph], float]) -> None:
        self._error = error
        self._version = -1
        self._last = 0.0

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Fill in `max_error`."""
        if graph.version != self._version:
            self._last, self._version = self._error(graph), graph.version
        record.max_error = self._last


class StopAfter(Instrument):
    """Run only the first `limit` passes, as bisection needs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def should_run(self, index: int, pass_: Pass, graph: Graph) -> bool:
        """Whether the limit is not reached."""
        return index < self.limit


def write_reproducer(path: Path, original: Graph, pipeline: Pipeline, failure: PassFailed) -> None:
    """Write the graph as the failing pass saw it, and the pass, to a `.mir` file that `memoptc opt` runs.

    Args:
        path: The file.
        original: The graph before any pass; not changed.
        pipeline: What was run.
        failure: How it ended.
    """
    graph = original.clone()
    run_pipeline(pipeline, graph, Context(), [StopAfter(failure.index)])
    write_with_pipeline(graph, path, str(failure.pass_), failure.message)
