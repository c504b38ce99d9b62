"""Proving the candidate against the original, and finding the pass that breaks its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from memoptc.bisect import Culprit, bisect
from memoptc.coded_interface import with_interface_of
from memoptc.compilation import Compilation
from memoptc.ir.core import Graph
from memoptc.ir.onnx_io import write_into
from memoptc.ir.types import DType
from memoptc.options import Options
from memoptc.pass_base import Context, Pass
from memoptc.pipeline import Pipeline
from memoptc.runtime.accuracy import AccuracyTarget, combined
from memoptc.runtime.judge import GATES, Judge
from memoptc.runtime.perplexity import PERPLEXITY
from memoptc.runtime.verification import Verification
from memoptc.runtime.verify import verify as verify_models
from memoptc.steps.prepare import prepare
from memoptc.steps.run import Compiled, bound, context_of

EXACT_LEVEL = 1
"""Up to this level no output bit may change."""


def verify(compilation: Compilation, compiled: Compiled, written: Path) -> Verification:
    """Compare a candidate with the original, in a process of its own where that is worth it.

    Args:
        compilation: With the original.
        compiled: What the passes made.
        written: Its file; one that takes and gives codes is compared with the interface put back.
    """
    source, options, data = compilation.source, compilation.options, compilation.data
    floating = with_interface_of(source.graph, compiled.graph)
    candidate = written if floating is compiled.graph else compilation.scratch / "float_interface.onnx"
    if candidate is not written:
        write_into(floating, candidate)
    wanted = judge(options, compiled.changed_passes, source.graph)
    return verify_models(
        source.control,
        candidate,
        wanted,
        mode=options.verify,  # type: ignore[arg-type]
        data=data.raw,
        inputs=data.kind,
        dims=bound(options),
        point=data.check,
        keep=compilation.scratch / WORST_SAMPLE,
        # A search by all data is proven with all: a part of it may well be below what all of it is above.
        every=compiled.artefacts.precision is not None or wanted.accuracy is not None,
        metric=options.metric if options.metric == PERPLEXITY or wanted.accuracy is not None else None,
        max_loss=options.max_accuracy_loss,
        graph=source.graph if source.control == source.path else None,
        isolate=not (wanted.bit_exact and source.file_bytes + _bytes_on_disk(candidate) <= IN_PROCESS_BYTES),
    )


FREEZING = frozenset({"freeze-runtime"})
"""Passes that write down the kernels that onnxruntime's optimizer chooses."""

WORST_SAMPLE = "worst.npz"
"""File, among those of a compile, with the sample on which outputs differ most."""

IN_PROCESS_BYTES = 64 << 20
"""Bytes of both models up to which an exact compile verifies in this process. It holds both easily, and an exact
compile writes the original's own operators, of which this process runs the constant ones and the whole model for its
contract anyway; starting another process takes longer than the proof."""


def _bytes_on_disk(written: Path) -> int:
    """Bytes of a model that memoptc wrote, with its weights beside it."""
    return sum(file.stat().st_size for file in (written, written.with_name(f"{written.name}.data")) if file.exists())


def judge(options: Options, passes: Iterable[Pass], original: Graph) -> Judge:
    """Judge that the candidate's outputs are held to.

    Args:
        options: The options in force.
        passes: Those that changed the graph.
        original: The graph as it was read.
    """
    passes = tuple(passes)
    accuracy = combined(p.accuracy_target for p in passes if p.accuracy_target is not None)
    wished = options.min_sqnr is not None or options.max_accuracy_loss is not None
    if accuracy is None and wished and options.passes is not None and options.target in GATES:
        accuracy = AccuracyTarget(GATES[options.target].sqnr_db)  # passes that hold to no target of their own
    if accuracy is None and _by_perplexity(options) and options.target in GATES:
        accuracy = AccuracyTarget()
    if accuracy is not None:
        accuracy = _with_wishes(accuracy, options)
    other = options.passes is not None or options.freeze_runtime or accuracy is not None
    exact = options.level <= EXACT_LEVEL and options.target == "float32" and not other
    exact = exact and (options.level == 0 or not _rounds_between(original))
    frozen = any(p.name in FREEZING for p in passes)
    return Judge(exact, options.target, options.max_error, accuracy, frozen)


def _by_perplexity(options: Options) -> bool:
    """True if text decides, and nothing was said of numbers: a gate in decibels stops what is good enough there."""
    return options.metric == PERPLEXITY and options.max_accuracy_loss is not None and options.min_sqnr is None


def _rounds_between(graph: Graph) -> bool:
    """True if a graph computes in half floats.

    Few of onnxruntime's kernels do: it casts to float32 and back around the others, leaves out casts that follow each
    other, and unpacks constant operands ahead. So where it rounds changes as soon as any op goes.
    """
    made = (result for op in graph.walk() if not op.is_const for result in op.results)
    return any(result.dtype in (DType.FLOAT16, DType.BFLOAT16) for result in made)


def _with_wishes(target: AccuracyTarget, options: Options) -> AccuracyTarget:
    """Give a target with the limits that options state, and no finer than the target of coarser numbers."""
    if options.min_sqnr is not None:
        target = replace(target, min_sqnr=options.min_sqnr)
    if options.max_accuracy_loss is not None:
        target = replace(target, max_loss=options.max_accuracy_loss)
    if options.metric == PERPLEXITY:  # which is measured by itself
        target = replace(target, max_loss=None)
    if _by_perplexity(options):
        target = replace(target, min_sqnr=None)
    gate = GATES.get(options.target)
    if gate is not None and options.min_sqnr is None and target.min_sqnr is not None:
        target = replace(target, min_sqnr=min(target.min_sqnr, gate.sqnr_db))
    return target


def rounds_to_codes(graph: Graph) -> bool:
    """True if a model has integers of at most 8 bits: a value between two of them may round to either.

    Constants count, too: onnxruntime fuses a product of weights that are decoded in the graph into one whose kernel
    rounds the other operand, as well.
    """
    values = (result for op in graph.walk() for result in op.results)
    return any(v.dtype is not None and v.dtype in _CODES for v in values)


_CODES = (DType.INT8, DType.UINT8, DType.INT4, DType.UINT4)


def find_culprit(compilation: Compilation, steps: Pipeline, warn: Callable[[str], None] = lambda text: None) -> Culprit:
    """Find the pass, and the rewrite, that breaks the numbers; a culprit without a pass when they cannot be found.

    Args:
        compilation: The compile.
        steps: What runs.
        warn: Told what passes warned of as all of them ran: one that was taken back breaks nothing.
    """
    if compilation.allowance.is_late("the search for the pass that breaks the numbers"):
        return Culprit(None)
    source, options, data = compilation.source, compilation.options, compilation.data
    path = compilation.scratch / "bisect.onnx"
    wanted = judge(options, steps.passes(), source.graph)

    def good(graph: Graph) -> bool:
        write_into(with_interface_of(source.graph, graph), path)
        return verify_models(
            source.control,
            path,
            wanted,
            mode="fast",
            data=data.raw,
            inputs=data.kind,
            dims=bound(options),
            point=data.check,
            every=wanted.accuracy is not None,
            metric=options.metric if options.metric == PERPLEXITY or wanted.accuracy is not None else None,
            max_loss=options.max_accuracy_loss,
        ).passed

    contexts: list[Context] = []

    def fresh() -> Context:
        contexts.append(context_of(compilation))
        return contexts[-1]

    found = bisect(prepare(compilation).graph, steps, good, fresh)
    for text in contexts[0].warnings:
        warn(text)
    return found
