"""Hooks for `run_pipeline`: verify, print, dump, stop early, leave a reproducer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from pathlib import Path

from memoptc.graph_files import Recipe, write_with_recipe
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InternalError, MemoptcError
from memoptc.ir.interface import Interface, interface_of
from memoptc.ir.mir import write_mir
from memoptc.ir.printer import print_graph
from memoptc.ir.type_checks import type_faults, verify_types
from memoptc.ir.verifier import verify
from memoptc.manager import Instrument, PassFailed, run_pipeline
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Group, Pipeline
from memoptc.report.model import PassRecord


class VerifyEach(Instrument):
    """Verify the graph after every pass that changed it.

    Breaches of ONNX's own rules that the model came with are no pass's fault; any other is.

    Args:
        types: Also hold types against schemas and inference.
    """

    def __init__(self, types: bool = False) -> None:
        self._version = -1
        self._types = types
        self._tolerated: frozenset[str] | None = None

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        """Learn what the model came with."""
        if self._tolerated is None:
            types = type_faults(graph) if self._types else []
            self._tolerated = frozenset(w.rule for w in [*verify(graph), *types])
            self._version = graph.version

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Raise `VerifyError` when the pass left a broken graph."""
        if graph.version != self._version:
            verify(graph, tolerated=self._tolerated)
            if self._types:
                verify_types(graph, self._tolerated or ())
            self._version = graph.version


class KeepsInterface(Instrument):
    """See that no pass changes what callers of the model rely on, unless it is there for that."""

    def __init__(self) -> None:
        self._interface: Interface | None = None

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        """Learn what callers rely on."""
        if self._interface is None:
            self._interface = interface_of(graph)

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Raise `InternalError` when the pass changed it."""
        found = interface_of(graph)
        if pass_.changes_interface:
            self._interface = found
        elif self._interface is not None and (difference := self._interface.difference(found)):
            raise InternalError(f"it changed the model's interface: {difference}")


class PrintAfter(Instrument):
    """Show the graph after passes.

    Args:
        write: Takes the text.
        names: After which passes; after every one when empty.
    """

    def __init__(self, write: Callable[[str], None], names: Collection[str] = ()) -> None:
        self._write, self._names = write, names

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Show it, large tensors left out."""
        if not self._names or pass_.name in self._names:
            self._write(f"// after {pass_}\n{print_graph(graph, weights='elide', notes=False)}")


class PrintChanged(Instrument):
    """Show what each pass changed, as a diff of the text form.

    Args:
        write: Takes the text.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._version = -1
        self._text: list[str] = []

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        """Remember the graph."""
        self._remember(graph)

    def _remember(self, graph: Graph) -> None:
        if graph.version != self._version:
            self._text, self._version = print_graph(graph, weights="elide").splitlines(), graph.version

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Show the difference, if there is one."""
        before = self._text
        self._remember(graph)
        if self._text is not before:
            lines = difflib.unified_diff(before, self._text, "before", f"after {pass_}", lineterm="", n=1)
            self._write("\n".join(lines))


class Dump(Instrument):
    """Write the graph as `.mir` after each pass, numbered; weights that no pass changed are referred to by name.

    Args:
        folder: Where to; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Write one file."""
        source = Path(graph.model.source_path) if graph.model is not None else Path()
        known = source if source.suffix == ".onnx" and source.is_file() else None
        write_mir(graph, self._folder / f"{index:03d}-{pass_.name}.mir", source=known)


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


class Changes(Instrument):
    """Notes which passes of a pipeline change the graph.

    Args:
        pipeline: What runs.
        known: Positions of those that did before, where only the rest of it runs.
    """

    def __init__(self, pipeline: Pipeline, known: Collection[int] = ()) -> None:
        self._position = {id(pass_): i for i, pass_ in enumerate(pipeline.passes())}
        self._before = -1
        self._found = set(known)

    def before(self, index: int, pass_: Pass, graph: Graph) -> None:
        """Remember the version."""
        self._before = graph.version

    def after(self, index: int, pass_: Pass, graph: Graph, record: PassRecord) -> None:
        """Compare it."""
        if graph.version != self._before:
            self._found.add(self._position[id(pass_)])

    def positions(self) -> list[int]:
        """Give their positions among the passes of the pipeline."""
        return sorted(self._found)


class StopAfter(Instrument):
    """Run only the first `limit` passes, as bisection needs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def should_run(self, index: int, pass_: Pass, graph: Graph) -> bool:
        """True if the limit is not reached."""
        return index < self.limit


class ReproduceEndless(Instrument):
    """Write a reproducer, as for a pass that fails, when a pass or a group does not end.

    Args:
        recipe: Gives what to run on the graph, from the pipeline's text.
        folder: Where to.
        options: What `memoptc opt` needs besides.
    """

    def __init__(self, recipe: Callable[[str], Recipe], folder: Path = Path(), options: str = "") -> None:
        self._recipe, self._folder, self._options = recipe, folder, options

    def overran(self, item: Pass | Group, graph: Graph, why: str) -> str:
        """Write it, and say so."""
        path = self._folder / f"memoptc-reproducer-{item.name if isinstance(item, Pass) else 'group'}.mir"
        try:
            write_with_recipe(graph, path, self._recipe(str(item)), why)
        except (OSError, MemoptcError) as e:
            return f"No reproducer could be written: {e}"
        return f"A reproducer was written: memoptc opt {path}{self._options}."


def write_reproducer(
    path: Path,
    original: Graph,
    pipeline: Pipeline,
    failure: PassFailed,
    make_context: Callable[[], Context] = Context,
    calibration: str | None = None,
) -> list[Path]:
    """Write the graph as the failing pass saw it, and what was left to run, to a `.mir` file for `memoptc opt`.

    Args:
        path: The file.
        original: The graph before any pass; not changed.
        pipeline: What was run.
        failure: How it ended.
        make_context: Gives a fresh context such as the failing run had.
        calibration: Where the calibration data is, when it is in a file.

    Returns:
        The files written.
    """
    graph, context = original.clone(), make_context()
    run_pipeline(pipeline, graph, context, [StopAfter(failure.index)])
    rest = str(Pipeline(failure.rest))
    recipe = Recipe(rest, context.level, context.target, dict(context.dims), calibration)
    return write_with_recipe(graph, path, recipe, failure.message)
