"""The steps of a compile, one function each; `memoptc.api` says in which order."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from memoptc import __version__, forms, levels, registry
from memoptc.bisect import bisect
from memoptc.border import Border, border_since, with_border_of
from memoptc.gate import promised_slowdown
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
from memoptc.ir.decoder import KEY as DECODER
from memoptc.ir.decoder import Decoder, appended_inputs, recognise, recognised
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import substitute
from memoptc.ir.forms import WritingForm
from memoptc.ir.infer import Inference, infer_shapes
from memoptc.ir.onnx_io import write_into
from memoptc.ir.types import TensorType
from memoptc.last_logits import keep_last, logits_of
from memoptc.manager import Instrument, PassFailed, count_nodes, run_pipeline, weight_bytes
from memoptc.options import Options
from memoptc.pass_base import Context
from memoptc.pipeline import Pipeline, parse
from memoptc.report import Curve, Report, Side
from memoptc.report.model import Decision
from memoptc.runtime.configuration import FILE_ORDER, planned, planned_peak
from memoptc.runtime.contract import Contract
from memoptc.runtime.devices import USUAL, detect, load_device
from memoptc.runtime.freeze import write_packed
from memoptc.runtime.integer_kernels import has_codes, integer_run
from memoptc.runtime.judge import Judge
from memoptc.runtime.measure import measure as measure_models
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.need import Configuration, NeedEstimate, SessionKind, predict_need
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.options import FRUGAL, RunOptions
from memoptc.runtime.quality import load_metric
from memoptc.runtime.spool import trim
from memoptc.runtime.verify import Verification
from memoptc.runtime.verify import verify as verify_models
from memoptc.samples import Inputs
from memoptc.source import Source
from memoptc.textfile import Recipe

_LISTED = 12
"""Tensors that a report names at the peak."""

_TUNING = 4.0
"""Seconds that measuring one candidate may take."""

_KINDS: tuple[SessionKind, SessionKind] = ("stock", "arena")

EXACT_LEVEL = 1
"""Up to this level no output bit may change."""


def environment(options: Options) -> dict[str, Any]:
    """Versions and threads that the report's figures hold for."""
    return {
        "memoptc": __version__,
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "threads": options.jobs or 0,
    }


def prepare(source: Source, options: Options, data: Inputs, report: Report) -> tuple[Graph, Inference]:
    """Give the graph that passes start from: a copy with frozen extents, weights that are weights, and types.

    Returns:
        The graph, and what shape inference found.
    """
    graph = source.graph.clone()
    for name in options.freeze:
        if name not in data.dims:
            raise InputError(f"There is no dimension {name!r} to freeze.", hint=f"There are: {', '.join(data.dims)}.")
    if options.freeze:
        _freeze(graph, options.freeze)
    if options.level >= 1 and graph.defaults:
        report.warnings.append(
            f"{len(graph.defaults)} weights are also listed as inputs, so a caller could replace them at run time; "
            "they are now constants (-O0 keeps them as they are)."
        )
        _fix_defaults(graph)
    if options.last_logits:
        logits = logits_of(graph)
        keep_last(graph, logits)
        report.warnings.append(f"{', '.join(logits)}: the last step only, [batch, 1, words], as asked for.")
    found = infer_shapes(graph)
    if found.unknown:
        names = ", ".join(found.unknown[:5]) + (", ..." if len(found.unknown) > 5 else "")
        report.warnings.append(f"{len(found.unknown)} values have no known shape: {names}.")
    for conflict in found.conflicts[:5]:
        report.warnings.append(f"The model states a wrong shape for {conflict}; the inferred one counts.")
    if found.failure:
        report.warnings.append(f"Shape inference stopped early ({found.failure}); what it found is used.")
    observed = data.observe(graph)
    if observed:
        report.warnings.append(observed)
    return graph, found


