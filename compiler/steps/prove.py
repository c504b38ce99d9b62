"""Proving the candidate against the original, and finding the pass that breaks its numbers."""

from __future__ import annotations

from pathlib import Path

from memoptc.bisect import bisect
from memoptc.border import with_border_of
from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import write_into
from memoptc.options import Options
from memoptc.pipeline import Pipeline
from memoptc.report import Report
from memoptc.runtime.judge import Judge
from memoptc.runtime.perplexity import PERPLEXITY
from memoptc.runtime.verify import Verification
from memoptc.runtime.verify import verify as verify_models
from memoptc.samples import Inputs
from memoptc.source import Source
from memoptc.steps.prepare import prepare
from memoptc.steps.run import context_of

EXACT_LEVEL = 1
"""Up to this level no output bit may change."""


def comparable(source: Source, graph: Graph, written: Path, scratch: Path) -> Path:
    """Give a file that takes and gives what the original does: the written one, or one with the border put back."""
    floating = with_border_of(source.graph, graph)
    if floating is graph:
        return written
    path = scratch / "border.onnx"
    write_into(floating, path)
    return path


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
        metric=options.metric if options.metric == PERPLEXITY else None,
        max_loss=options.max_accuracy_loss,
        isolate=not (judge.bit_exact and source.file_bytes + _bytes_on_disk(candidate) <= IN_PROCESS_BYTES),
    )


IN_PROCESS_BYTES = 8 << 20
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
    found = bisect(start, steps, good, lambda: context_of(options, data, scratch))
    return "" if found.pass_ is None else str(found)
