"""`memoptc.compile`: read, run the passes, write, prove, measure, report."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from memoptc.attempts import Attempt, Attempts
from memoptc.budget_search import search_budget, slowdown_where_slow
from memoptc.compilation import Compilation
from memoptc.digest import digest
from memoptc.file_options import FileOptions
from memoptc.gate import check_budget, check_verification
from memoptc.idle_options import idle_options
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError, ProofError
from memoptc.ir.files import TemporaryFolder, refuse_overwriting, staged, stands_alone, written_files
from memoptc.ir.mapped import detach
from memoptc.ir.onnx_io import to_proto
from memoptc.left_in_float import check_target
from memoptc.levels import SLOWDOWN, promised_slowdown
from memoptc.measuring import Bench, Containers
from memoptc.option_fields import keywords_after_one, keywords_after_two, to_argv
from memoptc.options import Options
from memoptc.packing import write_in_form
from memoptc.process_budget import Held, check_process, held
from memoptc.report import Report, write_report
from memoptc.report.model import Decision
from memoptc.report.write import check_report_path
from memoptc.runtime.contract import Contract, contract_path
from memoptc.runtime.memory.plan import Plan
from memoptc.runtime.verification import Verification
from memoptc.runtime.verify import IN_PART
from memoptc.source import files_of
from memoptc.steps import prepare, prove, run
from memoptc.steps.describe import Figures
from memoptc.steps.reporting import report_of
from memoptc.takeback import Keeper, with_proof
from memoptc.version import __version__


class Result:
    """Result of a compile; it holds after files and folders that the compile worked in are gone.

    Args:
        attempt: The attempt that the compile settled for.
        report: What was done, measured and proven.
        kind: What the caller handed in.
    """

    def __init__(self, attempt: Attempt, report: Report, kind: str) -> None:
        self.graph: Graph = attempt.graph
        """The compiled model in memoptc's own form."""
        self.report = report
        self.figures: Figures = attempt.written
        """What is known of the compiled model on paper: nodes, planned peak, predicted needs."""
        self.decisions: tuple[Decision, ...] = tuple(attempt.decisions)
        """What passes and gates decided, and why."""
        self.plan: Plan | None = attempt.written.plan
        """The planned arena; `None` when sizes are not known or nothing asked for a plan."""
        self.contract: Contract = attempt.contract
        """How to run the model in stock onnxruntime, and what was recorded of that."""
        self.verification: Verification | None = attempt.verification
        """The proof against the original."""
        self.files: list[Path] = []
        """What `compile_file` wrote, reports aside: the model first, its weights, its contract, the worst sample."""
        self._kind = kind
        self._choice = attempt.choice

    @property
    def verdict(self) -> str:
        """The outcome in one sentence: need, latency, and whether the outputs are those of the original."""
        return self.report.verdict

    @property
    def model(self) -> Any:
        """The compiled model in the form that was handed in; `onnx.ModelProto` for a path or bytes.

        Raises:
            InputError: it is larger than one protobuf message can be; use `save`.
        """
        if self._kind == "onnx_ir":
            from memoptc.ir.convert import to_onnx_ir

            return to_onnx_ir(self.graph)
        if self._kind == "onnx_graphsurgeon":
            from memoptc.ir.convert import to_graphsurgeon

            return to_graphsurgeon(self.graph)
        proto: onnx.ModelProto = to_proto(self.graph, self._choice.inline)
        return proto

    def save(self, path: str | Path) -> list[Path]:
        """Write the model, its session contract, and its weights beside it where they are large; whole or not at all.

        Returns:
            The files written.
        """
        path = Path(path)
        with staged(path) as inner, TemporaryFolder() as scratch:
            form = self._choice.inline if stands_alone(path) else self._choice.form
            files = write_in_form(self.graph, inner, form, Path(scratch))
            self.contract.save(contract_path(inner))
        return written_files(path, [*files, contract_path(inner)])


@keywords_after_one(Options)
def compile(model: Any, options: Options) -> Result:
    """Compile a model.

    Args:
        model: Path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`; it stays untouched.
        {options}

    Returns:
        The compiled model, the report and the plan.

    Raises:
        InputError: the model, the data or an option cannot be used.
        GateError: the outputs differ by more than allowed.
        BudgetError: the memory budget is out of reach.
    """
    with TemporaryFolder() as folder:
        result = _compile(model, options, Path(folder), Path(folder) / "candidate.onnx")
        detach(result.graph)
        return result


