"""The pipeline that the options stand for, and running it on a graph."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memoptc import levels, registry
from memoptc.coded_interface import CodedInterface, interface_since, with_interface_of
from memoptc.compilation import Compilation
from memoptc.graph_files import Recipe
from memoptc.instruments import (
    Changes,
    CheckEach,
    Dump,
    KeepsInterface,
    ReproduceEndless,
    VerifyEach,
    write_reproducer,
)
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError, first_line
from memoptc.ir.onnx_io import write_into
from memoptc.lossy import lossy_passes
from memoptc.manager import Instrument, PassFailed, run_pipeline
from memoptc.moved_weights import MoveWeights
from memoptc.node_names import excluding
from memoptc.options import Options
from memoptc.pass_base import Artefacts, Context, Pass
from memoptc.pipeline import Pipeline, parse
from memoptc.pipeline_edits import edited
from memoptc.report.model import Decision, PassRecord
from memoptc.runtime.configuration import planned_peak
from memoptc.runtime.devices import USUAL, detect, load_device
from memoptc.runtime.measure import measure as measure_models
from memoptc.runtime.memory.extents import covers, extents
from memoptc.runtime.options import RunOptions
from memoptc.runtime.spool import trim
from memoptc.runtime.verify import verify as verify_models
from memoptc.snapshots import Snapshots
from memoptc.steps.prepare import Prepared, prepare

_TUNING = 4.0
"""Seconds that measuring one candidate may take."""


def device_of(options: Options) -> str:
    """Name the profile to write for; this machine is only looked at where that makes a difference."""
    if options.device != "auto":
        return load_device(options.device).name
    return detect() if options.target in ("int8", "uint8", "mixed") else USUAL


def pipeline(options: Options, calibrated: bool) -> Pipeline:
    """The pipeline that the options stand for."""
    registry.load_plugins(options.plugins)
    if options.passes is not None:
        return edited(parse(options.passes), options.skip_passes, options.settings)
    text = levels.pipeline_text(
        options.level,
        options.target,
        calibrated=calibrated,
        freeze=options.freeze_runtime,
        quantize_io=options.quantize_io,
        cache=options.cache,
        device=device_of(options),
        budget=options.budget.activations,
        slowdown=options.max_slowdown,
        accuracy=levels.Accuracy(options.min_sqnr, options.max_accuracy_loss, options.fallback),
        lossy=lossy_passes(options),
    )
    return edited(parse(text), options.skip_passes, options.settings)


def pipeline_of(compilation: Compilation, options: Options) -> Pipeline:
    """The pipeline that options stand for in a compile: its passes leave alone what is excluded.

    Raises:
        InputError: nodes to exclude are none of the model's, or no pass leaves any out.
    """
    steps = pipeline(options, compilation.data.calibration is not None)
    return excluding(steps, compilation.source.graph, options.exclude)


@dataclass
class Compiled:
    """Result of the passes.

    Args:
        graph: The graph.
        pipeline: What ran.
        artefacts: What passes made besides.
        interface: Inputs and outputs that are codes now.
        passes: What each pass did.
        changed: Which passes of the pipeline changed the graph, counted as `Pipeline.passes` gives them.
        warnings: What the user must know.
        decisions: What was done, and why.
    """

    graph: Graph
    pipeline: Pipeline
    artefacts: Artefacts
    interface: CodedInterface
    passes: list[PassRecord]
    changed: list[int]
    warnings: list[str]
    decisions: list[Decision]

    @property
    def changed_passes(self) -> list[Pass]:
        """The passes that changed the graph."""
        return [pass_ for index, pass_ in enumerate(self.pipeline.passes()) if index in self.changed]


@dataclass(frozen=True)
class Start:
    """Graphs that a pipeline can start from.

    Args:
        prepared: The original as `prepare` leaves it; prepared anew when not given.
        snapshots: Those of an earlier pipeline: where both begin alike, this one goes on from there.
    """

    prepared: Prepared | None = None
    snapshots: Snapshots = field(default_factory=Snapshots)


IDLE = "changed nothing:"
"""What warnings say of a lossy pass that was asked for and left the model alone; the reason follows."""


def run_passes(compilation: Compilation, steps: Pipeline, start: Start) -> Compiled:
    """Run a pipeline on a prepared graph, in place.

    Args:
        compilation: The compile.
        steps: The pipeline.
        start: Where it may start; the prepared graph is changed.

    Raises:
        PassFailed: a pass broke; a reproducer is in the current folder, and the message names it.
    """
    options, data = compilation.options, compilation.data
    context = context_of(compilation)
    # Who asks for dumps or checks wants to see each pass run.
    snapshots = Snapshots() if options.dump_dir is not None or options.check_each else start.snapshots
    known = snapshots.before(steps)
    progress = _Progress(options, len(list(steps.passes())))
    context.say = progress.say
    if options.tune:
        context.slowdown = lambda g: _slowdown(g, compilation)
    if known is None:
        prepared = start.prepared or prepare(compilation)
        graph = prepared.graph
        context.keep_shapes(graph, prepared.shapes)
    else:
        graph = known.restore(context)
    ran, before = (len(known.items), known.records) if known else (0, ())
    changes = Changes(steps, known.changed if known else ())
    named = options.calibration if isinstance(options.calibration, str) else None
    plugins = "".join(f" --plugin {p}" for p in options.plugins)
    instruments: list[Instrument] = [
        changes,
        VerifyEach(),
        KeepsInterface(),
        progress,
        ReproduceEndless(lambda t: Recipe(t, options.level, options.target, dict(data.dims), named), options=plugins),
        MoveWeights(compilation.scratch),
        *snapshots.recorder(steps, context, changes),
    ]
    if options.dump_dir is not None:
        instruments.append(Dump(Path(options.dump_dir)))
    if options.check_each:
        instruments.append(CheckEach(lambda g: _error(g, compilation)))
    try:
        passes = [*before, *run_pipeline(Pipeline(steps.items[ran:]), graph, context, instruments, _Peaks(data.dims))]
    except PassFailed as failure:
        failure.index += len(before)
        path = Path(f"memoptc-reproducer-{failure.pass_.name}.mir")
        try:
            original = prepare(compilation).graph
            write_reproducer(path, original, steps, failure, lambda: context_of(compilation), named)
            failure.hint = f"A reproducer was written: memoptc opt {path}{plugins}. {failure.hint}"
        except (OSError, MemoptcError) as error:  # the failure is what counts
            failure.hint = f"No reproducer could be written: {first_line(error)} {failure.hint}"
        raise
    trim(collect=False)  # what passes tried and gave up
    changed = changes.positions()
    late = [i for i, pass_ in enumerate(steps.passes()) if pass_.name in context.allowance.left_out]
    context.warnings += _idle(steps, [*changed, *late], passes)
    interface = interface_since(graph, compilation.source.graph)
    said = (context.warnings, context.decisions)
    return Compiled(graph, steps, context.artefacts, interface, passes, changed, *said)


def _idle(steps: Pipeline, changed: list[int], records: list[PassRecord]) -> list[str]:
    """Say which lossy passes changed nothing, and why: whoever asked for one expects something of it."""
    found = []
    for index, pass_ in enumerate(steps.passes()):
        if pass_.accuracy_target is not None and index not in changed:
            stats = [name for record in records if record.name == pass_.name for name in record.stats]
            reasons = [name.removeprefix("left: ") for name in stats if name.startswith("left: ")]
            found.append(f"{pass_.name} {IDLE} {'; '.join(reasons) or 'there is nothing it applies to'}.")
    return found


class _Peaks:
    """Planned peaks for the records of passes.

    Extents are worked out anew only where symbols came that were not there before. A symbol that a pass gave another
    meaning would make a record wrong, and nothing else: what is decided by, and what is reported of the result, is
    planned from the graph alone.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        self._dims = self._known = dims

    def __call__(self, graph: Graph) -> int:
        if not covers(graph, self._known):
            self._known = extents(graph, self._dims)
        return planned_peak(graph, self._known).peak_bytes


