"""Inputs that number the steps of a sequence: they look up a table of positions, or are turned into angles."""

from __future__ import annotations

from collections.abc import Iterable

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.decoder_paths import (
    NEARBY,
    SCATTER,
    constant_of,
    is_integer,
    makers,
    ops_within_reach,
    shape_of,
    uses_behind,
)
from memoptc.ir.ops import EXTENTS
from memoptc.ir.tensors import scalar

_TO_TABLE = {"Gather": 0, "com.microsoft::GatherBlockQuantized": 0, "com.microsoft::EmbedLayerNormalization": 2}


_OFFSETS = 2
"""Numbers that may be added to an input before it is an index: OPT and BART keep the first rows for padding."""


def rows_of_table(value: Value, depth: int = 0) -> int | None:
    """Rows of the largest table of vectors that an input indexes, less what is added to it."""
    rows = []
    for op, index in uses_behind(value):
        table = op.input(_TO_TABLE[op.key]) if op.key in _TO_TABLE else None
        if op.is_a("Add") and (offset := scalar(constant_of(op.operands[1 - index]))) is not None:
            later = rows_of_table(op.result, depth + 1) if depth < _OFFSETS else None
            rows += [later - int(offset)] if later is not None and is_integer(value) else []
            continue
        if table is None or index != (0 if op.key == "com.microsoft::EmbedLayerNormalization" else 1):
            continue
        shape = shape_of(table)
        axis = op.attrs.get("axis", op.attrs.get("gather_axis", 0))
        ranks = (2, 3) if op.domain else (2,)  # codes may have an axis of blocks
        if not op.domain and shape and shape[0] == 1 and axis == 1:  # laid out for a product that reads it, too
            shape, axis = shape[1:], 0
        if shape and len(shape) in ranks and isinstance(shape[0], int) and axis == 0:
            if _is_fixed(table):
                rows.append(shape[0])
    return max(rows, default=None)


def _is_fixed(value: Value) -> bool:
    """True if a value is a weight, stored as it is or in codes."""
    for _ in range(8):
        if constant_of(value) is not None:
            return True
        if value.op is None or not value.op.operands:
            return False
        value = value.op.operands[0]
    return False


def numbers_steps(value: Value) -> bool:
    """True if an input numbers steps: it is turned into angles, gives places to write to, or is compared with keys."""
    for op, index in uses_behind(value):
        if op.op_type == "RotaryEmbedding" and index == (1 if op.domain else 3):
            return True
        if op.is_a("com.microsoft::GroupQueryAttention") and index == 9:
            return True
        if op.is_a(*SCATTER) and index > 0:
            return True
        if op.op_type in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Sub") and len(op.operands) == 2:
            if any(o.op_type == "Range" for o, _ in makers(op.operands[1 - index])):
                return True
    return _turned_into_angles(value)


def looks_up(value: Value) -> bool:
    """True if an input indexes a weight. Beside the ids of a decoder, that are positions; ids do so, too."""
    lookups = ("Gather", "GatherND", "GatherElements")
    return any(op.is_a(*lookups) and index == 1 and _is_fixed(op.operands[0]) for op, index in uses_behind(value))


_INTO_ANGLES = frozenset(
    "Cast Unsqueeze Squeeze Reshape Expand Transpose Mul MatMul Einsum Concat Slice Identity".split()
)


def _turned_into_angles(start: Value) -> bool:
    """True if an input is multiplied into angles whose sine or cosine is taken."""
    todo, seen = [start], {start}
    while todo and len(seen) < NEARBY:
        for op in todo.pop().users:
            if op.is_a("Cos", "Sin"):
                return True
            if op.op_type in _INTO_ANGLES and not op.domain:
                todo += [r for r in op.results if r not in seen]
                seen.update(op.results)
    return False


def is_rotary(graph: Graph) -> bool:
    """True if halves or pairs of queries and keys are turned."""
    for op in graph.walk():
        if op.op_type == "RotaryEmbedding" or op.attrs.get("do_rotary") == 1:
            return True
        if op.is_a("Concat") and len(op.operands) == 2:
            first, _ = next(makers(op.operands[0]), (None, 0))
            if first is not None and first.is_a("Neg"):
                return True
    return False


_SUMS: dict[str, int | None] = {
    "Add": 2,
    "Sub": 2,
    "Sum": None,
    "com.microsoft::SkipLayerNormalization": 2,
    "com.microsoft::SkipSimplifiedLayerNormalization": 2,
}
"""Operators that add their first operands, and how many of them; `None` for all."""


def shares_positions(graph: Graph, ids: Value, own: Iterable[Value]) -> bool:
    """True if positions that all sequences have in common are added to what is computed from the ids.

    Padding at the left would then shift a sequence's positions. It does no harm where positions follow from what the
    mask holds, or an input numbers the steps of each sequence, nor where only distances count: rotary embeddings turn
    queries and keys, and biases are added to scores.

    Args:
        graph: A decoder with inferred types.
        ids: The input of token numbers.
        own: Inputs that say something about each sequence: the mask, positions with an axis of sequences.
    """
    content = _computed_from([ids])
    known = content | _computed_from(own)
    for op in graph.walk():
        if op.is_a("com.microsoft::EmbedLayerNormalization") and op.input(6) is None:
            return True
        terms = op.operands[: _SUMS.get(op.key, 0)]
        others = [v for v in terms if v not in known and _varies_with_steps(v)]
        if others and any(v in content for v in terms) and not _is_score(op):
            return True
    return False


def _computed_from(starts: Iterable[Value]) -> set[Value]:
    """Values that depend on what inputs hold, not only on how large they are."""
    todo = list(starts)
    seen = set(todo)
    while todo:
        for op, index in todo.pop().uses:
            if op.key in EXTENTS:
                continue
            results = _results_behind(op, index)
            todo += [r for r in results if r not in seen]
            seen.update(results)
    return seen


def _results_behind(op: Op, index: int) -> list[Value]:
    """Results computed from an operand: those of its op, or, where a branch returns it, that of the `If`."""
    owner = op.graph.parent if op.is_return and op.graph is not None else None
    if owner is None:
        return list(op.results)
    return list(owner.results[index : index + 1] if owner.op_type == "If" else owner.results)


def _varies_with_steps(value: Value) -> bool:
    """True unless a value is the same vector for all steps."""
    shape = shape_of(value)
    return shape is None or any(d != 1 for d in shape[:-1])


def _is_score(op: Op) -> bool:
    """True if a sum is one of scores, which Softmax turns into weights."""
    return any(o.op_type == "Softmax" for o in ops_within_reach(op.result))
