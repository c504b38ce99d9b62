"""Predict what a process needs for a model: loading, weights, activations, workspace, our own session.

*Need* is the highest resident memory from before a model is opened to the end of a few runs, less what was resident
before. `predict_need` gives it without running anything, for one way of running and writing, and tells its parts apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memoptc.ir.core import Graph
from memoptc.ir.functions import as_loaded
from memoptc.runtime.library_pages import can_return_pages
from memoptc.runtime.memory.bfc import arena_capacity, repeated
from memoptc.runtime.memory.branches import as_branched
from memoptc.runtime.memory.default_arena import DefaultArena
from memoptc.runtime.memory.default_session import (
    ArenaUse,
    allocation_events,
    arena_use,
    default_order,
    hold_in_frames,
    is_handed_out,
    with_early_outputs,
)
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.layout import as_laid_out
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.loading import RUN_BYTES, LoadedWeights, loaded_weights
from memoptc.runtime.memory.observed import observed_values
from memoptc.runtime.memory.workspace import kernel_workspace

SessionKind = Literal["stock", "arena", "planned"]

OURS: Mapping[SessionKind, int] = {"stock": 0, "arena": 100_000, "planned": 1_700_000}
"""Bytes that making a `memoptc.runtime.Session` adds to making onnxruntime's own, imports not counted."""

RETURNED_BEFORE, RETURNED_AFTER = 4_700_000, 13_500_000
"""Bytes of onnxruntime's library that a process has fewer in `Session`, while it loads a model and while it runs: pages
that importing or loading used and that are given back, less those that come in again."""


@dataclass(frozen=True)
class Configuration:
    """A way of writing and running a model.

    Args:
        session: `"stock"`, onnxruntime with default options; or a tier of `memoptc.runtime.Session`.
        external: Weights lie in a file of their own and are mapped.
        branch: The writer puts the model into a branch that is always taken, which has no memory pattern.
        captured: Of such a model, weights of products and lookups stay outside of the branch, which reads them.
        shapeless: Of such a model, onnxruntime knows no shapes: it shares no buffers, and overwrites no operands.
        packed: Weights are written in the kernels' own layout, too, in an external file.
        prepacking: Kernels may lay weights out their own way while loading (`session.disable_prepacking` off).
        sized: A session contract gives the tier `"arena"` its capacity; else its arena grows by what is asked for.
        optimize: onnxruntime optimizes the graph.
        threads: Intra-op threads.
    """

    session: SessionKind = "stock"
    external: bool = False
    branch: bool = False
    captured: bool = False
    shapeless: bool = False
    packed: bool = False
    prepacking: bool = True
    sized: bool = True
    optimize: bool = True
    threads: int = 2


@dataclass(frozen=True)
class NeedEstimate:
    """Predicted bytes of a process; the parts add up to `need_bytes`.

    Args:
        loading_bytes: onnxruntime's code and structures, the heap that loading leaves unused, and what the peak of
            loading has above the peak of the runs.
        weights_bytes: Weights in all anonymous copies.
        mapped_bytes: Weights in pages of a file, which the kernel can evict.
        activations_bytes: Tensors of a run, and the arena around them: bytes it holds unused, its packed block.
        workspace_bytes: Kernels' scratch at the peak.
        ours_bytes: What our own session adds.
        code_bytes: Of loading, pages of onnxruntime's library, which are no anonymous memory. Both are negative where
            `Session` gives back more of those that importing had brought in.
        unknown: Values of unknown size, counted as nothing.
        notes: Assumptions, one sentence each.
    """

    loading_bytes: int
    weights_bytes: int
    mapped_bytes: int
    activations_bytes: int
    workspace_bytes: int
    ours_bytes: int
    code_bytes: int = 0
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def need_bytes(self) -> int:
        """All of it."""
        return self.anonymous_bytes + self.mapped_bytes + self.code_bytes

    @property
    def anonymous_bytes(self) -> int:
        """Bytes that the operating system cannot evict."""
        own = self.loading_bytes - self.code_bytes + self.weights_bytes
        return own + self.activations_bytes + self.workspace_bytes + self.ours_bytes

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "need_bytes": self.need_bytes,
            "anonymous_bytes": self.anonymous_bytes,
            "parts": {
                "loading": self.loading_bytes,
                "weights_anonymous": self.weights_bytes,
                "weights_mapped": self.mapped_bytes,
                "activations": self.activations_bytes,
                "workspace": self.workspace_bytes,
                "ours": self.ours_bytes,
            },
            "unknown": list(self.unknown),
            "notes": list(self.notes),
        }


