"""Defs, uses and overwritten operands of a graph, whatever the order of its ops and the extents of its dimensions.

A *group* is a value and all views of it: one piece of memory as long as no op overwrites another's. Which views
share bytes and which op *may* overwrite which operand depends on types alone, so it is found once per version of a
graph; which op really does depends on the order, and how many bytes that is on the extents.

The rules are those of onnxruntime's allocation planner (`allocation_planner.cc`): an output of the graph always has
memory of its own, so a view that is returned is a copy and nothing is computed in place into an output; an
operand is overwritten by its last user when shape and element size agree, dimension by dimension (two symbols
agree when they are the same symbol); inputs belong to the caller, weights to the session, and neither is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dim_text import parse_dim
from memoptc.ir.dims import Dim, same
from memoptc.ir.facts import OBSERVED
from memoptc.ir.types import DType, TensorType
from memoptc.runtime.memory.integer import Fused, fused_pairs
from memoptc.runtime.memory.problem import ALIGNMENT


@dataclass(slots=True)
class Group:
    """A value and its views.

    Args:
        name: Name of the value.
        size: Bytes as an expression over the graph's symbols; `None` when they are not known.
        pinned: Whether it stays to the end: it is handed out, or nothing uses it.
        values: The value, then its views.
        users: How many ops use one of them.
        observed: Bytes as runs showed them, for where the size is not known.
    """

    name: str
    size: Dim
    pinned: bool = False
    values: list[Value] = field(default_factory=list)
    users: int = 0
    observed: Dim = None


@dataclass
class Footprint:
    """A graph's groups, and what each op does to them. Ops and groups are numbered.

    Args:
        ops: The ops that run, in the graph's own order: no weights, no markers.
        groups: All groups; those of region inputs that live in this memory come first and have no maker.
        makes: Per op the groups it makes.
        needs: Per op the groups it uses, each once; uses inside its regions included.
        takes: Per op the groups that its first result may overwrite, the preferred one first.
        nested: The ops that have regions.
        carried: Groups that are there before the first op.
        copies: Outputs (name, value) that are inputs or other outputs' twins: copied at the end.
        early: Outputs that are weights: onnxruntime copies them before it runs anything.
    """

    ops: list[Op]
    groups: list[Group]
    makes: list[tuple[int, ...]]
    needs: list[tuple[int, ...]]
    takes: list[tuple[int, ...]]
    nested: set[int]
    carried: tuple[int, ...]
    copies: list[tuple[str, Value]]
    early: list[tuple[str, Value]]

    def bind(self, dims: Mapping[str, int], alignment: int = ALIGNMENT) -> list[int | None]:
        """Bytes of each group, rounded up to the alignment; `None` when they are not known."""
        found: dict[tuple[Dim, Dim], int | None] = {}
        for group in self.groups:
            if (group.size, group.observed) not in found:
                size = evaluate(group.size, dims)
                if size is None:
                    size = evaluate(group.observed, dims)
                found[group.size, group.observed] = None if size is None else aligned(size, alignment)
        return [found[g.size, g.observed] for g in self.groups]


def footprint(graph: Graph, *, fused: bool = True) -> Footprint:
    """Analyse a graph or region; computed once per version of the graph. O(ops + operands).

    Args:
        graph: The graph or region.
        fused: Whether quantize and dequantize pairs are fused into integer kernels.
    """
    return graph.analysis(_analyse if fused else _analyse_plain)


def is_resident(op: Op) -> bool:
    """True if what the op gives is a weight (or nothing at all): it runs at load time and takes no arena bytes."""
    return not op.domain and op.op_type in ("const", "absent", "sparse_const", "Constant")


def evaluate(size: Dim, dims: Mapping[str, int]) -> int | None:
    """Put extents into a size; `None` when it is unknown, a symbol has no extent, or no value could have it.

    A size below 0 comes from extents at which the model does not run: a window that is larger than its operand.
    """
    try:
        found = size if size is None or isinstance(size, int) else size.evaluate(dims)
    except KeyError:
        return None
    return None if found is not None and not 0 <= found <= _ABSURD else found


_ABSURD = 1 << 52
"""Bytes (4 petabytes) of values that damaged models state; sums of them would leave 64 bits."""


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """Round a size up to the alignment."""
    return -(-size // alignment) * alignment


def value_size(value: Value) -> Dim:
    """Bytes of a value as an expression; `None` when they are not known (strings, sequences, unknown extents)."""
    if value.op is not None and value.op.is_a("SequenceEmpty"):
        return 0
    return value.nbytes


def observed_size(value: Value) -> Dim:
    """Bytes of a value as runs showed them, an assumption; `None` when it was not observed."""
    text = value.metadata.get(OBSERVED)
    return None if text is None else parse_dim(text)


def used_values(op: Op) -> Iterable[Value]:
    """Values that an op uses, inside its regions too."""
    yield from op.operands
    for region in op.regions.values():
        yield from region.captures()


def _analyse_plain(graph: Graph) -> Footprint:
    return _analyse(graph, fuse=False)


def _analyse(graph: Graph, *, fuse: bool = True) -> Footprint:
    found = Footprint([], [], [], [], [], set(), (), [], [])
    home: dict[Value, int] = {}
    handed_out = set(graph.outputs)
    fused = fused_pairs(graph) if fuse else Fused()
    _carry(graph, found, home)
    for op in graph.ops:
        if is_resident(op):
            continue
        facts = ops.facts(op)
        needs = _count_uses(op, home)
        takes = () if op.results and op.results[0] in fused.coded else _candidates(op, facts.in_place, home, handed_out)
        made = []
        for index, result in enumerate(op.results):
            if result.omitted:
                continue
            if result in fused.resident:
                continue
            view = 0 if result in fused.views else None if result in fused.coded else facts.view
            if index == 0 and view is not None and result not in handed_out:
                source = home.get(op.operands[view])
                # A view of an input, a weight or an outer value takes no bytes, as these take none.
                if source is not None:
                    _join(found.groups[source], result)
                    home[result] = source
                continue
            home[result] = len(found.groups)
            made.append(len(found.groups))
            stored = fused.coded.get(result, result)
            group = Group(stored.name, value_size(stored), result in handed_out, [result])
            group.observed = observed_size(stored)
            found.groups.append(group)
        if op.regions:
            found.nested.add(len(found.ops))
        found.ops.append(op)
        found.makes.append(tuple(made))
        found.needs.append(tuple(needs))
        found.takes.append(takes)
        for number in needs:
            found.groups[number].users += 1
    for g in found.groups:
        # What nobody uses, nobody frees: onnxruntime keeps it to the end of the run.
        g.pinned = g.pinned or not g.users
    _hand_out(graph, found, home)
    return found


def _carry(graph: Graph, found: Footprint, home: dict[Value, int]) -> None:
    """Loop-carried values of a body live in the arena: what an iteration gets is what the one before gave."""
    parent = graph.parent
    if parent is None or parent.domain or parent.op_type not in ("Loop", "Scan"):
        return
    scanned = parent.attrs.get("num_scan_inputs", 0)
    states = graph.inputs[2:] if parent.op_type == "Loop" else graph.inputs[: len(graph.inputs) - int(scanned)]
    for value in states:
        home[value] = len(found.groups)
        # The runtime holds on to them until the iteration ends.
        found.groups.append(Group(value.name, value_size(value), True, [value]))
    found.carried = tuple(range(len(found.groups)))


def _count_uses(op: Op, home: Mapping[Value, int]) -> list[int]:
    return list(dict.fromkeys(home[v] for v in used_values(op) if v in home))


def _candidates(op: Op, in_place: Sequence[int], home: Mapping[Value, int], handed_out: set[Value]) -> tuple[int, ...]:
    if not in_place or not op.results or op.results[0] in handed_out or op.results[0].omitted:
        return ()
    result = op.results[0].tensor_type
    if op.domain == ops.BLOCKED_DOMAIN and (result is None or result.static_shape is None):
        return ()  # onnxruntime's inference loses symbols there, and compares numbers only
    fitting = []
    for index in in_place:
        if index < len(op.operands) and (group := home.get(op.operands[index])) is not None:
            alone = sum(1 for v in used_values(op) if home.get(v) == group) == 1
            if alone and _same_place(op.operands[index].tensor_type, result):
                fitting.append(group)
    return tuple(fitting)


def _same_place(a: TensorType | None, b: TensorType | None) -> bool:
    if a is None or b is None or a.shape is None or b.shape is None:
        return False
    unsized = (DType.UNDEFINED, DType.STRING)
    if a.dtype in unsized or b.dtype in unsized or a.dtype.bitwidth != b.dtype.bitwidth:
        return False
    return len(a.shape) == len(b.shape) and all(same(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def _join(group: Group, view: Value) -> None:
    group.values.append(view)
    if group.size is None:
        group.size = value_size(view)


def _hand_out(graph: Graph, found: Footprint, home: Mapping[Value, int]) -> None:
    seen: set[Value] = set()
    for value, info in zip(graph.outputs, graph.outputs_info, strict=True):
        group = home.get(value)
        # What is there before the first op is the caller's, like an input.
        if group is None or group in found.carried or value in seen:
            # A weight is handed out before the first op; returned twice, its second copy is a node, run last.
            first = value.op is not None and is_resident(value.op) and value not in seen
            (found.early if first else found.copies).append((info.name or value.name, value))
        seen.add(value)
