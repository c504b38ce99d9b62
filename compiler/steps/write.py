"""The form in which a graph is written, packed weights, and the contract of how to run it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from memoptc import forms
from memoptc.gate import promised_slowdown
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.options import Options
from memoptc.report import Report
from memoptc.runtime.configuration import FILE_ORDER
from memoptc.runtime.contract import Contract
from memoptc.runtime.freeze import write_packed
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.options import FRUGAL
from memoptc.samples import Inputs
from memoptc.steps.prove import IN_PROCESS_BYTES, judge
from memoptc.steps.run import Compiled


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
            isolate=side.file_bytes > IN_PROCESS_BYTES,
        )
    except InputError as error:
        report.warnings.append(f"What a run allocates could not be recorded: {error.message}")
        return plain
    return replace(found, peaks=peaks | dict(found.peaks))