def _freeze(graph: Graph, extents: Mapping[str, int]) -> None:
    for value in graph.inputs:
        if isinstance(value.type, TensorType):
            value.type = value.type.bind(extents)
    for output in graph.outputs_info:
        if isinstance(output.type, TensorType) and output.type.shape is not None:
            shape = tuple(d if d is None else substitute(d, extents) for d in output.type.shape)
            output.type = output.type.with_shape(shape)


def _fix_defaults(graph: Graph) -> None:
    for value, tensor in list(graph.defaults.items()):
        name = value.name
        weight = graph.const(tensor, name)
        value.replace_by(weight)
        graph.erase_input(value)
        weight.name = name


def describe(side: Side, graph: Graph, file_bytes: int, dims: Mapping[str, int], report: Report) -> None:
    """Fill in one side of the report from the graph alone."""
    found = planned_peak(graph, dims)
    side.alive = [{"name": name, "bytes": count} for name, count in found.alive[:_LISTED]]
    side.file_bytes = file_bytes
    side.weight_bytes = weight_bytes(graph)
    side.nodes = count_nodes(graph)
    if found.unknown and not found.peak_bytes:
        return
    side.planned_peak_bytes = side.floor_bytes = found.peak_bytes
    side.curve = Curve(list(found.curve), list(found.labels))
    if found.unknown:
        text = f"{len(found.unknown)} values have no known size at these extents and count as 0 in planned figures."
        if text not in report.warnings:
            report.warnings.append(text)


def predict(side: Side, graph: Graph, dims: Mapping[str, int], form: WritingForm) -> tuple[NeedEstimate, NeedEstimate]:
    """Predict what a model needs in stock onnxruntime and in `Session`; the former goes into the report."""
    # What lies outside of a branch is predicted as if it lay inside: then nothing is gained on paper that is not there.
    how = Configuration(external=bool(form.external), branch=form.name == "branch")
    found = [predict_need(graph, dims, replace(how, session=kind)) for kind in _KINDS]
    side.predicted_need_bytes = found[0].need_bytes
    return found[0], found[1]


def sizes_of(estimates: tuple[NeedEstimate, NeedEstimate]) -> tuple[int, int]:
    """Give the bytes of both."""
    return estimates[0].need_bytes, estimates[1].need_bytes


def recognise_decoder(graph: Graph, report: Report) -> Decoder | None:
    """Say in the report which decoder a graph with inferred types is; where it keeps a cache and is none, why."""
    if not appended_inputs(graph):
        return None
    try:
        decoder = recognise(graph, inferred=True)
    except InputError as error:
        report.decisions.append(Decision("decoder", "not recognised", error.message))
        return None
    report.decoder = str(decoder)
    return decoder


def describe_run(graph: Graph, decoder: Decoder | None) -> dict[str, str]:
    """What the output says of how to run it as a decoder; nothing where the original is none."""
    if decoder is None:
        return {}
    own = recognised(graph)  # passes may have made the attention that updates a cache where it is, or undone it
    return {DECODER: (own or replace(decoder, shared=False)).to_json()}


def plan_control(side: Side, graph: Graph, dims: Mapping[str, int]) -> None:
    """Plan the original, too, so that arenas can be compared."""
    side.plan = allocate(planned(graph, dims).problem)
    side.arena_bytes = side.plan.arena_bytes


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
        return parse(options.passes)
    text = levels.pipeline_text(
        options.level,
        options.target,
        calibrated=calibrated,
        freeze=options.freeze_runtime,
        quantize_io=options.quantize_io,
        device=device_of(options),
        budget=options.memory_budget,
        slowdown=options.max_slowdown,
        accuracy=levels.Accuracy(options.min_sqnr, options.max_accuracy_loss, options.fallback),
    )
    return parse(text)


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
    context = _context(options, data, scratch)
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
        write_reproducer(path, original, steps, failure, lambda: _context(options, data, scratch), named)
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


def _context(options: Options, data: Inputs, scratch: Path) -> Context:
    return Context(
        level=options.level,
        target=options.target,
        dims=data.dims,
        calibration=data.calibration,
        validation=data.validation,
        metric=None if options.metric is None else load_metric(options.metric),
        force=options.force,
        scratch=scratch,
        memo=data.memo,
    )


