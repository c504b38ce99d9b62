"""The form in which a graph is written, packed weights, and the contract of how to run it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from memoptc import forms
from memoptc.compilation import Compilation
from memoptc.ir.batch import Batch, NotSeparableError, separable_batch
from memoptc.ir.diagnostics import InputError
from memoptc.levels import promised_slowdown
from memoptc.packing import decide_packing
from memoptc.report.model import Decision
from memoptc.runtime.configuration import FILE_ORDER
from memoptc.runtime.contract import Contract
from memoptc.runtime.freeze import write_packed
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.memory.formula import run_formula
from memoptc.runtime.options import FRUGAL
from memoptc.steps.describe import Figures
from memoptc.steps.prove import IN_PROCESS_BYTES, judge
from memoptc.steps.run import Compiled


def choose_form(compilation: Compilation, compiled: Compiled, measured: bool) -> forms.Choice:
    """Choose how the graph is written; by measuring where that is on and `measured`, else on paper."""
    options, data = compilation.options, compilation.data
    measured = measured and options.measure and options.form == "auto"
    feed = compiled.interface.encode(data.feed) if measured else None
    return forms.choose_form(compiled.graph, data.dims, options, frozen=compiled.artefacts.frozen, feed=feed)


def choose_packing(compilation: Compilation, compiled: Compiled, choice: forms.Choice) -> Decision | None:
    """Decide if weights are packed ahead; not where onnxruntime's optimizer has run, which writes them itself."""
    if compiled.artefacts.frozen:
        return None
    data = compilation.data
    return decide_packing(compiled.graph, {**data.dims, **(data.check or {})}, compilation.options, choice.form)


def pack_weights(output: Path, files: list[Path], scratch: Path) -> list[Path]:
    """Write a model anew with packed weights; give its files."""
    packed = scratch / "packed" / output.name
    packed.parent.mkdir(exist_ok=True)  # another attempt was packed before
    data = write_packed(output, packed)
    for file in files:
        file.unlink()
    made = [file for file in (packed, data) if file.exists()]  # there is no data where nothing is worth packing
    return [Path(shutil.move(file, output.parent / file.name)) for file in made]


_PATIENT = 1.3
"""Largest ratio of run times that leaving weights unpacked may cost, whatever the compile allows."""


def contract(compilation: Compilation, compiled: Compiled, written: Figures) -> Contract:
    """Say how a candidate is to be run, as far as that needs no run."""
    frugal = replace(FRUGAL, threads=compilation.options.jobs or 0)
    if compiled.artefacts.frozen:
        frugal = replace(frugal, optimize=False, file_order=True)
    peaks = {} if written.planned_peak_bytes is None else {str(FILE_ORDER): written.planned_peak_bytes}
    return Contract(frugal, peaks=peaks)


def recorded_contract(compilation: Compilation, compiled: Compiled, written: Figures) -> tuple[Contract, str]:
    """As `contract`, with what a run allocates; where weights are packed ahead, doing without packing is not tried.

    Returns:
        The contract, and why nothing was recorded; `""` when something was.
    """
    options, data = compilation.options, compilation.data
    frozen, encode = compiled.artefacts.frozen, compiled.interface.encode
    plain = contract(compilation, compiled, written)
    frugal, peaks = plain.options, dict(plain.peaks)
    wanted = judge(options, compiled.changed_passes, compilation.source.graph)
    choices = [frugal] if frozen else [frugal, replace(frugal, file_order=True)]
    keeps = wanted.bit_exact or written.packed or compilation.allowance.is_late("trying without packed weights")
    try:
        found = make_contract(
            written.files[0],
            encode(data.feed),
            threads=frugal.threads,
            candidates=choices,
            timed=lambda: [encode(one) for one in data.timed()],
            slowdown=0.0 if keeps else min(promised_slowdown(options), _PATIENT),
            transposed=compiled.artefacts.transposed,
            isolate=written.file_bytes > IN_PROCESS_BYTES,
            batch=_batch(compiled),
        )
    except InputError as error:
        return plain, f"What a run allocates could not be recorded: {error.message}"
    found = replace(found, run_bytes=run_formula(compiled.graph, data.dims, max(frugal.threads, 1)))
    return replace(found, peaks=peaks | dict(found.peaks)), ""


def _batch(compiled: Compiled) -> Batch | None:
    """The axis of samples that do not depend on each other, where that can be proven."""
    try:
        return separable_batch(compiled.graph)
    except NotSeparableError:
        return None