class _Progress(Instrument):
    def __init__(self, options: Options, total: int) -> None:
        self._options, self._total = options, max(total, 1)
        self._name, self._share = "", 0.05

    def before(self, index: int, pass_: Any, graph: Graph) -> None:
        self._name, self._share = str(pass_.name), 0.05 + 0.5 * min(index / self._total, 1.0)
        self._options.progress(self._name, self._share)

    def say(self, text: str) -> None:
        """Say where the pass stands."""
        self._options.progress(f"{self._name}: {text}", self._share)


def _slowdown(graph: Graph, compilation: Compilation) -> float:
    """Run time of a graph over the original's: medians of runs in turns, in processes of their own."""
    folder = Path(tempfile.mkdtemp(dir=compilation.scratch))
    path = folder / "tune.onnx"
    write_into(graph, path)
    run = RunOptions(threads=compilation.options.jobs or 0)
    models = [compilation.source.path, path]
    before, after = measure_models(models, compilation.data.feed, options=run, seconds=_TUNING)
    shutil.rmtree(folder)
    return float(after.latency_ms["p50"] / before.latency_ms["p50"])


def context_of(compilation: Compilation) -> Context:
    """Give passes what they may know of a compile."""
    options, data = compilation.options, compilation.data
    return Context(
        level=options.level,
        target=options.target,
        dims=data.dims,
        check=data.check,
        calibration=data.calibration,
        validation=data.validation,
        metric=data.metric(options),
        force=options.force,
        scratch=compilation.scratch,
        checkpoint=None if options.checkpoint is None else Path(options.checkpoint),
        searched=data.searched,
        original=compilation.source.graph,
        allowance=compilation.allowance,
    )


def bound(options: Options) -> dict[str, int] | None:
    """Extents that are decided for every run and that neither the control nor a candidate has fixed."""
    return {name: extent for name, extent in options.dims.items() if name not in options.freeze} or None


def _error(graph: Graph, compilation: Compilation) -> float:
    path, data, options = compilation.scratch / "check.onnx", compilation.data, compilation.options
    write_into(with_interface_of(compilation.source.graph, graph), path)
    found = verify_models(
        compilation.source.control,
        path,
        mode="fast",
        data=data.raw,
        inputs=data.kind,
        dims=bound(options),
        point=data.check,
    )
    errors = [o["max_abs"] for o in found.outputs if isinstance(o["max_abs"], int | float)]
    return max(errors, default=0.0)
