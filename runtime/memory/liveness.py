"""The memory model: for a graph, an order and extents of its symbolic dimensions, which bytes are alive when.

One storage is what one allocation serves: a result, every view of it, and every result that overwrites it in
place. Inputs belong to the caller and weights to the session, so neither is counted; outputs are, from the step that
makes them to the end. What runs inside a region's body lives inside its op's step, as one storage of the body's
own peak: of an If's branches that of the one which runs, or the largest where extents do not decide it; a branch's
outputs are the If's results and counted there. Intervals are closed: a storage is alive during `first` and `last`, and
so are operand and result of one op, unless it computes in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim
from memoptc.runtime.memory.branches import branches
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import (
    Footprint,
    aligned,
    evaluate,
    footprint,
    is_resident,
    observed_size,
    value_size,
)
from memoptc.runtime.memory.problem import ALIGNMENT, Buffer, Problem
from memoptc.runtime.memory.workspace import KernelWorkspace, Workspace, kernel_workspace, no_workspace

__all__ = [
    "ALIGNMENT", "Liveness", "PeakReport", "Storage", "Workspace", "aligned", "inner_bytes", "is_fixed", "label",
    "liveness", "no_workspace", "peak", "value_bytes",
]  # fmt: skip


@dataclass(slots=True)
class Storage:
    """Bytes that one allocation serves.

    Args:
        name: Name of the value that made it.
        size: Bytes, rounded up to the alignment.
        first: Step that allocates it.
        last: Last step that uses it.
        values: Every value that lives in it.
        extent: Bytes as an expression over symbolic dimensions, not rounded; `None` when not known.
    """

    name: str
    size: int
    first: int
    last: int
    values: list[Value] = field(default_factory=list)
    extent: Dim = None


@dataclass
class Liveness:
    """Live ranges of storages over the steps of a graph.

    Args:
        storages: In order of allocation; those of size 0 left out.
        steps: The ops in the order that was looked at, without weights.
        unknown: Names of values whose size is not known; they are counted as 0.
        alignment: To which sizes were rounded up.
    """

    storages: list[Storage]
    steps: list[Op]
    unknown: list[str]
    alignment: int = ALIGNMENT

    @property
    def curve(self) -> list[int]:
        """Bytes alive during each step."""
        change = [0] * (len(self.steps) + 1)
        for s in self.storages:
            change[s.first] += s.size
            change[s.last + 1] -= s.size
        return list(accumulate(change[:-1]))

    @property
    def problem(self) -> Problem:
        """The problem as the allocator takes it."""
        named = enumerate(self.storages)
        return Problem(tuple(Buffer(f"{i}:{s.name}", s.size, s.first, s.last, self.alignment) for i, s in named))


@dataclass(frozen=True)
class PeakReport:
    """The peak of a run on paper.

    Args:
        peak_bytes: Most bytes alive at once: the floor of any placement for this order.
        step: The step at which that is.
        op_label: What runs there, for messages.
        alive: (name, bytes) of what is alive there, largest first.
        curve: Bytes alive during each step.
        labels: What runs at each step.
        unknown: Values whose size is not known.
    """

    peak_bytes: int
    step: int
    op_label: str
    alive: tuple[tuple[str, int], ...]
    curve: tuple[int, ...]
    labels: tuple[str, ...]
    unknown: tuple[str, ...]


def label(op: Op) -> str:
    """Name an op for people."""
    name = op.name or (op.results[0].name if op.results else "")
    return f"{op.op_type} {name}".strip()


def value_bytes(value: Value, dims: Mapping[str, int]) -> int | None:
    """Bytes of a value under the given extents, not rounded; `None` when they are neither known nor were observed."""
    size = evaluate(value_size(value), dims)
    return evaluate(observed_size(value), dims) if size is None else size


def liveness(
    graph: Graph,
    dims: Mapping[str, int],
    order: Sequence[Op] | None = None,
    *,
    workspace: Workspace | None = None,
    alignment: int = ALIGNMENT,
    fused: bool = True,
    in_place: bool = True,
) -> Liveness:
    """Find storages and their live ranges. O(ops + operands).

    Args:
        graph: The graph or region.
        dims: Extents of symbolic dimensions: the inputs' are enough (see `extents`).
        order: Its ops in another topological order; the graph's own when not given.
        workspace: Bytes that an op's kernel needs besides, during its step; those of onnxruntime's kernels on one
            thread when not given.
        alignment: Bytes to which every size is rounded up.
        fused: Whether the runtime fuses quantize and dequantize pairs into integer kernels, as onnxruntime does
            unless its optimizer is off.
        in_place: Whether results overwrite operands of the same shape; not where the runtime does not know shapes.
    """
    layout = footprint(graph, fused=fused)
    dims = extents(graph, dims)
    workspace = workspace or kernel_workspace(dims, fused=fused)
    bound = layout.bind(dims, alignment)
    sizes = [size or 0 for size in bound]
    unknown = [g.name for g, size in zip(layout.groups, bound, strict=True) if size is None]
    if order is None:
        sequence: Sequence[int] = range(len(layout.ops))
    else:
        number = {op: i for i, op in enumerate(layout.ops)}
        sequence = [number[op] for op in order if not is_resident(op)]
    steps = [layout.ops[i] for i in sequence]
    if layout.copies or not steps:
        # Outputs that must be copied are, once everything else is done.
        steps.append(graph.terminator)
    found = Liveness([], steps, unknown, alignment)
    _walk(layout, sizes, sequence, found, dims, workspace, in_place, fused)
    end = len(steps) - 1
    for first, copies in ((0, layout.early), (end, layout.copies)):
        for name, value in copies:
            size = aligned(value_bytes(value, dims) or 0, alignment)
            found.storages.append(Storage(name, size, first, end, [value], value_size(value)))
    found.storages = [s for s in found.storages if s.size]
    return found


def _walk(
    layout: Footprint,
    sizes: Sequence[int],
    sequence: Sequence[int],
    found: Liveness,
    dims: Mapping[str, int],
    workspace: Workspace,
    in_place: bool,
    fused: bool,
) -> None:
    """Run the ops in order: who is made, who takes over whose bytes, who dies."""
    groups = layout.groups
    left = [g.users for g in groups]
    home: dict[int, Storage] = {}
    end = len(found.steps) - 1

    def make(group: int, step: int) -> None:
        g = groups[group]
        until = end if g.pinned else step
        home[group] = Storage(g.name, sizes[group], step, until, list(g.values), g.size)
        found.storages.append(home[group])

    for group in layout.carried:
        make(group, 0)
    for step, index in enumerate(sequence):
        made = layout.makes[index]
        takes = layout.takes[index] if in_place else ()
        taken = next((c for c in takes if left[c] == 1 and not groups[c].pinned), None)
        for group in made:
            if taken is not None and group == made[0]:
                home[group] = home[taken]
                home[group].values.extend(groups[group].values)
                home[group].last = step
            else:
                make(group, step)
        for group in layout.needs[index]:
            left[group] -= 1
            if not left[group] and not groups[group].pinned:
                home[group].last = max(home[group].last, step)
        if workspace is no_workspace and index not in layout.nested:
            continue
        scratch = inner_bytes(
            layout.ops[index], dims, workspace, found.alignment, found.unknown, fused=fused, in_place=in_place
        )
        if scratch:
            found.storages.append(Storage(f"{label(layout.ops[index])} (inside)", scratch, step, step))


def inner_bytes(
    op: Op,
    dims: Mapping[str, int],
    workspace: Workspace = no_workspace,
    alignment: int = ALIGNMENT,
    unknown: list[str] | None = None,
    *,
    fused: bool = True,
    in_place: bool = True,
) -> int:
    """Bytes that an op needs during its own step besides operands and results, rounded up.

    Args:
        op: The op.
        dims: Extents of symbolic dimensions.
        workspace: Bytes that a kernel needs.
        alignment: Bytes to which every size is rounded up.
        unknown: Gets the names of values inside whose size is not known.
        fused: As for `liveness`.
        in_place: As for `liveness`.
    """
    bodies = [_body_bytes(op, r, dims, workspace, alignment, unknown, fused, in_place) for r in branches(op, dims)]
    inside = max(bodies, default=0)
    if op.op_type == "Loop" and not op.domain:
        inside = _loop_bytes(op, inside, dims)
    return aligned(inside + workspace(op), alignment)


def _loop_bytes(op: Op, body: int, dims: Mapping[str, int]) -> int:
    """Bytes of a Loop besides its results: they are made at its end only, from slices kept one by one until then."""
    sizes = [value_bytes(r, dims) or 0 for r in op.results]
    states = len(op.operands) - 2
    stacked = sum(sizes[states:])
    return max(body + stacked - sum(sizes), sum(sizes[:states]) + stacked)


def _body_bytes(
    op: Op,
    region: Graph,
    dims: Mapping[str, int],
    workspace: Workspace,
    alignment: int,
    unknown: list[str] | None,
    fused: bool,
    in_place: bool,
) -> int:
    known = region.analysis(_known)
    model = workspace.key if isinstance(workspace, KernelWorkspace) else workspace
    key = (frozenset(dims.items()), model, alignment, fused, in_place, tuple(r.omitted for r in op.results))
    if key not in known:
        inner = liveness(region, dims, workspace=workspace, alignment=alignment, fused=fused, in_place=in_place)
        forwarded, late = _forwarded_outputs(op, region, dims), 0
        for storage in inner.storages:
            value = storage.values[0] if storage.values else None
            if value in forwarded:
                # What an If makes has its place from the start where its shape is fixed, else from where it is made.
                if op.op_type == "If" and value is not None and not is_fixed(value):
                    late += storage.size
                else:
                    storage.size = 0
        known[key] = max(max(inner.curve, default=0) - late, 0), tuple(inner.unknown)
    found, without_size = known[key]
    if unknown is not None:
        unknown.extend(without_size)
    return found


def is_fixed(value: Value) -> bool:
    """True if a value's shape is written in the model, in numbers."""
    shape = value.shape
    return shape is not None and all(isinstance(d, int) for d in shape)