def provenance(report: Report, plan: Plan | None) -> dict[str, str]:
    """What the output says of where it comes from."""
    options = f"-O{report.options['level']} --target {report.options['target']}"
    return {
        "memoptc.version": __version__,
        "memoptc.options": f"{options} --passes '{report.options['passes']}'",
        "memoptc.source_sha256": report.model["sha256"],
    }


def comparable(source: Source, graph: Graph, written: Path, scratch: Path) -> Path:
    """Give a file that takes and gives what the original does: the written one, or one with the border put back."""
    floating = with_border_of(source.graph, graph)
    if floating is graph:
        return written
    path = scratch / "border.onnx"
    write_into(floating, path)
    return path


def count_kernels(graph: Graph, written: Path, report: Report) -> None:
    """Say which nodes of a quantized candidate onnxruntime runs on integers, and why the others do not."""
    if not has_codes(graph):
        return
    found = integer_run(written)
    if found is None:
        return
    report.kernels = found.to_json()
    kinds = ", ".join(f"{op} {n}" for op, n in found.integer.most_common())
    what = f"{found.integer.total()} nodes run on integers" + (f" ({kinds})" if kinds else "")
    why = f"{found.heavy_float.total()} products and convolutions run in float, {found.weights_only} of them with "
    why += (
        f"weights in codes, and {found.borders} nodes turn floats into codes or back, as onnxruntime optimized it here"
    )
    report.decisions.append(Decision("kernels", what, why))
    for fallback in found.fallbacks[:_LISTED]:
        what = f"{fallback.op} {fallback.name!r} runs in float in spite of its codes"
        report.decisions.append(Decision("kernels", what, fallback.why))
    if len(found.fallbacks) > _LISTED:
        more = f"{len(found.fallbacks) - _LISTED} further nodes run in float in spite of their codes"
        report.decisions.append(Decision("kernels", more, "for the same reasons"))


def verify(source: Source, candidate: Path, options: Options, data: Inputs, report: Report, scratch: Path) -> None:
    """Prove the candidate against the original, in a process of its own; the outcome goes into the report."""
    searched = report.precision is not None  # by all data: a part of it may well be below what all of it is above
    found = _verify(source, candidate, options, data, scratch / "worst.npz", judge(options), every=searched)
    plain = found.to_json()
    plain["bit_exact"] = bool(found.outputs) and all(o.get("bit_exact", o.get("max_abs") == 0) for o in found.outputs)
    plain["worst"] = found.failures[0] if found.failures else ""
    if found.mode == "off":
        plain["passed"] = None
    if plain["inputs"] == "none":
        plain["inputs"] = "random"
    report.verification = plain
    report.warnings.extend(n for n in found.notes if "made-up inputs at" not in n and found.mode != "off")
    if found.accuracy is not None:
        report.accuracy = {"metric": "top-1", **found.accuracy, "samples": int(found.accuracy["samples"])}


def _verify(
    source: Source,
    candidate: Path,
    options: Options,
    data: Inputs,
    worst: Path | None,
    judge: Judge,
    *,
    every: bool,
) -> Verification:
    return verify_models(
        source.control,
        candidate,
        judge,
        mode=options.verify,  # type: ignore[arg-type]
        data=data.raw,
        inputs=data.kind,
        dims=_bound(options),
        point=data.check,
        keep=worst,
        every=every,
        isolate=not (judge.bit_exact and source.file_bytes + _bytes_on_disk(candidate) <= _SMALL),
    )


_SMALL = 8 << 20
"""Bytes of both models up to which an exact compile verifies in this process. It holds both easily, and an exact
compile writes the original's own operators, of which this process runs the constant ones and the whole model for its
contract anyway; starting another process takes longer than the proof."""


def _bytes_on_disk(written: Path) -> int:
    """Bytes of a model that memoptc wrote, with its weights beside it."""
    return sum(file.stat().st_size for file in (written, written.with_name(f"{written.name}.data")) if file.exists())


