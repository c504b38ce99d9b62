"""`memoptc.compile`: read, run the passes, write, prove, measure, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import onnx

from memoptc.attempts import Attempt, Attempts
from memoptc.forms import Choice
from memoptc.gate import check_budget, check_verification, promised_slowdown
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder, refuse_overwriting, staged, stands_alone, written_files
from memoptc.ir.onnx_io import to_proto, write_into
from memoptc.manager import count_nodes
from memoptc.measuring import Bench
from memoptc.option_fields import keywords_after_one, keywords_after_two
from memoptc.options import FileOptions, Options
from memoptc.report import Report, write_report
from memoptc.report.model import Decision
from memoptc.report.write import check_report_path
from memoptc.runtime.contract import Contract, contract_path
from memoptc.runtime.inputs import by_symbol
from memoptc.runtime.memory.plan import Plan
from memoptc.samples import Inputs
from memoptc.source import files_of, load, with_control
from memoptc.steps import describe, prepare, prove, run
from memoptc.takeback import Keeper
from memoptc.untouched import check_target
from memoptc.version import __version__
from memoptc.within import Held, check_process, held, reach


class Result:
    """What a compile gives back.

    Args:
        graph: The compiled model in memoptc's own form.
        report: What was done, measured and proven.
        plan: The planned arena; `None` when sizes are not known or nothing asked for a plan.
        contract: How to run the model in stock onnxruntime, and what was recorded of that.
        kind: What the caller handed in.
        choice: The forms in which it is written.
    """

    def __init__(
        self, graph: Graph, report: Report, plan: Plan | None, contract: Contract, kind: str, choice: Choice
    ) -> None:
        self.graph = graph
        self.report = report
        self.plan = plan
        self.contract = contract
        self._kind = kind
        self._choice = choice
        self.data_file: Path | None = None
        """The file with the weights, where `compile_file` wrote one beside the model."""

    @property
    def verdict(self) -> str:
        """What came out, in one sentence: need, latency, and whether the outputs are those of the original."""
        return self.report.verdict

    @property
    def model(self) -> Any:
        """The compiled model in the form that was handed in; `onnx.ModelProto` for a path.

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
        with staged(path) as inner:
            form = self._choice.inline if stands_alone(path) else self._choice.form
            files = write_into(self.graph, inner, form)
            self.contract.save(contract_path(inner))
        return written_files(path, [*files, contract_path(inner)])


@keywords_after_one(Options)
def compile(model: Any, options: Options) -> Result:
    """Compile a model.

    Args:
        model: Path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`; it stays untouched.
        {options}

    Returns:
        The compiled model, the report and the plan.

    Raises:
        InputError: the model, the data or an option cannot be used.
        GateError: the outputs differ by more than allowed.
        BudgetError: the memory budget is out of reach.
    """
    with TemporaryFolder() as folder:
        return _compile(model, options, Path(folder), Path(folder) / "candidate.onnx")


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
        result = _compile(source, asked, Path(scratch), inner, output)
        worst = result.report.verification.get("worst_sample")
        if worst:
            kept = inner.with_name(f"{inner.stem}.worst.npz")
            shutil.move(worst, kept)
            result.report.verification["worst_sample"] = None if stands_alone(output) else kept.name
        data_file = inner.with_name(f"{inner.name}.data")
        if data_file.exists():
            (result.data_file,) = written_files(output, [data_file])
    for path in report_paths:
        write_report(result.report, path)
    return result


def pipeline_for(options: Options) -> str:
    """Give the pipeline that options stand for in its canonical spelling."""
    return str(run.pipeline(options, options.calibration is not None))