@keywords_after_two(FileOptions)
def compile_file(source: str | Path, output: str | Path, options: FileOptions) -> Result:
    """Compile one file into another; neither output nor reports appear unless everything went well.

    Args:
        source: The model.
        output: Where to write; with external weights, `OUTPUT.data` appears beside it.
        {options}

    Raises:
        MemoptcError: as `compile`; InputError also when a file cannot be written.
    """
    source, output = Path(source), Path(output)
    asked = Options(**{f.name: getattr(options, f.name) for f in fields(Options)})
    if stands_alone(output) and asked.external == "auto":
        asked = replace(asked, external="never")
    report_paths = [check_report_path(p) for p in options.reports]
    refuse_overwriting(output, [source])
    with TemporaryFolder() as scratch, staged(output) as inner:
        kept = worst_sample_path(inner)
        try:
            result = _compile(source, asked, Path(scratch), inner, output)
        except ProofError as error:
            raise _keep_failure(error, Path(scratch), output) from None
        proof = result.verification
        if proof is not None and proof.worst_sample and (options.keep_worst or proof.failed):
            shutil.move(proof.worst_sample, kept)
        beside = (inner.with_name(f"{inner.name}.data"), contract_path(inner), kept)
        made = [inner, *(file for file in beside if file.exists())]
        artefacts = [_artefact(file) for file in made]
        result.report.verification["worst_sample"] = kept.name if kept.exists() else None
        result.files = written_files(output, made)
    result.report.artefacts = artefacts
    if options.config is not None:
        result.report.options["config"] = str(options.config)
    result.report.command = shlex.join(["memoptc", str(source), "-o", str(output), *to_argv(options)])
    for path in report_paths:
        write_report(result.report, path)
    return result


def worst_sample_path(model: Path) -> Path:
    """Give the file that keeps the sample on which a compiled model differs most."""
    return model.with_name(f"{model.stem}.worst.npz")


