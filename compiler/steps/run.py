"""The pipeline that the options stand for, and running it on a graph."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memoptc import levels, registry
from memoptc.border import Border, border_since, with_border_of
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
from memoptc.ir.infer import Inference
from memoptc.ir.onnx_io import write_into
from memoptc.manager import Instrument, PassFailed, run_pipeline
from memoptc.options import Options
from memoptc.pass_base import Context
from memoptc.pipeline import Pipeline, parse
from memoptc.pipeline_edits import edited
from memoptc.report import Report
from memoptc.runtime.configuration import planned_peak
from memoptc.runtime.devices import USUAL, detect, load_device
from memoptc.runtime.measure import measure as measure_models
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.options import RunOptions
from memoptc.runtime.spool import trim
from memoptc.runtime.verify import verify as verify_models
from memoptc.samples import Inputs
from memoptc.source import Source
from memoptc.steps.prepare import prepare
from memoptc.textfile import Recipe

_TUNING = 4.0
"""Seconds that measuring one candidate may take."""


def device_of(options: Options) -> str:
    """Name the profile to write for; this machine is only looked at where that makes a difference."""
    if options.device != "auto":
        return load_device(options.device).name
    return detect() if options.target in ("int8", "uint8", "mixed") else USUAL


def pipeline(options: Options, calibrated: bool) -> Pipeline:
    """The pipeline that the options stand for."""
    for plugin in options.plugins:
        registry.load_plugin(plugin)
    if options.passes is not None:
        return edited(parse(options.passes), options.skip_passes, options.settings)
    text = levels.pipeline_text(
        options.level,
        options.target,
        calibrated=calibrated,
        freeze=options.freeze_runtime,
        quantize_io=options.quantize_io,
        device=device_of(options),
        budget=options.budget.activations,
        slowdown=options.max_slowdown,
        accuracy=levels.Accuracy(options.min_sqnr, options.max_accuracy_loss, options.fallback),
    )
    return edited(parse(text), options.skip_passes, options.settings)


@dataclass
class Compiled:
    """What the passes leave.

    Args:
        plan: The plan, where one was made.
        frozen: Whether the graph is as onnxruntime's optimizer left it.
        border: Inputs and outputs that are codes now.
        changed: Which passes of the pipeline changed the graph, counted as `Pipeline.passes` gives them.
    """

    plan: Plan | None
    frozen: bool
    border: Border
    changed: list[int] = field(default_factory=list)


def run_passes(
    graph: Graph,
    shapes: Inference,
    source: Source,
    options: Options,
    data: Inputs,
    report: Report,
    scratch: Path,
    steps: Pipeline,
) -> Compiled:
    """Run a pipeline on `graph`, in place.

    Args:
        graph: The graph.
        shapes: What shape inference found in it.
        source: The original.
        options: The options in force.
        data: The data of this compile.
        report: Gets what passes did.
        scratch: A folder for temporary files.
        steps: The pipeline.

    Raises:
        PassFailed: a pass broke; a reproducer is in the current folder, and the message names it.
    """
    report.options["passes"] = str(steps)
    context = context_of(options, data, scratch)
    progress = _Progress(options, len(list(steps.passes())))
    context.say = progress.say
    if options.tune:
        context.slowdown = lambda g: _slowdown(g, source, options, data, scratch)
    context.results["shapes"] = (graph, graph.version, shapes)
    changes = Changes(steps)
    named = options.calibration if isinstance(options.calibration, str) else None
    plugins = "".join(f" --plugin {p}" for p in options.plugins)
    instruments: list[Instrument] = [
        changes,
        VerifyEach(),
        KeepsInterface(),
        progress,
        ReproduceEndless(lambda t: Recipe(t, options.level, options.target, dict(data.dims), named), options=plugins),
    ]
    if options.dump_dir is not None:
        instruments.append(Dump(Path(options.dump_dir)))
    if options.check_each:
        instruments.append(CheckEach(lambda g: _error(g, source, data, scratch)))
    try:
        report.passes = run_pipeline(
            steps, graph, context, instruments, lambda g: planned_peak(g, data.dims).peak_bytes
        )
    except PassFailed as failure:
        path = Path(f"memoptc-reproducer-{failure.pass_.name}.mir")
        original, _ = prepare(source, options, data, Report())
        write_reproducer(path, original, steps, failure, lambda: context_of(options, data, scratch), named)
        failure.hint = f"A reproducer was written: memoptc opt {path}{plugins}. {failure.hint}"
        raise
    trim(collect=False)  # what passes tried and gave up
    report.warnings.extend(context.warnings)
    report.decisions.extend(context.decisions)
    report.precision = context.results.get("precision")
    border = border_since(graph, source.graph)
    return Compiled(context.results.get("plan"), bool(context.results.get("frozen")), border, changes.positions())


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


def _slowdown(graph: Graph, source: Source, options: Options, data: Inputs, scratch: Path) -> float:
    """Run time of a graph over the original's: medians of runs in turns, in processes of their own."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    path = folder / "tune.onnx"
    write_into(graph, path)
    run = RunOptions(threads=options.jobs or 0)
    before, after = measure_models([source.path, path], data.feed, options=run, seconds=_TUNING)
    shutil.rmtree(folder)
    return float(after.latency_ms["p50"] / before.latency_ms["p50"])


def context_of(options: Options, data: Inputs, scratch: Path) -> Context:
    """Give passes what they may know of a compile."""
    return Context(
        level=options.level,
        target=options.target,
        dims=data.dims,
        calibration=data.calibration,
        validation=data.validation,
        metric=data.metric(options),
        force=options.force,
        scratch=scratch,
        memo=data.memo,
    )


def _error(graph: Graph, source: Source, data: Inputs, scratch: Path) -> float:
    path = scratch / "check.onnx"
    write_into(with_border_of(source.graph, graph), path)
    found = verify_models(source.control, path, mode="fast", data=data.raw, inputs=data.kind)
    errors = [o["max_abs"] for o in found.outputs if isinstance(o["max_abs"], int | float)]
    return max(errors, default=0.0)