def _known(region: Graph) -> dict[object, tuple[int, tuple[str, ...]]]:
    """Results for a version of a body, by extents: an op is looked at again for every change around it."""
    return {}


def _forwarded_outputs(op: Op, region: Graph, dims: Mapping[str, int]) -> set[Value]:
    """The body's outputs that are written straight into the op's results: those of an If, and what a Scan stacks."""
    if op.domain or op.op_type not in ("If", "Scan"):
        return set()
    states = 0 if op.op_type == "If" else len(region.inputs) - int(op.attrs.get("num_scan_inputs", 0))
    pairs = zip(region.outputs[states:], op.results[states:], strict=False)
    return {inner for inner, outer in pairs if not outer.omitted and value_bytes(outer, dims) is not None}


def peak(graph: Graph, dims: Mapping[str, int], order: Sequence[Op] | None = None) -> PeakReport:
    """Find the peak of live bytes, and what makes it."""
    return peak_of(liveness(graph, dims, order))


def peak_of(found: Liveness) -> PeakReport:
    """Say where live bytes peak, and what makes the peak."""
    curve = found.curve
    step = max(range(len(curve)), key=curve.__getitem__)
    alive = sorted(((s.name, s.size) for s in found.storages if s.first <= step <= s.last), key=lambda t: (-t[1], t[0]))
    labels = tuple(label(op) for op in found.steps)
    return PeakReport(
        curve[step], step, labels[step], tuple(alive), tuple(curve), labels, tuple(dict.fromkeys(found.unknown))
    )
