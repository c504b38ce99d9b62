"""Memory profile of a model: planned from its graph, recorded inside onnxruntime, for one set of extents."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Dim
from memoptc.ir.functions import as_loaded
from memoptc.runtime.configuration import AS_WRITTEN, FILE_ORDER, Configuration, planned
from memoptc.runtime.design_points import design_points
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.feeds import find_feeds
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.measure import measure
from memoptc.runtime.memory.extents import bind_shapes
from memoptc.runtime.memory.footprint import footprint
from memoptc.runtime.memory.liveness import Liveness, Storage, label
from memoptc.runtime.native.session import NativeSession
from memoptc.runtime.options import Feed, RunOptions

__all__ = [
    "AS_PLANNED", "Alive", "Profile", "Recorded", "access_pattern", "bind_shapes", "likely_extents", "make_feed",
    "profile", "record",
]  # fmt: skip

AS_PLANNED = AS_WRITTEN.options
"""How the memory model sees a run: the graph as it is written, in its order, on one thread."""


_PATIENCE = 10.0
"""Seconds after which no more inputs are tried at chosen sizes."""


@dataclass(frozen=True)
class Recorded:
    """Allocations of one run of onnxruntime.

    Args:
        run_peak_bytes: Most bytes alive at once: activations, outputs and workspace.
        loaded_bytes: Bytes that loading leaves allocated for weights in the kernels' own layout.
        method: `recorder` (exact: every allocation seen), or how a fresh process was watched.
    """

    run_peak_bytes: int
    loaded_bytes: int
    method: str


@dataclass(frozen=True)
class Alive:
    """Something alive at the peak.

    Args:
        name: Tensor, or the op whose workspace it is.
        nbytes: Its bytes.
        made: Step and op that make it.
        freed: Step and op after which it is free.
        workspace: Whether it is a kernel's scratch.
    """

    name: str
    nbytes: int
    made: str
    freed: str
    workspace: bool


@dataclass
class Profile:
    """The memory of a model at one size.

    Args:
        dims: Extents of symbolic dimensions.
        planned_peak_bytes: Most bytes alive at once on paper.
        tensor_peak_bytes: The same without workspace: no order of these nodes on this memory model needs less here.
        workspace_bytes: Largest scratch of one kernel.
        step: Step of the peak.
        at: What runs there.
        alive: What is alive there, largest first.
        formula: The tensors alive there as an expression over the symbolic dimensions; `None` when not known.
        unknown: Values without a known size.
        found: The liveness behind all this.
        access: Access pattern: see `access_pattern`.
        configuration: What the planned figures are for.
        as_planned: Recorded in the configuration `as written`.
        stock: Recorded in the configuration `stock default`, in the second run.
        session: Recorded in the configuration `session`.
    """

    dims: dict[str, int]
    planned_peak_bytes: int
    tensor_peak_bytes: int
    workspace_bytes: int
    step: int
    at: str
    alive: list[Alive]
    formula: Dim
    unknown: list[str]
    found: Liveness
    access: dict[str, float]
    configuration: Configuration = FILE_ORDER
    as_planned: Recorded | None = None
    stock: Recorded | None = None
    session: Recorded | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "dims": self.dims,
            "configuration": str(self.configuration),
            "planned_peak_bytes": self.planned_peak_bytes,
            "tensor_peak_bytes": self.tensor_peak_bytes,
            "workspace_bytes": self.workspace_bytes,
            "at": self.at,
            "alive": [dict(a.__dict__) | {"bytes": a.nbytes} for a in self.alive],
            "formula": None if self.formula is None else str(self.formula),
            "unknown": self.unknown,
            "access": self.access,
            "recorded": {
                name: None if found is None else dict(found.__dict__)
                for name, found in (("as_planned", self.as_planned), ("stock", self.stock), ("session", self.session))
            },
            "curve": self.found.curve,
            "labels": [label(op) for op in self.found.steps],
            "notes": self.notes,
        }


def profile(
    graph: Graph, dims: Mapping[str, int], threads: int = 1, configuration: Configuration = FILE_ORDER
) -> Profile:
    """Profile a graph on paper.

    Args:
        graph: The model, shapes inferred.
        dims: Extents of its symbolic dimensions.
        threads: Intra-op threads, for the workspace of kernels.
        configuration: What the figures are for.
    """
    configuration = configuration.on(threads)
    graph = graph.analysis(as_loaded)
    found = planned(graph, dims, configuration)
    curve = found.curve
    step = max(range(len(curve)), key=curve.__getitem__)
    there = sorted((s for s in found.storages if s.first <= step <= s.last), key=lambda s: (-s.size, s.name))
    scratch = [s for s in found.storages if not s.values]
    return Profile(
        dims=dict(dims),
        planned_peak_bytes=curve[step],
        tensor_peak_bytes=_without_workspace(found),
        workspace_bytes=max((s.size for s in scratch), default=0),
        step=step,
        at=label(found.steps[step]),
        alive=[_alive(s, found) for s in there],
        formula=_formula(there),
        unknown=list(dict.fromkeys(found.unknown)),
        found=found,
        access=access_pattern(graph, found, configuration),
        configuration=configuration,
    )


def _without_workspace(found: Liveness) -> int:
    tensors = replace(found, storages=[s for s in found.storages if s.values])
    return max(tensors.curve, default=0)


def _alive(storage: Storage, found: Liveness) -> Alive:
    made, freed = (f"{i} {label(found.steps[i])}" for i in (storage.first, storage.last))
    return Alive(storage.name, storage.size, made, freed, not storage.values)


def _formula(there: list[Storage]) -> Dim:
    total: Dim = 0
    for storage in there:
        extent = storage.extent if storage.values else storage.size
        if extent is None or total is None:
            return None
        total = total + extent
    return total


def access_pattern(graph: Graph, found: Liveness, configuration: Configuration = FILE_ORDER) -> dict[str, float]:
    """Describe how a run uses its memory.

    Returns:
        `bytes_written`, `bytes_read` (of activations), `reads_per_byte`; lengths of live ranges in steps
        (`live_range_median`, `live_range_max`); `held_share`: of all bytes times steps, the share during which a buffer
        is only kept for later, neither written nor read.
    """
    uses: dict[int, int] = {}
    layout = footprint(graph, fused=configuration.fused)
    number = {id(v): g for g, group in enumerate(layout.groups) for v in group.values}
    for needs in layout.needs:
        for group in needs:
            uses[group] = uses.get(group, 0) + 1
    written = read = held = area = 0
    lengths = []
    for storage in found.storages:
        if not storage.values:
            continue
        groups = {number[id(v)] for v in storage.values if id(v) in number}
        touched = sum(uses.get(g, 0) for g in groups)
        length = storage.last - storage.first + 1
        lengths.append(length)
        written += storage.size * max(1, len(groups))
        read += storage.size * touched
        area += storage.size * length
        held += storage.size * max(0, length - touched - max(1, len(groups)))
    return {
        "bytes_written": written,
        "bytes_read": read,
        "reads_per_byte": read / written if written else 0.0,
        "live_range_median": statistics.median(lengths) if lengths else 0,
        "live_range_max": max(lengths, default=0),
        "held_share": held / area if area else 0.0,
    }


def record(model: str | os.PathLike[str], feed: Feed, options: RunOptions, *, runs: int = 2) -> Recorded:
    """Record a run inside onnxruntime; where its C interface cannot be used, watch a fresh process.

    Args:
        model: Path of the model.
        feed: The inputs.
        options: How to run.
        runs: The last of so many runs is recorded.

    Raises:
        InputError: onnxruntime cannot load or run the model.
    """
    try:
        session = NativeSession(model, options)
        try:
            for _ in range(runs - 1):
                session.run(feed)
            _, trace = session.record(feed)
        finally:
            session.close()
    except InputError:
        (found,) = measure([model], feed, options=options, seconds=1)
        return Recorded(found.run_peak_bytes, found.loaded_bytes, f"fresh process, {found.method}")
    return Recorded(trace.peak_bytes, session.loaded_bytes, "recorder")


def likely_extents(graph: Graph, dims: Mapping[str, int]) -> dict[str, int]:
    """Complete extents for the symbols that nobody decided: those that a compile plans for, else likely ones."""
    points = design_points(graph, dims)
    return dict(points.plan) if points is not None else next(InputMaker(graph, dims).bindings(), dict(dims))


def make_feed(graph: Graph, model: str | os.PathLike[str], dims: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Make up inputs on which the model runs, at the sizes that a compile would run it at where `dims` decides none.

    Raises:
        InputError: there are none.
    """
    original = Evaluator(os.fspath(model), RunOptions(), label="the model")
    points = design_points(graph, dims)
    if points is not None:
        try:
            return find_feeds(graph, original, count=1, dims=points.check, seed=seed, seconds=_PATIENCE)[0].feed
        except InputError:  # what operators require is not all that can be wrong with sizes
            pass
    return find_feeds(graph, original, count=1, dims=dims, seed=seed)[0].feed
