"""Figures of a model for the report: sizes, predicted need, kernels, decoder, origin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from memoptc.compilation import Compilation
from memoptc.ir.core import Graph
from memoptc.ir.decoder import KEY as DECODER
from memoptc.ir.decoder import DecoderFacts, appended_inputs, recognise, recognised
from memoptc.ir.diagnostics import InputError
from memoptc.ir.forms import WritingForm
from memoptc.ir.printer import print_graph
from memoptc.manager import count_nodes, weight_bytes
from memoptc.pipeline import Pipeline
from memoptc.report import Curve, Side
from memoptc.report.model import Decision
from memoptc.runtime.configuration import planned, planned_peak
from memoptc.runtime.integer_kernels import IntegerRun, has_codes, integer_run
from memoptc.runtime.measured_contract import PLANNED_BYTES, tier_of
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.liveness import PeakReport
from memoptc.runtime.memory.need import Configuration, NeedEstimate, SessionKind, predict_need
from memoptc.runtime.memory.plan import Plan
from memoptc.source import files_of
from memoptc.version import __version__

_LISTED = 12
"""Tensors that a report names at the peak."""

_KINDS: tuple[SessionKind, SessionKind] = ("stock", "arena")


@dataclass
class Figures:
    """Figures of a model that need no run.

    Args:
        files: Its files; the model itself first.
        nodes: How many it has.
        weight_bytes: Bytes of weights, as stored.
        peak: The most bytes alive at once, and what they are.
        plan: The planned arena, where one was made.
        estimates: What it is predicted to need in stock onnxruntime and in `Session`.
        packed: Whether its weights are packed ahead.
    """

    files: list[Path]
    nodes: int
    weight_bytes: int
    peak: PeakReport
    plan: Plan | None
    estimates: tuple[NeedEstimate, NeedEstimate]
    packed: bool

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return sum(f.stat().st_size for f in self.files)

    @property
    def planned_peak_bytes(self) -> int | None:
        """The most bytes alive at once; `None` where no size is known."""
        return None if self.peak.unknown and not self.peak.peak_bytes else self.peak.peak_bytes

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes that it is predicted to need in stock onnxruntime and in `Session`."""
        return self.estimates[0].need_bytes, self.estimates[1].need_bytes

    @property
    def warning(self) -> str:
        """Warning to readers of the planned figures; empty where the figures hold."""
        if not self.peak.unknown or not self.peak.peak_bytes:
            return ""
        return f"{len(self.peak.unknown)} values have no known size at these extents and count as 0 in planned figures."

    def side(self) -> Side:
        """Give this side of the report."""
        side = Side(
            file_bytes=self.file_bytes,
            weight_bytes=self.weight_bytes,
            nodes=self.nodes,
            predicted_need_bytes=self.sizes[0],
            alive=[{"name": name, "bytes": count} for name, count in self.peak.alive[:_LISTED]],
            plan=self.plan,
            arena_bytes=None if self.plan is None else self.plan.arena_bytes,
        )
        if self.planned_peak_bytes is not None:
            side.planned_peak_bytes = side.floor_bytes = self.planned_peak_bytes
            side.curve = Curve(list(self.peak.curve), list(self.peak.labels))
        return side


def figures(graph: Graph, files: list[Path], how: Planning) -> Figures:
    """Work out what is known of a model on paper.

    Args:
        graph: The model.
        files: Where it is written; the model itself first.
        how: Extents, form and plan.
    """
    return Figures(
        files,
        count_nodes(graph),
        weight_bytes(graph, shared=len(files) > 1),
        planned_peak(graph, how.dims),
        how.plan,
        predict(graph, how),
        how.form.packed,
    )


@dataclass(frozen=True)
class Planning:
    """Extents and configuration that figures depend on besides the graph.

    Args:
        dims: Extents to plan with.
        form: How the graph is written.
        plan: The arena that was planned, if one was.
        recorded: Whether a contract is made from recorded runs: then `Session` runs in the tier that it names, with an
            arena of its size. Without, it is an arena that grows by what is asked for.
    """

    dims: Mapping[str, int]
    form: WritingForm
    plan: Plan | None = None
    recorded: bool = False


