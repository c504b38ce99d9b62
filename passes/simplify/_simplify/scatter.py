"""Writing into a block of a tensor: what exporters spell as ScatterND with every index is a Concat of slices."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.passes.simplify.fold_constants import evaluate

Array = npt.NDArray[Any]
LARGEST = 1 << 20
"""Numbers of an index that are worth computing here."""


def simplify_scatter(graph: Graph, stats: Counter[str]) -> None:
    """Replace ScatterND whose computed constant indices form a block of whole rows, and the computation with it."""
    for op in graph.walk("ScatterND"):
        block = _block(op)
        if block is not None and op.graph is not None:
            _replace(op, *block)
            stats["blocks written"] += 1


def _block(op: Op) -> tuple[int, int, int] | None:
    """Give (axis, begin, end) of the block that is written; every other axis is written in full."""
    shape = op.operand.static_shape
    indices = op.operands[1]
    if shape is None or 0 in shape or op.attrs.get("reduction", "none") != "none" or indices.tensor is not None:
        return None
    numbers = _computed(indices)
    if numbers is None or numbers.ndim < 1 or not 0 < numbers.shape[-1] <= len(shape):
        return None
    depth = numbers.shape[-1]
    rows = numbers.reshape(-1, depth)
    rows = np.where(rows < 0, rows + np.asarray(shape[:depth]), rows)
    begin, end = rows.min(axis=0), rows.max(axis=0) + 1
    extents = end - begin
    if int(np.prod(extents)) != len(rows):
        return None
    if not (rows == np.indices(extents).reshape(depth, -1).T + begin).all():
        return None
    partial = [i for i in range(depth) if extents[i] != shape[i]]
    if len(partial) != 1:
        return None
    return partial[0], int(begin[partial[0]]), int(end[partial[0]])


def _computed(value: Value) -> Array | None:
    """Give the numbers of a value that depends on nothing but constants."""
    cone: dict[Op, None] = {}
    todo = [value]
    while todo:
        op = todo.pop().op
        if op is None or op.regions or not ops.is_pure(op) or op.graph is not value.graph:
            return None
        if not op.is_const and op.op_type != "absent" and op not in cone:
            cone[op] = None
            todo.extend(op.operands)
    if any(not _is_small(r) for op in cone for r in op.results) or value.op is None or value.op.graph is None:
        return None
    in_order = [op for op in value.op.graph.ops if op in cone]
    found = evaluate(in_order, [value], value.graph.info, Counter())
    return np.asarray(found[0][1].numpy()) if found else None


def _is_small(value: Value) -> bool:
    type_ = value.tensor_type
    return type_ is not None and isinstance(type_.elements, int) and type_.elements <= LARGEST


def _replace(op: Op, axis: int, begin: int, end: int) -> None:
    data, _, updates = op.operands
    assert op.graph is not None
    shape = list(data.static_shape or ())
    b = Builder(op.graph, before=op, loc=op.loc.union(rule="block-written"))
    parts = []
    if begin > 0:
        parts.append(_slice(b, data, axis, 0, begin))
    written = [*shape[:axis], end - begin, *shape[axis + 1 :]]
    if updates.shape == tuple(written):
        parts.append(updates)
    else:
        parts.append(b.Reshape(updates, np.asarray(written, np.int64)))
    if end < shape[axis]:
        parts.append(_slice(b, data, axis, end, shape[axis]))
    joined = b.op("Concat", parts, {"axis": axis}, name=op.result.name, type=op.result.type).result
    op.result.replace_by(joined)
    op.erase()


def _slice(b: Builder, data: Value, axis: int, begin: int, end: int) -> Value:
    cut = [np.asarray([n], np.int64) for n in (begin, end, axis)]
    return b.op("Slice", [data, *cut]).result
