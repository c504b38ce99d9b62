"""Attempts of a compile: a pipeline, the graph it makes, its files, contract, measurements and proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from memoptc.allowance import Allowance
from memoptc.compilation import Compilation
from memoptc.forms import Choice
from memoptc.ir.core import Graph
from memoptc.ir.decoder import DecoderFacts
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.form_names import FormName
from memoptc.ir.forms import WritingForm
from memoptc.measuring import Needs, Sizes, Times
from memoptc.packing import write_in_form
from memoptc.pass_base import Pass
from memoptc.pipeline import Pipeline
from memoptc.report.model import Decision
from memoptc.runtime.contract import Contract, contract_path
from memoptc.runtime.integer_kernels import IntegerRun
from memoptc.runtime.verification import Verification
from memoptc.snapshots import Snapshots
from memoptc.steps import describe, prepare, run, write


@dataclass(frozen=True)
class Edit:
    """Changes to the pipeline of an attempt.

    Args:
        dropped: Positions of passes that are left out.
        replaced: Passes in place of others, by position.
        form: The form to write the graph in, instead of choosing it.
    """

    dropped: frozenset[int] = frozenset()
    replaced: Mapping[int, Pass] = field(default_factory=dict)
    form: FormName | None = None


@dataclass
class Attempt:
    """Result of one pipeline, written to the output's path.

    Args:
        compiled: What the passes made.
        written: Its files, and what is known of it on paper.
        choice: The forms in which it is written.
        contract: How to run it; what a run allocates is in it once `Attempts.record` was called.
        kernels: Which of its nodes onnxruntime runs on integers, where it has codes.
        warnings: What the user must know of it.
        decisions: What was done, and why.
        needs: What it needs, where that was measured.
        largest: What it needs at most in several processes, where that was measured for a budget.
        times: How fast it is, where that was measured.
        predicted: What it is predicted to need; `None` where sizes are unknown that are known of the original.
        at_small: The same at the smallest extents to expect.
        verification: Its proof against the original, where that was made.
        edit: How its pipeline differs from the first one.
        taken_back: What was taken back to make it, and the sentences that say so.
        recorded: Whether its contract was recorded.
        content: Key that attempts share which are written alike, whatever their pipelines: one measurement says all.
    """

    compiled: run.Compiled
    written: describe.Figures
    choice: Choice
    contract: Contract
    kernels: IntegerRun | None
    warnings: list[str]
    decisions: list[Decision]
    needs: Needs | None = None
    largest: Sizes | None = None
    times: Times | None = None
    predicted: Sizes | None = None
    at_small: Sizes | None = None
    verification: Verification | None = None
    edit: Edit | None = None
    taken_back: tuple[list[Decision], list[str]] = field(default_factory=lambda: ([], []))
    recorded: bool = False
    content: str = ""

    @property
    def graph(self) -> Graph:
        """The graph that the passes made."""
        return self.compiled.graph

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that ran."""
        return self.compiled.pipeline

    @property
    def path(self) -> Path:
        """The file."""
        return self.written.files[0]