def _compile(model: Any, options: Options, scratch: Path, output: Path, destination: Path | None = None) -> Result:
    start = time.perf_counter()
    options.progress("reading", 0.0)
    source = load(model, scratch)
    refuse_overwriting(destination or output, files_of(source.graph, source.path))
    dims, freeze = (by_symbol(source.graph, names) for names in (options.dims, options.freeze))
    options = replace(options, dims=dims, freeze=freeze)
    report = Report(
        model={
            "path": source.graph.info.source_path,
            "sha256": source.graph.info.source_sha256,
            "opset": source.graph.info.opset_imports.get(""),
            "nodes": count_nodes(source.graph),
        },
        options=options.to_json(),
        environment=describe.environment(options),
    )
    data = Inputs(source, options)
    report.sizes = {
        "planned": dict(data.dims),
        "run": None if data.check is None else dict(data.check),
        "chosen": [] if data.points is None else list(data.points.chosen),
    }
    graph, shapes = prepare.prepare(source, options, data, report)
    source = with_control(source, graph, scratch)
    describe.describe(report.control, graph, source.file_bytes, data.dims, report)
    describe.plan_control(report.control, graph, data.dims)

    decoder = describe.recognise_decoder(graph, report)
    attempts = Attempts(source, options, data, report, output, scratch, decoder)
    attempts.predict_original(graph)
    attempt = attempts.build(run.pipeline(options, data.calibration is not None), (graph, shapes))
    del graph, shapes  # another attempt may take its place

    def predicted(attempt: Attempt) -> Held:
        assert attempt.estimates is not None
        return held(describe.sizes_of(attempt.estimates), options, "predicted")

    def measured(attempt: Attempt) -> Held:
        assert attempt.needs is not None
        return held(attempt.needs.sizes, options, "measured")

    needs = measured
    if options.measure:
        attempt = _measured(attempts, attempt, measured)
    else:
        attempt = reach(attempts, attempt, predicted)
        attempt = _proven(attempts, Keeper(attempts, options).hold_predictions(attempt))
        needs = predicted
    report, graph = attempt.report, attempt.graph
    check_budget(report, graph, options, data.dims)
    if options.budget.process is not None:
        check_process(attempt, needs(attempt), options)
    check_target(report, graph, source.graph, options)
    report.seconds = time.perf_counter() - start
    options.progress("done", 1.0)
    return Result(graph, report, attempt.compiled.plan, attempt.contract, source.kind, attempt.choice)


def _measured(attempts: Attempts, attempt: Attempt, needs: Callable[[Attempt], Held]) -> Attempt:
    """Hold an attempt to what is promised, as measured, and prove it; what makes it worse is taken back."""
    options, data = attempts.options, attempts.data
    options.progress("measuring", 0.62)
    try:
        feed = data.feed
        bench = Bench(attempts.source.path, feed, options.jobs or 0, promised_slowdown(options))
        keeper = Keeper(attempts, options, bench)
        if options.budget.process is not None:

            def of(attempt: Attempt) -> Held:
                keeper.measure_needs(attempt)
                return needs(attempt)

            attempt = reach(attempts, attempt, of)
        attempt = keeper.hold_needs(attempt)
    except InputError:
        _prove(attempts, attempt)  # says more about a model that does not run
        raise
    attempt = _proven(attempts, attempt)
    options.progress("measuring", 0.8)
    attempt = _proven(attempts, keeper.hold_times(attempt))
    bench.fill(attempt.report, attempt.path, attempt.feed(feed), keeper.finish(attempt))
    if options.container:
        bench.fill_containers(attempt.report, attempt.path, attempt.feed(feed), options.progress)
    return attempt


def _proven(attempts: Attempts, attempt: Attempt) -> Attempt:
    """Prove an attempt; as a plain graph where it fails in the form in which it was written.

    onnxruntime only warns of a shape that it infers wrongly, except where a branch gives it: then the run ends.
    """
    if attempt.choice.form.name == "plain" or attempts.options.form != "auto" or attempts.options.force:
        _prove(attempts, attempt)
        return attempt
    _verify(attempts, attempt)
    if attempt.report.verification.get("passed") is False:
        why = f"inside a branch its proof fails: {attempt.report.verification.get('worst')}"
        attempt = attempts.build(attempt.pipeline, plain=True)
        attempt.report.decisions.append(Decision("form", "written as a plain graph", why))
    _prove(attempts, attempt)
    return attempt


def _prove(attempts: Attempts, attempt: Attempt) -> None:
    """Prove an attempt against the original, unless it was."""
    _verify(attempts, attempt)
    source, options, data, scratch = attempts.source, attempts.options, attempts.data, attempts.scratch
    check_verification(
        attempt.report, options, lambda: prove.find_culprit(source, options, data, scratch, attempt.pipeline)
    )


def _verify(attempts: Attempts, attempt: Attempt) -> None:
    """Compare an attempt with the original, unless it was."""
    if attempt.verified:
        return
    source, options, data, scratch = attempts.source, attempts.options, attempts.data, attempts.scratch
    options.progress("verifying", 0.65)
    candidate = prove.comparable(source, attempt.graph, attempt.path, scratch)
    prove.verify(source, candidate, options, data, attempt.report, scratch)
    attempt.verified = True


__all__ = ["Report", "Result", "__version__", "compile", "compile_file", "pipeline_for"]