def predict_need(graph: Graph, dims: Mapping[str, int], configuration: Configuration | None = None) -> NeedEstimate:
    """Predict what a process needs.

    Args:
        graph: The model, shapes inferred.
        dims: Extents of its symbolic dimensions: the inputs' are enough.
        configuration: How it is written and run; as the exporter wrote it, in stock onnxruntime, when not given.

    Returns:
        The estimate. Values of unknown size are named in it and count as nothing.
    """
    return MemoryModel(graph, dims, configuration or Configuration()).need


class MemoryModel:
    """The bytes of a process for a graph, extents and a configuration; each part is computed once.

    Args:
        graph: The model, shapes inferred. Parts are kept until it changes.
        dims: Extents of its symbolic dimensions.
        configuration: How it is written and run.
    """

    def __init__(self, graph: Graph, dims: Mapping[str, int], configuration: Configuration) -> None:
        self.graph, self.configuration = graph.analysis(as_loaded), configuration
        self.dims = extents(self.graph, dims)
        self._known = self.graph.analysis(_Estimates)

    @property
    def need(self) -> NeedEstimate:
        """The whole, and its parts."""
        key = (frozenset(self.dims.items()), self.configuration)
        if key not in self._known:
            self._known[key] = self._predict()
        return self._known[key]

    def _predict(self) -> NeedEstimate:
        how = self.configuration
        seen, wrapped = self.graph, how.branch or how.captured or how.shapeless
        weights = loaded_weights(
            seen, external=how.external, packed=how.packed, prepacking=how.prepacking, branch=wrapped,
            captured=how.captured, optimize=how.optimize, dims=self.dims,
        )  # fmt: skip
        use = self._use(seen, wrapped)
        trimmed = how.session != "stock" and can_return_pages()
        loaded = weights.code_bytes + weights.loaded_bytes - (weights.heap_bytes if trimmed else 0)
        filled = 0 if trimmed else weights.reusable_bytes
        running = loaded + RUN_BYTES + max(0, use.steady_bytes - filled)
        loading = weights.code_bytes + weights.peak_bytes
        before, after = (RETURNED_BEFORE, RETURNED_AFTER) if trimmed else (0, 0)
        returned = before if loading - before >= running - after else after
        need = max(loading - before, running - after) + OURS[how.session]
        return self._parts(need, weights, weights.code_bytes - returned, use)

    def _use(self, graph: Graph, wrapped: bool) -> ArenaUse:
        how = self.configuration
        if how.optimize:
            graph = graph.analysis(as_laid_out)
        branched = as_branched(graph, self.dims, default_order if how.session != "planned" else None)
        order = list(branched.ops) if branched is not graph or how.session == "planned" else default_order(graph)
        graph = branched
        if how.session == "stock":
            return arena_use(
                graph, self.dims, threads=how.threads, order=order, pattern=not wrapped, shapes=not how.shapeless,
                branch=wrapped,
            )  # fmt: skip
        found = liveness(
            graph, self.dims, order,
            workspace=kernel_workspace(self.dims, how.threads), in_place=not how.shapeless,
        )  # fmt: skip
        hold_in_frames(found)
        if wrapped:
            found = with_early_outputs(found)
        if how.session == "arena":
            # As contracts size it: the outputs of the run before are still held.
            capacity = arena_capacity(repeated(allocation_events(found, kept=True), 0)) if how.sized else 0
            arena = DefaultArena(capacity, doubling=bool(capacity), split=True)
            return arena_use(
                graph, self.dims, threads=how.threads, order=order, reuse=False, pattern=False,
                shapes=not how.shapeless, branch=wrapped, arena=arena,
            )  # fmt: skip
        curve = found.curve
        peak = max(curve, default=0)
        step = curve.index(peak) if curve else 0
        scratch = sum(s.size for s in found.storages if not s.values and s.first <= step <= s.last)
        held = sum(s.size for s in found.storages if is_handed_out(s))
        return ArenaUse(peak + held, peak + held, scratch, tuple(dict.fromkeys(found.unknown)))

    def _parts(self, need: int, weights: LoadedWeights, code: int, use: ArenaUse) -> NeedEstimate:
        """Divide a need among what it is for; what nothing else explains counts as loading."""
        ours = OURS[self.configuration.session]
        room = need - ours - code - weights.anonymous_bytes - weights.mapped_bytes
        workspace = min(use.workspace_bytes, max(room, 0))
        activations = max(0, min(use.steady_bytes - use.workspace_bytes, room - workspace))
        return NeedEstimate(
            code_bytes=code,
            loading_bytes=code + room - workspace - activations,
            weights_bytes=weights.anonymous_bytes,
            mapped_bytes=weights.mapped_bytes,
            activations_bytes=activations,
            workspace_bytes=workspace,
            ours_bytes=ours,
            unknown=use.unknown,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        count = len(observed_values(self.graph))
        return (f"{count} values have sizes that were observed in runs, not proven.",) if count else ()


class _Estimates(dict[tuple[frozenset[tuple[str, int]], Configuration], NeedEstimate]):
    """Answers for one version of a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
