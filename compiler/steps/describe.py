"""What the report and the output say of a model: sizes, predicted need, kernels, decoder, origin."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from memoptc.ir.core import Graph
from memoptc.ir.decoder import KEY as DECODER
from memoptc.ir.decoder import Decoder, appended_inputs, recognise, recognised
from memoptc.ir.diagnostics import InputError
from memoptc.ir.forms import WritingForm
from memoptc.manager import count_nodes, weight_bytes
from memoptc.options import Options
from memoptc.report import Curve, Report, Side
from memoptc.report.model import Decision
from memoptc.runtime.configuration import planned, planned_peak
from memoptc.runtime.integer_kernels import has_codes, integer_run
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.need import Configuration, NeedEstimate, SessionKind, predict_need
from memoptc.runtime.memory.plan import Plan
from memoptc.version import __version__

_LISTED = 12
"""Tensors that a report names at the peak."""

_KINDS: tuple[SessionKind, SessionKind] = ("stock", "arena")


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


def provenance(report: Report, plan: Plan | None) -> dict[str, str]:
    """What the output says of where it comes from."""
    options = f"-O{report.options['level']} --target {report.options['target']}"
    return {
        "memoptc.version": __version__,
        "memoptc.options": f"{options} --passes '{report.options['passes']}'",
        "memoptc.source_sha256": report.model["sha256"],
    }


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