@dataclass
class Attempts:
    """Makes attempts at one compile; each takes the place of the one before, on disk too.

    Args:
        compilation: The compile.
        original: What is known of the original on paper.
        output: Where to write.
        decoder: What is known of the original as a decoder, if it is one.
        warnings: What the user must know whatever the passes do.
        decisions: What was decided before them.
        at_small: What the original is predicted to need at the smallest extents to expect; `None` where these are not
            known, or those that the model is measured at.
        allowance: The time of the compile.
    """

    compilation: Compilation
    original: describe.Figures
    output: Path
    decoder: DecoderFacts | None
    warnings: list[str]
    decisions: list[Decision]
    at_small: Sizes | None = None
    allowance: Allowance = field(default_factory=Allowance)
    _files: list[Path] = field(default_factory=list)
    _last: Attempt | None = None
    _snapshots: Snapshots = field(default_factory=Snapshots)

    @staticmethod
    def at(compilation: Compilation, prepared: prepare.Prepared, output: Path) -> Attempts:
        """Say what is known of the original before any pass.

        Args:
            compilation: The compile.
            prepared: The graph that passes will start from.
            output: Where to write.
        """
        original = describe.figures_of_original(compilation, prepared.graph)
        warnings = [*prepared.warnings, *compilation.data.warnings, *([original.warning] if original.warning else [])]
        decoder = describe.recognise_decoder(prepared.graph)
        known, decisions = (None, [decoder]) if isinstance(decoder, Decision) else (decoder, [])
        found = Attempts(compilation, original, output, known, warnings, decisions)
        found.allowance = compilation.allowance
        found.at_small = found._at_small(prepared.graph, WritingForm("plain", len(original.files) > 1))
        return found

    def _at_small(self, graph: Graph, form: WritingForm) -> Sizes | None:
        """Predict a need at the smallest extents to expect."""
        small = self.compilation.data.small
        if small is None or self.compilation.options.level < 1:
            return None
        stock, session = describe.predict(graph, describe.Planning(small, form))
        return None if stock.unknown else (stock.need_bytes, session.need_bytes)

    def build(
        self, pipeline: Pipeline, prepared: prepare.Prepared | None = None, *, form: FormName | None = None
    ) -> Attempt:
        """Run a pipeline and write what comes out.

        Args:
            pipeline: What to run.
            prepared: The original as `prepare.prepare` leaves it; prepared anew when not given.
            form: The form to write the graph in, instead of choosing it.

        Raises:
            MemoptcError: as the passes and the writer.
        """
        with self.allowance.building():
            return self._build(pipeline, prepared, form)

    def _build(self, pipeline: Pipeline, prepared: prepare.Prepared | None, form: FormName | None) -> Attempt:
        compilation = self.compilation
        if form is not None:
            compilation = replace(compilation, options=replace(compilation.options, form=form))
        options, data = compilation.options, compilation.data
        if self._last is not None:
            self._last.compiled.graph = Graph("released")  # but for snapshots of earlier programs
        compiled = run.run_passes(compilation, pipeline, run.Start(prepared, self._snapshots))
        graph = compiled.graph
        graph.info.metadata.update(describe.provenance(compilation, pipeline))
        graph.info.metadata.update(describe.describe_run(graph, self.decoder))
        options.progress("writing", 0.6)
        for file in self._files:
            file.unlink(missing_ok=True)
        # Measured once: what later attempts take back changes need, hardly what the forms make of it.
        first = self._last is None and not self.allowance.is_late("measuring forms")
        choice = write.choose_form(compilation, compiled, first)
        choice, packing, files = self._write(compiled, choice)
        if options.pack_weights and compiled.artefacts.frozen:
            files = write.pack_weights(self.output, files, compilation.scratch)
        self._files = files
        how = describe.Planning(data.dims, choice.form, compiled.artefacts.plan, recorded=options.measure)
        written = describe.figures(graph, [self.output, *(f for f in files if f != self.output)], how)
        kernels = describe.kernels_of(graph, self.output)
        contract = write.contract(compilation, compiled, written)
        contract.save(contract_path(self.output))
        warnings = [*self.warnings, *compiled.warnings]
        warnings += [w for w in (written.warning,) if w and w not in warnings]
        decisions = [*self.decisions, *compiled.decisions]
        decisions += [d for d in (choice.decision, packing) if d is not None]
        decisions += [] if kernels is None else describe.kernel_decisions(kernels)
        self._last = Attempt(compiled, written, choice, contract, kernels, warnings, decisions)
        fewer = len(written.estimates[0].unknown) < len(self.original.estimates[0].unknown)
        self._last.predicted = None if fewer else written.sizes
        self._last.at_small = None if self.at_small is None else self._at_small(graph, choice.form)
        self._last.content = describe.content_key(graph, choice.form)
        return self._last

    def _write(self, compiled: run.Compiled, choice: Choice) -> tuple[Choice, Decision | None, list[Path]]:
        """Write a graph; give the choice with what became of packing, its decision, and the files."""
        scratch, unpacked = self.compilation.scratch, choice
        packing = write.choose_packing(self.compilation, compiled, choice)
        choice = replace(choice, form=replace(choice.form, packed=packing is not None))
        try:
            return choice, packing, write_in_form(compiled.graph, self.output, choice.form, scratch)
        except MemoptcError as error:
            if packing is None or self.compilation.options.pack_weights:
                raise
            packing = Decision("packing", "weights are not packed ahead", error.message)
            return unpacked, packing, write_in_form(compiled.graph, self.output, unpacked.form, scratch)

    def record(self, attempt: Attempt) -> None:
        """Record what a run of the last attempt allocates, unless it was: what measures it runs it by that."""
        if attempt.recorded:
            return
        attempt.contract, unrecorded = write.recorded_contract(self.compilation, attempt.compiled, attempt.written)
        attempt.contract.save(contract_path(attempt.path))
        attempt.recorded = True
        if unrecorded and unrecorded not in attempt.warnings:
            attempt.warnings.append(unrecorded)
