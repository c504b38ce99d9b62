"""The memory model: for a graph, its order and extents, which bytes are alive when.

One storage is what one allocation serves: a result, and every view of it, and every result that overwrites it
in place. Inputs belong to the caller and weights to the model, so neither is counted; outputs are, from the
step that makes them to the end. A region's body lives inside its op's step, as one storage of the body's own
peak (the largest of an If's branches). Intervals are closed: a storage is alive during `first` and `last`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import free_symbols, substitute
from memoptc.ir.types import TensorType

ALIGNMENT = 64


@dataclass
class Storage:
    """Bytes that one allocation serves.

    Args:
        name: Name of the value that made it.
        size: Bytes, rounded up to the alignment.
        first: Step that allocates it.
        last: Last step that uses it.
        values: Every value that lives in it.
    """

    name: str
    size: int
    first: int
    last: int
    values: list[Value] = field(default_factory=list)


@dataclass
class Liveness:
    """What is alive when.

    Args:
        storages: In order of allocation; those of size 0 left out.
        steps: The ops in the order that was looked at.
        unknown: Names of values whose size is not known; they are counted as 0.
    """

    storages: list[Storage]
    steps: list[Op]
    unknown: list[str]

    @property
    def curve(self) -> list[int]:
        """Bytes alive during each step."""
        change = [0] * (len(self.steps) + 1)
        for s in self.storages:
            change[s.first] += s.size
            change[s.last + 1] -= s.size
        live, total = [], 0
        for delta in change[:-1]:
            total += delta
            live.append(total)
        return live


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
    """Bytes of a value under the given extents; `None` when they are not known."""
    if not isinstance(value.type, TensorType):
        return None
    size = value.type.nbytes
    if size is None or isinstance(size, int):
        return size
    if not free_symbols(size) <= dims.keys():
        return None
    bound = substitute(size, dims)
    return bound if isinstance(bound, int) else None


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """Round a size up to the alignment."""
    return -(-size // alignment) * alignment


def no_workspace(op: Op) -> int:
    """The workspace model used unless a better one is given: kernels need none."""
    return 0


def liveness(
    graph: Graph,
    dims: Mapping[str, int],
    order: Sequence[Op] | None = None,
    *,
    workspace: Callable[[Op], int] = no_workspace,
) -> Liveness:
    """Find storages and their live ranges.

    Args:
        graph: The graph or region.
        dims: Extents of symbolic dimensions.
        order: Its ops in another topological order; the graph's own when not given.
        workspace: Bytes that an op's kernel needs besides, during its step.
    """
    steps = [op for op in (graph.ops if order is None else order) if not _is_marker(op)]
    position = {op: i for i, op in enumerate(steps)}
    end = len(steps) - 1
    last_use = _last_uses(graph, position, end)
    found = Liveness([], steps, [])
    home: dict[Value, Storage | None] = {}
    for step, op in enumerate(steps):
        _place_results(op, step, dims, home, last_use, found)
        inner = max((_region_peak(r, dims, workspace, found) for r in op.regions.values()), default=0)
        scratch = aligned(inner + workspace(op))
        if scratch:
            found.storages.append(Storage(f"{label(op)} (inside)", scratch, step, step))
    found.storages = [s for s in found.storages if s.size]
    return found


def peak(graph: Graph, dims: Mapping[str, int], order: Sequence[Op] | None = None) -> PeakReport:
    """Find the peak of live bytes, and what makes it."""
    found = liveness(graph, dims, order)
    curve = found.curve
    step = max(range(len(curve)), key=curve.__getitem__, default=0)
    alive = sorted(((s.name, s.size) for s in found.storages if s.first <= step <= s.last), key=lambda t: (-t[1], t[0]))
    labels = tuple(label(op) for op in found.steps)
    return PeakReport(
        curve[step] if curve else 0,
        step,
        labels[step] if labels else "",
        tuple(alive),
        tuple(curve),
        labels,
        tuple(found.unknown),
    )


def _is_marker(op: Op) -> bool:
    return not op.domain and op.op_type in ("const", "absent", "sparse_const")


def _last_uses(graph: Graph, position: Mapping[Op, int], end: int) -> dict[Value, int]:
    """Last step that uses each value defined outside; a use inside a region happens at the region's op."""
    last: dict[Value, int] = {}
    for op, step in position.items():
        for value in _used(op):
            last[value] = max(step, last.get(value, -1))
    for value in graph.outputs:
        last[value] = end
    return last


def _used(op: Op) -> Iterable[Value]:
    yield from op.operands
    for region in op.regions.values():
        yield from region.captures()


def _place_results(
    op: Op,
    step: int,
    dims: Mapping[str, int],
    home: dict[Value, Storage | None],
    last_use: Mapping[Value, int],
    found: Liveness,
) -> None:
    facts = ops.facts(op)
    for index, result in enumerate(op.results):
        if result.omitted:
            continue
        size = value_bytes(result, dims)
        if size is None:
            found.unknown.append(result.name)
        until = max(step, last_use.get(result, step))
        shared = None
        if index == 0 and facts.view is not None:
            shared = home.get(op.operands[facts.view])
            # A view of an input or a weight takes no bytes of its own, unless it must be handed out.
            if shared is None and not result.is_output:
                home[result] = None
                continue
        if shared is None and index == 0 and size:
            shared = _overwritten(op, facts.in_place, step, aligned(size), home, dims, result)
        if shared is None:
            shared = Storage(result.name, aligned(size or 0), step, until)
            found.storages.append(shared)
        shared.last = max(shared.last, until)
        shared.values.append(result)
        home[result] = shared


def _overwritten(
    op: Op,
    candidates: tuple[int, ...],
    step: int,
    size: int,
    home: Mapping[Value, Storage | None],
    dims: Mapping[str, int],
    result: Value,
) -> Storage | None:
    """The operand's storage that the result may take over: it dies here, and has the same size."""
    for index in candidates:
        if index >= len(op.operands):
            continue
        operand = op.operands[index]
        storage = home.get(operand)
        if storage is None or storage.size != size or storage.last > step or storage.first == step:
            continue
        same_bytes = value_bytes(operand, dims) == value_bytes(result, dims)
        if same_bytes and sum(1 for v in op.operands if home.get(v) is storage) == 1:
            return storage
    return None


def _region_peak(region: Graph, dims: Mapping[str, int], workspace: Callable[[Op], int], found: Liveness) -> int:
    inner = liveness(region, dims, workspace=workspace)
    found.unknown.extend(inner.unknown)
    return max(inner.curve, default=0)
