"""Reuse of cache buffers between layers of a decoder: each present that may be written over another layer's past.

A layer's new keys and values are computed from what the layers before it give, and these from their own caches. So
whatever reads the past of one layer has run before the present of the next one is written, in any order that respects
data, and the buffer of the first may hold the second. Then past and present of a model take the room of one, and one
layer's more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.decoder_facts import Cache
from memoptc.ir.decoder_paths import HAND_ON
from memoptc.ir.ops import EXTENTS

_RESIZING = frozenset(["Slice", "Split", "Gather", "Expand", "Tile"])
_NEAR = 8
"""Pasts that are tried for a present: its own layer's, which cannot be, and those of the layers before."""


def with_reused_buffers(graph: Graph, caches: Sequence[Cache]) -> list[Cache]:
    """Say for each cache which past's buffer its present may be written to.

    Every reader of that past has to be something that the present is computed from: then no order of execution, nor
    nodes that run side by side, can bring a read behind the write.

    Args:
        graph: The model.
        caches: Its caches; those that are `grown` are looked at.
    """
    order = _Order(graph)
    outputs = {info.name: value for info, value in zip(graph.outputs_info, graph.outputs, strict=True)}
    inputs = {v.name: v for v in graph.inputs}
    grown = [c for c in caches if c.form == "grown" and _is_whole(outputs[c.present])]
    position = {op: i for i, op in enumerate(graph.ops)}
    grown.sort(key=lambda c: position.get(outputs[c.present].op, -1))  # type: ignore[arg-type]
    free, found = list(grown), {}
    for cache in grown:
        alike = [
            c
            for c in free
            if (c.shape, c.dtype, c.axis, c.batch) == (cache.shape, cache.dtype, cache.axis, cache.batch)
        ]
        for earlier in alike[:_NEAR]:
            if order.precedes(graph, inputs[earlier.past], outputs[cache.present]):
                found[cache.past] = earlier.past
                free.remove(earlier)
                break
    return [replace(c, reuses=found.get(c.past, "")) for c in caches]


def _is_whole(value: Value) -> bool:
    """True if a present has as many steps as its past and the new ones together."""
    op = value.op
    if op is None:
        return False
    if op.op_type == "If":
        return all(_is_whole(region.outputs[value.index]) for region in op.regions.values())
    if op.op_type in HAND_ON and not op.domain:
        return op.op_type not in _RESIZING and _is_whole(op.operands[0])
    return True


class _Order:
    """Dependences between ops: which ops of its graph each one is computed from."""

    def __init__(self, graph: Graph) -> None:
        self._bits: dict[Op, int] = {}
        for region in dict.fromkeys([graph, *(op.graph for op in graph.walk() if op.graph is not None)]):
            self._add(region)

    def _add(self, graph: Graph) -> None:
        """Note for each op the ops of its graph that it is computed from, as bits by their position."""
        place = {op: i for i, op in enumerate(graph.ops)}
        self._place = getattr(self, "_place", {}) | place
        for op in graph.ops:
            used = [*op.operands, *(v for region in op.regions.values() for v in region.captures())]
            bits = 0
            for value in used:
                if value.op is not None and value.op in place:
                    bits |= self._bits[value.op] | (1 << place[value.op])
            self._bits[op] = bits

    def precedes(self, graph: Graph, past: Value, present: Value) -> bool:
        """True if every read of a past comes before a present of the same graph is written."""
        writer = present.op
        while writer is not None and writer.op_type in HAND_ON and not writer.domain:  # a copy may be left out
            writer = writer.operands[0].op
        if writer is None or writer.graph is not graph:
            return False
        for reader in _readers(past, graph):
            if reader is writer and writer.op_type == "If":
                if not all(self.precedes(r, past, r.outputs[present.index]) for r in writer.regions.values()):
                    return False
            elif reader not in self._place or not self._bits[writer] >> self._place[reader] & 1:
                return False
        return True


def _readers(past: Value, graph: Graph) -> set[Op]:
    """The ops of one graph that read elements of an input, also by way of what only hands them on."""
    found: set[Op] = set()
    todo, seen = [past], {past}
    while todo:
        for op, index in todo.pop().uses:
            if op.key in EXTENTS:
                continue
            top: Op | None = op
            while top is not None and top.graph is not graph:
                top = top.graph.parent if top.graph is not None else None
            if top is not None:
                found.add(top)
            owner = op.graph.parent if op.is_return and op.graph is not None else None
            after = list(op.results) if op.op_type in HAND_ON and not op.domain else []
            if owner is not None and index < len(owner.results):
                after.append(owner.results[index])
            todo += [v for v in after if v not in seen]
            seen.update(after)
    return found
