"""A default session of onnxruntime on paper: its order, its static reuse, its arena, its memory pattern.

`liveness` says which bytes a graph keeps in its own order, which is what `memoptc.runtime.Session` runs. Stock
onnxruntime runs another order, gives a buffer to the next result of the same shape instead of freeing it, takes memory
from an arena that doubles, and from the second run on keeps a packed block beside what the first run took.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.onnx_write import is_named, nameless_symbols
from memoptc.ir.ops import BLOCKED_DOMAIN, Family, definition, in_family
from memoptc.ir.types import DType
from memoptc.runtime.memory.branches import FRAME
from memoptc.runtime.memory.default_arena import DefaultArena, pattern_bytes
from memoptc.runtime.memory.footprint import is_resident, used_values
from memoptc.runtime.memory.liveness import Liveness, Storage, is_fixed, liveness
from memoptc.runtime.memory.workspace import kernel_workspace

_LATER_RUNS = 2
"""Runs after the first that are simulated: what later ones take does not change any more, or hardly."""

BLOCK_ROOM = 1.04
"""Room that is looked for to hold a packed block that fills no free piece exactly, over its size on paper. Regions are
powers of two: a block that is a few per cent larger than on paper may take one more, beside everything else."""


@dataclass(frozen=True)
class ArenaUse:
    """Resident bytes of a session's arena.

    Args:
        steady_bytes: After all runs: with the packed block, where there is one.
        live_bytes: Most bytes alive at once in the first run.
        workspace_bytes: Those of them that are kernels' scratch.
        unknown: Values of unknown size, counted as nothing.
    """

    steady_bytes: int
    live_bytes: int
    workspace_bytes: int
    unknown: tuple[str, ...] = ()


def default_order(graph: Graph) -> list[Op]:
    """Order in which onnxruntime runs a graph by default.

    A depth-first walk backwards from the nodes that feed no other, the later ones first
    (`Graph::ReverseDFSFrom` in core/graph/graph.cc; the default order of core/graph/graph_viewer.cc).
    """
    # Nodes that its optimizer makes come after all others: what runs on blocks, then the copies out of them.
    ops = sorted((op for op in graph.ops if not is_resident(op)), key=_made_in_turn)
    number = {op: index for index, op in enumerate(ops)}
    feeding: list[list[int]] = []
    for op in ops:
        makers = (value.op for value in used_values(op))
        feeding.append(sorted({number[m] for m in makers if m is not None and m in number}))
    feeds_another = {index for makers in feeding for index in makers}
    stack = [(index, False) for index in range(len(ops)) if index not in feeds_another]
    seen: set[int] = set()
    order: list[Op] = []
    while stack:
        index, done = stack.pop()
        if done:
            order.append(ops[index])
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack.extend((maker, False) for maker in feeding[index])
    return order


def _made_in_turn(op: Op) -> int:
    return 0 if op.domain != BLOCKED_DOMAIN else 2 if op.op_type == "ReorderOutput" else 1


def shapes_onnxruntime_knows(graph: Graph) -> set[Value]:
    """Values whose shapes onnxruntime can compare before a run.

    They are in numbers, or the file states them, or they follow from the inputs without an operator that loses symbols.
    Tensors in blocks of channels are no file's.
    """
    nameless = nameless_symbols(graph)

    def named(value: Value) -> bool:
        return value.shape is not None and all(is_named(d, nameless) for d in value.shape)

    known, blocked = {value for value in graph.inputs if named(value)}, set[Value]()
    for op in graph.ops:
        if op.op_type != "ReorderOutput" and (op.domain == BLOCKED_DOMAIN or any(v in blocked for v in op.operands)):
            blocked.update(op.results)
        # Operators of that domain are convolutions, and the copies.
        computes = op.domain == BLOCKED_DOMAIN and not op.op_type.startswith("Reorder")
        loses = definition(op).ort_forgets_symbols or computes
        carried = not loses and all(v in known for v in op.operands if not v.is_absent)
        for value in op.results:
            stated = graph.info.states_types and value not in blocked and named(value)
            type_ = value.tensor_type
            if type_ is not None and (stated or carried or op.is_const or type_.static_shape is not None):
                known.add(value)
    return known


def reuse_by_shape(found: Liveness, known: set[Value]) -> Liveness:
    """Let results take over buffers of the same shape that are free by then, as the default allocation plan does.

    The plan is made from shapes as they are written, before the first run: the buffer that became free last is taken
    (`FindReusableTensor` in core/framework/allocation_planner.cc). Outputs of the graph get memory of their own.

    Args:
        found: What is alive when without that.
        known: Values whose shapes can be compared.
    """
    free: defaultdict[object, list[Storage]] = defaultdict(list)
    kept: list[Storage] = []
    busy: list[tuple[int, int, object, Storage]] = []
    for index, storage in enumerate(sorted(found.storages, key=lambda s: s.first)):
        while busy and busy[0][0] < storage.first:
            _, _, shape, ended = heappop(busy)
            free[shape].append(ended)
        shape = _shape(storage.values[0]) if storage.values and storage.values[0] in known else None
        shape = None if shape is None else (shape, _frame(storage))
        if shape is None or is_handed_out(storage):
            kept.append(storage)
            continue
        if free[shape]:
            buffer = free[shape].pop()
            buffer.last = storage.last
            buffer.values.extend(storage.values)
        else:
            buffer = replace(storage, values=list(storage.values))
            kept.append(buffer)
        heappush(busy, (buffer.last, index, shape, buffer))
    return Liveness(kept, found.steps, found.unknown, found.alignment)


_PIECES = 8
"""Allocations that the scratch of an op with regions, or of a recurrent one, is taken for: there are many, of any size,
and an arena finds room for each where one block of all would not fit."""


def _pieces(storage: Storage, found: Liveness) -> list[int]:
    op = found.steps[storage.first]
    if storage.values or storage.size < _PIECES or not (op.regions or in_family(op, Family.RECURRENT)):
        return [storage.size]
    each = storage.size // _PIECES
    return [each] * (_PIECES - 1) + [storage.size - (_PIECES - 1) * each]


def allocation_events(found: Liveness, *, traced_only: bool = False, kept: bool = False) -> list[int]:
    """Give the allocations of a run as `DefaultArena.play` takes them.

    Args:
        found: What is alive when.
        traced_only: Only what a memory pattern holds: no scratch, no outputs of the graph.
        kept: Outputs of the graph are not freed: the caller has them.
    """
    chosen = [s for s in found.storages if not traced_only or (s.values and not is_handed_out(s))]
    starting: defaultdict[int, list[Storage]] = defaultdict(list)
    ending: defaultdict[int, list[Storage]] = defaultdict(list)
    for storage in chosen:
        starting[storage.first].append(storage)
        ending[storage.last].append(storage)
    number: dict[int, range] = {}
    events: list[int] = []
    count = 0
    for step in range(len(found.steps)):
        for storage in sorted(starting[step], key=lambda s: not s.values):  # results before scratch
            pieces = _pieces(storage, found)
            number[id(storage)] = range(count, count + len(pieces))
            count += len(pieces)
            events.extend(pieces)
        ended = (s for s in ending[step] if not (kept and is_handed_out(s)))
        events.extend(-n - 1 for s in sorted(ended, key=lambda s: bool(s.values)) for n in number[id(s)])
    return events


def arena_use(
    graph: Graph,
    dims: Mapping[str, int],
    *,
    threads: int = 2,
    order: Sequence[Op] | None = None,
    reuse: bool = True,
    pattern: bool = True,
    shapes: bool = True,
    branch: bool = False,
    arena: DefaultArena | None = None,
) -> ArenaUse:
    """Simulate runs in an arena. While one goes on, its caller still has the outputs of the one before.

    Args:
        graph: The graph as onnxruntime runs it.
        dims: Extents of symbolic dimensions, completed.
        threads: Intra-op threads.
        order: Its ops in the order in which they run; the default one when not given.
        reuse: `enable_mem_reuse`.
        pattern: `enable_mem_pattern`; without effect where an input is no tensor.
        shapes: Whether onnxruntime knows shapes before the run; else nothing is overwritten or shared.
        branch: Whether the graph runs inside a branch, which allocates outputs of known shape when it begins.
        arena: Another one than the default.
    """
    order = default_order(graph) if order is None else order
    found = liveness(graph, dims, order, workspace=kernel_workspace(dims, threads), in_place=shapes)
    hold_in_frames(found)
    if reuse and shapes:
        found = reuse_by_shape(found, shapes_onnxruntime_knows(graph))
    if branch:
        found = with_early_outputs(found)
    arena = arena or DefaultArena()
    outputs = arena.play(allocation_events(found, kept=True))
    first, block, later = arena.resident_bytes, 0, found
    if pattern and all(v.tensor_type is not None for v in graph.inputs):
        block = pattern_bytes(allocation_events(found, traced_only=True))
    if block:
        found, inner = _frame_patterns(found)
        block = pattern_bytes(allocation_events(found, traced_only=True))
        apart = [*inner, *(s for s in found.storages if not s.values or is_handed_out(s))]
        later = Liveness(apart, found.steps, [], found.alignment)
    events = allocation_events(later, kept=True)
    for _ in range(_LATER_RUNS):
        taken = [arena.allocate(block, int(block * BLOCK_ROOM))] if block else []
        held, outputs = outputs, arena.play(events)
        for number in [*held, *taken]:
            arena.free(number)
    curve = found.curve
    step = max(range(len(curve)), key=curve.__getitem__, default=0)
    scratch = sum(s.size for s in found.storages if not s.values and s.first <= step <= s.last)
    unknown = tuple(dict.fromkeys(found.unknown))
    return ArenaUse(max(first, arena.resident_bytes), max(curve, default=0), scratch, unknown)


def hold_in_frames(found: Liveness) -> None:
    """Widen live ranges to what the frames of branches (`as_branched`) hold.

    What a branch reads of the graph around it is held until the branch ends: then its reader, the If, is done. What it
    hands out has its place from the start where its shape is fixed.
    """
    spans: dict[str, tuple[int, int]] = {}
    for index, op in enumerate(found.steps):
        for frame in _frames(op):
            spans[frame] = spans.get(frame, (index, index))[0], index
    for storage in found.storages if spans else ():
        maker = storage.values[0].op if storage.values else None
        own = () if maker is None else _frames(maker)
        users = [() if user.is_return else _frames(user) for value in storage.values for user in value.users]
        for inside in users:
            if len(inside) > len(own) and inside[: len(own)] == own:
                storage.last = max(storage.last, spans[inside[len(own)]][1])
        for frame in own if storage.values and is_fixed(storage.values[0]) else ():
            if any(frame not in inside for inside in users):
                storage.first = min(storage.first, spans[frame][0])


def _frames(op: Op) -> tuple[str, ...]:
    """The frames that an op runs in, outermost first."""
    parts = op.metadata.get(FRAME, "").split("/")
    return tuple("/".join(parts[: depth + 1]) for depth in range(len(parts))) if parts[0] else ()


def _frame(storage: Storage) -> str:
    """The branch whose frame allocates a storage; empty for the graph around all branches."""
    maker = storage.values[0].op if storage.values else None
    return "" if maker is None else maker.metadata.get(FRAME, "")


def _frame_patterns(found: Liveness) -> tuple[Liveness, list[Storage]]:
    """Take out what branches allocate for themselves; give the rest, and the block that the pattern of each is.

    What a branch hands out belongs to the graph around it.
    """
    ends: dict[str, int] = {}
    for index, op in enumerate(found.steps):
        ends[op.metadata.get(FRAME, "")] = index
    own: defaultdict[str, list[Storage]] = defaultdict(list)
    for storage in found.storages:
        frame = _frame(storage)
        inside = frame and not is_handed_out(storage) and storage.last <= ends[frame]
        own[frame if inside else ""].append(storage)
    rest = own.pop("", [])
    blocks = []
    for frame, storages in own.items():
        events = allocation_events(Liveness(storages, found.steps, [], found.alignment))
        first, last = min(s.first for s in storages), max(s.last for s in storages)
        blocks.append(Storage(f"pattern of branch {frame}", pattern_bytes(events), first, last))
    return Liveness(rest, found.steps, found.unknown, found.alignment), blocks


def with_early_outputs(found: Liveness) -> Liveness:
    """The same inside a branch, which allocates those of its outputs whose shapes are known when it begins."""
    early: list[Storage] = []
    late: list[Storage] = []
    for storage in found.storages:
        if is_handed_out(storage) and is_fixed(storage.values[0]):
            early.append(replace(storage, first=0))
        else:
            late.append(storage)
    return Liveness(early + late, found.steps, found.unknown, found.alignment)


def is_handed_out(storage: Storage) -> bool:
    """True if the caller gets it: an output of the graph lives in it."""
    return any(v.is_output for v in storage.values)


def _shape(value: Value) -> object:
    """Bits of an element, and extents: values of which these are the same may share a buffer; `None` if not known."""
    if value.dtype is None or value.dtype == DType.STRING or value.shape is None or None in value.shape:
        return None
    return value.dtype.bitwidth, value.shape