def judge(options: Options) -> Judge:
    """What is asked of the candidate."""
    changed = options.passes is not None or options.freeze_runtime
    exact = options.level <= EXACT_LEVEL and options.target == "float32" and not changed
    return Judge(bit_exact=exact, target=options.target, max_error=options.max_error)


def _bound(options: Options) -> dict[str, int] | None:
    """Extents that are decided for every run and that neither the control nor the candidate has fixed."""
    return {name: extent for name, extent in options.dims.items() if name not in options.freeze} or None


def _error(graph: Graph, source: Source, data: Inputs, scratch: Path) -> float:
    path = scratch / "check.onnx"
    write_into(with_border_of(source.graph, graph), path)
    found = verify_models(source.control, path, mode="fast", data=data.raw, inputs=data.kind)
    errors = [o["max_abs"] for o in found.outputs if isinstance(o["max_abs"], int | float)]
    return max(errors, default=0.0)


def find_culprit(source: Source, options: Options, data: Inputs, scratch: Path, steps: Pipeline) -> str:
    """Name the pass, and the rewrite, that breaks the numbers; `""` when they cannot be found."""
    path = scratch / "bisect.onnx"
    wanted = judge(options)

    def good(graph: Graph) -> bool:
        write_into(with_border_of(source.graph, graph), path)
        return verify_models(
            source.control,
            path,
            wanted,
            mode="fast",
            data=data.raw,
            inputs=data.kind,
            dims=_bound(options),
            point=data.check,
        ).passed

    start, _ = prepare(source, options, data, Report())
    found = bisect(start, steps, good, lambda: _context(options, data, scratch))
    return "" if found.pass_ is None else str(found)


def choose_form(
    graph: Graph, compiled: Compiled, options: Options, data: Inputs, report: Report, *, measured: bool
) -> forms.Choice:
    """Choose how the graph is written; by measuring where that is on and `measured`, else on paper."""
    measured = measured and options.measure and options.form == "auto"
    feed = compiled.border.encode(data.feed) if measured else None
    choice = forms.choose_form(graph, data.dims, options, frozen=compiled.frozen, feed=feed)
    if choice.decision is not None:
        report.decisions.append(choice.decision)
    return choice


def pack_weights(output: Path, files: list[Path], scratch: Path) -> list[Path]:
    """Write a model anew with packed weights; give its files."""
    packed = scratch / "packed" / output.name
    packed.parent.mkdir()
    data = write_packed(output, packed)
    for file in files:
        file.unlink()
    for file in (packed, data):
        shutil.move(file, output.parent / file.name)
    return [output, output.parent / data.name]


_PATIENT = 1.3
"""Largest ratio of run times that leaving weights unpacked may cost, whatever the compile allows."""


def contract(candidate: Path, compiled: Compiled, options: Options, data: Inputs, report: Report) -> Contract:
    """Say how the candidate is to be run; with `options.measure` what a run allocates is recorded."""
    frugal = replace(FRUGAL, threads=options.jobs or 0)
    if compiled.frozen:
        frugal = replace(frugal, optimize=False, file_order=True)
    side = report.candidate
    peaks = {} if side.planned_peak_bytes is None else {str(FILE_ORDER): side.planned_peak_bytes}
    plain = Contract(frugal, peaks=peaks)
    if not options.measure:
        return plain
    choices = [frugal] if compiled.frozen else [frugal, replace(frugal, file_order=True)]
    try:
        feed = compiled.border.encode(data.feed)
        found = make_contract(
            candidate,
            feed,
            threads=frugal.threads,
            candidates=choices,
            others=lambda: [compiled.border.encode(other) for other in data.larger()],
            slowdown=0.0 if judge(options).bit_exact else min(promised_slowdown(options), _PATIENT),
            isolate=side.file_bytes > _SMALL,
        )
    except InputError as error:
        report.warnings.append(f"What a run allocates could not be recorded: {error.message}")
        return plain
    return replace(found, peaks=peaks | dict(found.peaks))