def _artefact(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": digest([file])}


def _keep_failure(error: ProofError, scratch: Path, output: Path) -> ProofError:
    """Keep the sample on which a proof failed, and add to the error where it is."""
    sample = scratch / prove.WORST_SAMPLE
    if not sample.exists() or stands_alone(output):
        return error
    path = worst_sample_path(output)
    with staged(path) as inner:
        shutil.move(sample, inner)
    return ProofError(error.message, hint=f"{error.hint} The sample that differs most is in {path}.")


def pipeline_for(options: Options) -> str:
    """Give the pipeline that options stand for in its canonical spelling."""
    return str(run.pipeline(options, options.calibration is not None))


def _compile(model: Any, options: Options, scratch: Path, output: Path, destination: Path | None = None) -> Result:
    start = time.perf_counter()
    options.progress("reading", 0.0)
    compilation = Compilation.of(model, options, scratch)
    source, data, options = compilation.source, compilation.data, compilation.options
    refuse_overwriting(destination or output, files_of(source.graph, source.path))
    prepared = prepare.prepare(compilation)
    compilation = compilation.with_control(prepared.graph)
    attempts = Attempts.at(compilation, prepared, output)
    steps = run.pipeline_of(compilation, options)
    attempts.warnings += idle_options(options, steps)
    attempt = attempts.build(steps, prepared)
    del prepared  # another attempt may take its place
    attempt = Keeper(attempts).hold_small(attempt)

    bench: Bench | None = None
    if options.measure:
        attempt, bench = _measured(attempts, attempt)
        if options.budget.process is not None:
            check_process(attempt, _measured_needs(attempt, bench, options), options, data)
    else:
        attempt = search_budget(attempts, attempt, lambda a: held(a.written.sizes, options, "predicted"))
        attempt = _held_and_proven(attempts, Keeper(attempts).hold_predictions, attempt)
        check_process(attempt, held(attempt.written.sizes, options, "predicted"), options, data)
    check_budget(attempt, options, data.dims)
    check_target(attempt, compilation)
    report = report_of(compilation, attempts, attempt)
    if bench is not None:
        assert attempt.times is not None
        feed = attempt.compiled.interface.encode(data.feed)
        containers = Containers()
        if options.container:
            containers = bench.containers(attempt.path, feed, attempt.times, options.progress)
        bench.fill(report, attempt.path, feed, attempt.times, containers)
    report.warnings += filter(None, [compilation.allowance.warning])
    report.seconds = time.perf_counter() - start
    options.progress("done", 1.0)
    return Result(attempt, report, source.kind)


def _measured(attempts: Attempts, attempt: Attempt) -> tuple[Attempt, Bench]:
    """Hold an attempt to what is promised, as measured, and prove it; what makes it worse is taken back."""
    compilation = attempts.compilation
    options = compilation.options
    options.progress("measuring", 0.62)
    try:
        data = compilation.data
        bench = Bench(compilation.source.path, data.feed, options.jobs or 0, promised_slowdown(options), data.step)
        bench.late = compilation.allowance.is_late
        keeper = Keeper(attempts, bench)
        if options.budget.process is not None:

            def measured(attempt: Attempt) -> Held:
                keeper.measure_needs(attempt)
                return _measured_needs(attempt, bench, options)

            def slow(attempt: Attempt, way: str) -> float | None:
                bound = SLOWDOWN.get(options.level, SLOWDOWN[2])
                return slowdown_where_slow(attempt, way, bench.held_to(bound))

            attempt = search_budget(attempts, attempt, measured, slow)
        attempt = keeper.hold_needs(attempt)
    except InputError:
        _prove(attempts, attempt)  # says more about a model that does not run
        raise
    attempt = keeper.hold_needs(_proven(attempts, attempt))
    options.progress("measuring", 0.8)
    attempt = _held_and_proven(attempts, lambda a: keeper.hold_times(keeper.hold_needs(a)), attempt)
    keeper.finish(attempt)
    return attempt, bench


def _held_and_proven(attempts: Attempts, hold: Callable[[Attempt], Attempt], attempt: Attempt) -> Attempt:
    """Hold an attempt to what is promised, and prove it; what the proof changes is held to it, too, once."""
    held_to = hold(attempt)
    proven = _proven(attempts, held_to)
    return proven if proven is held_to else _proven(attempts, hold(proven))


def _measured_needs(attempt: Attempt, bench: Bench, options: Options) -> Held:
    """The measured need of an attempt, to hold against a budget: near to it the most of several processes."""
    assert attempt.needs is not None
    budget = options.budget.process
    assert budget is not None
    if attempt.largest is None:
        feed = attempt.compiled.interface.encode(bench.feed)
        attempt.largest = bench.largest(attempt.path, feed, attempt.needs, budget)
    return held(attempt.largest, options, "measured")


def _proven(attempts: Attempts, attempt: Attempt) -> Attempt:
    """Prove an attempt; as a plain graph, then with weaker passes, where it fails in the form in which it was written.

    onnxruntime only warns of a shape that it infers wrongly, except where a branch gives it: then the run ends.
    """
    options = attempts.compilation.options
    if options.force:
        _prove(attempts, attempt)
        return attempt
    found = _verify(attempts, attempt)
    if found.failed and attempt.choice.form.name != "plain" and options.form == "auto":
        why = f"inside a branch its proof fails: {found.worst}"
        attempt = attempts.build(attempt.pipeline, form="plain")
        attempt.decisions.append(Decision("form", "written as a plain graph", why))
    compilation = attempts.compilation
    find = partial(prove.find_culprit, compilation) if prove.rounds_to_codes(compilation.source.graph) else None
    attempt = with_proof(attempts, attempt, lambda a: _verify(attempts, a), find)
    _prove(attempts, attempt)
    return attempt


def _prove(attempts: Attempts, attempt: Attempt) -> None:
    """Prove an attempt against the original, unless it was."""
    compilation = attempts.compilation
    _verify(attempts, attempt)
    check_verification(attempt, compilation.options, lambda: prove.find_culprit(compilation, attempt.pipeline))


def _verify(attempts: Attempts, attempt: Attempt) -> Verification:
    """Compare an attempt with the original, unless it was."""
    if attempt.verification is None:
        attempts.compilation.options.progress("verifying", 0.65)
        found = attempt.verification = prove.verify(attempts.compilation, attempt.compiled, attempt.path)
        notes = found.notes if found.mode != "off" else ()
        attempt.warnings += [n for n in notes if "made-up inputs at" not in n and n != IN_PART]
    return attempt.verification


__all__ = ["Report", "Result", "__version__", "compile", "compile_file", "pipeline_for"]