def predict(graph: Graph, planning: Planning) -> tuple[NeedEstimate, NeedEstimate]:
    """Predict what a model needs in stock onnxruntime and in `Session`.

    Args:
        graph: The model.
        planning: Extents and form; no plan is looked at.
    """
    dims, form, recorded = planning.dims, planning.form, planning.recorded
    # What lies outside of a branch is predicted as if it lay inside: then nothing is gained on paper that is not there.
    branch, shapeless = form.name != "plain", form.name == "shapeless"
    how = Configuration(external=bool(form.external), branch=branch, shapeless=shapeless, packed=form.packed)
    stock, arena = (predict_need(graph, dims, replace(how, session=kind, sized=recorded)) for kind in _KINDS)
    if not recorded:
        return stock, arena
    planned = predict_need(graph, dims, replace(how, session="planned"))
    tier = tier_of(arena.need_bytes, planned.need_bytes, PLANNED_BYTES)
    return stock, planned if tier == "planned" else arena


def figures_of_original(compilation: Compilation, graph: Graph) -> Figures:
    """Work out what is known of the original, from the graph that no pass has changed."""
    files = files_of(compilation.source.graph, compilation.source.path)
    dims = compilation.data.dims
    plan = allocate(planned(graph, dims).problem)
    return figures(graph, files, Planning(dims, WritingForm("plain", len(files) > 1), plan))


def recognise_decoder(graph: Graph) -> DecoderFacts | Decision | None:
    """Recognise the decoder that a graph with inferred types is; where it keeps a cache and is none, say why."""
    if not appended_inputs(graph):
        return recognised(graph, inferred=True)
    try:
        return recognise(graph, inferred=True)
    except InputError as error:
        return Decision("decoder", "not recognised", error.message)


def describe_run(graph: Graph, decoder: DecoderFacts | None) -> dict[str, str]:
    """Metadata by which the output can be run as a decoder; none where the original is no decoder."""
    if decoder is None:
        return {}
    own = recognised(graph)  # passes may have made the attention that updates a cache where it is, or undone it
    described = own or replace(decoder, shared=False, caches=tuple(replace(c, reuses="") for c in decoder.caches))
    given_back = {c.past: c.present for c in decoder.encoder}  # a fused branch no longer shows what it computes it for
    caches = tuple(
        replace(c, present=c.present or given_back.get(c.past, "")) if c.form == "read" else c for c in described.caches
    )
    return {DECODER: replace(described, caches=caches, shared_positions=decoder.shared_positions).to_json()}


def provenance(compilation: Compilation, pipeline: Pipeline) -> dict[str, str]:
    """Metadata that says where the output comes from: version, options, digest of the source."""
    options = compilation.options
    return {
        "memoptc.version": __version__,
        "memoptc.options": f"-O{options.level} --target {options.target} --passes '{pipeline}'",
        "memoptc.source_sha256": compilation.source.graph.info.source_sha256,
    }


def content_key(graph: Graph, form: WritingForm) -> str:
    """Give a key that graphs of one compile share if they are the same, however they came about.

    What large weights contain is not looked at, nor how values are called: neither need nor latency depends on it.
    """
    text = print_graph(graph, weights="elide", notes=False, names=False)
    return hashlib.sha256(f"{form}\n{text}".encode()).hexdigest()


def kernels_of(graph: Graph, written: Path) -> IntegerRun | None:
    """Find out which nodes of a quantized candidate onnxruntime runs on integers; nothing where none has codes."""
    return integer_run(written) if has_codes(graph) else None


def kernel_decisions(found: IntegerRun) -> list[Decision]:
    """Say which nodes onnxruntime runs on integers, and why the others do not."""
    kinds = ", ".join(f"{op} {n}" for op, n in found.integer.most_common())
    what = f"{found.integer.total()} nodes run on integers" + (f" ({kinds})" if kinds else "")
    why = f"{found.heavy_float.total()} products and convolutions run in float, {found.weights_only} of them with "
    why += (
        f"weights in codes, and {found.borders} nodes turn floats into codes or back, as onnxruntime optimized it here"
    )
    decisions = [Decision("kernels", what, why)]
    for fallback in found.fallbacks[:_LISTED]:
        what = f"{fallback.op} {fallback.name!r} runs in float in spite of its codes"
        decisions.append(Decision("kernels", what, fallback.why))
    if len(found.fallbacks) > _LISTED:
        more = f"{len(found.fallbacks) - _LISTED} further nodes run in float in spite of their codes"
        decisions.append(Decision("kernels", more, "for the same reasons"))
    return decisions
