"""One compile may take several attempts: a pipeline, the graph it makes, the files, the contract, its own report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memoptc.forms import Choice
from memoptc.ir.core import Graph
from memoptc.ir.decoder_facts import Decoder
from memoptc.ir.forms import WritingForm
from memoptc.ir.infer import Inference
from memoptc.ir.onnx_io import write_into
from memoptc.measuring import Needs, Sizes, Times
from memoptc.options import Options
from memoptc.pipeline import Pipeline
from memoptc.report import Report, Side
from memoptc.runtime.contract import Contract, contract_path
from memoptc.runtime.memory.need import NeedEstimate
from memoptc.samples import Inputs
from memoptc.source import Source, files_of
from memoptc.steps import describe, prepare, run, write


@dataclass
class Attempt:
    """What one pipeline gave, written to the output's place.

    Args:
        pipeline: What ran.
        graph: The graph.
        compiled: What the passes left beside it.
        contract: How to run it.
        path: Where it is written.
        report: The report of the compile, with what this attempt did.
        choice: The forms in which it is written.
        needs: What it needs, where that was measured.
        times: How fast it is, where that was measured.
        predicted: What it is predicted to need; `None` where sizes are unknown that are known of the original.
        estimates: Its parts, in stock onnxruntime and in `Session`, as far as they are known.
        verified: Whether it was proven against the original.
        edit: How its pipeline differs from the first one.
    """

    pipeline: Pipeline
    graph: Graph
    compiled: run.Compiled
    contract: Contract
    path: Path
    report: Report
    choice: Choice
    needs: Needs | None = None
    times: Times | None = None
    predicted: Sizes | None = None
    estimates: tuple[NeedEstimate, NeedEstimate] | None = None
    verified: bool = False
    edit: Any = None

    @property
    def feed(self) -> Any:
        """Encodes inputs of the original as this model takes them."""
        return self.compiled.border.encode


@dataclass
class Attempts:
    """Makes attempts at one compile; each takes the place of the one before, on disk too.

    Args:
        source: The original.
        options: The options in force.
        data: The data of this compile.
        base: The report before any pass; each attempt continues a copy.
        output: Where to write.
        scratch: A folder for temporary files.
        decoder: What is known of the original as a decoder, if it is one.
        predicted: What the original is predicted to need.
    """

    source: Source
    options: Options
    data: Inputs
    base: Report
    output: Path
    scratch: Path
    decoder: Decoder | None = None
    predicted: Sizes | None = None
    _unknown: int = 0
    _files: list[Path] = field(default_factory=list)
    _last: Attempt | None = None

    def predict_original(self, graph: Graph) -> None:
        """Predict what the original needs, from the graph that no pass has changed."""
        external = len(files_of(self.source.graph, self.source.path)) > 1
        form = WritingForm("plain", external)
        estimate = describe.predict(self.base.control, graph, self.data.dims, form)
        self.predicted, self._unknown = describe.sizes_of(estimate), len(estimate[0].unknown)

    def build(
        self, pipeline: Pipeline, prepared: tuple[Graph, Inference] | None = None, *, plain: bool = False
    ) -> Attempt:
        """Run a pipeline and write what comes out.

        Args:
            pipeline: What to run.
            prepared: The original as `prepare.prepare` leaves it; prepared anew when not given.
            plain: Write it as a plain graph, instead of choosing the form.

        Raises:
            MemoptcError: as the passes and the writer.
        """
        options, data, scratch = self.options, self.data, self.scratch
        options = replace(options, form="plain") if plain else options
        if self._last is not None:
            self._last.graph = Graph("released")  # one graph at a time is in memory
        graph, shapes = prepared or prepare.prepare(self.source, options, data, Report())
        report = _continued(self.base)
        compiled = run.run_passes(graph, shapes, self.source, options, data, report, scratch, pipeline)
        graph.info.metadata.update(describe.provenance(report, compiled.plan))
        graph.info.metadata.update(describe.describe_run(graph, self.decoder))
        options.progress("writing", 0.6)
        for file in self._files:
            file.unlink(missing_ok=True)
        # Measured once: what later attempts take back changes need, hardly what the forms make of it.
        choice = write.choose_form(graph, compiled, options, data, report, measured=self._last is None)
        files = write_into(graph, self.output, choice.form)
        if options.pack_weights:
            files = write.pack_weights(self.output, files, scratch)
        self._files = files
        describe.describe(report.candidate, graph, sum(f.stat().st_size for f in files), data.dims, report)
        if compiled.plan is not None:
            report.candidate.plan = compiled.plan
            report.candidate.arena_bytes = compiled.plan.arena_bytes
        describe.count_kernels(graph, self.output, report)
        contract = write.contract(self.output, compiled, options, data, report)
        contract.save(contract_path(self.output))
        estimate = describe.predict(report.candidate, graph, data.dims, choice.form)
        self._last = Attempt(pipeline, graph, compiled, contract, self.output, report, choice)
        self._last.estimates = estimate
        self._last.predicted = None if len(estimate[0].unknown) < self._unknown else describe.sizes_of(estimate)
        return self._last


def _continued(base: Report) -> Report:
    """A report that goes on from another one and leaves it as it is."""
    options: Mapping[str, Any] = dict(base.options)
    return replace(
        base,
        options=dict(options),
        candidate=Side(),
        passes=[],
        verification={},
        decisions=list(base.decisions),
        warnings=list(base.warnings),
    )
