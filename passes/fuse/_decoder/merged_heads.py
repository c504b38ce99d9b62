"""Attention whose heads were merged with the batch, [batch * heads, rows, columns], with the two apart again.

BLOOM, and what PyTorch wrote as `bmm` (BART, OPT, Whisper of earlier years), computes so. Products of the same matrices
give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.types import TensorType
from memoptc.passes.fuse._fuse.core import scaled_by, shape_of

_LAST = (2, -1)


class _Apart(NamedTuple):
    """A value with batch and heads apart, and one that the chain started from, which has the same batch and heads."""

    value: Value
    given: Value


@dataclass
class _Chain:
    """The ops between where heads are merged with the batch and where they are taken apart.

    Args:
        merged: What holds both in one axis -> the extents with the two apart.
        ops: The ops of it, as they follow each other.
    """

    merged: dict[Value, tuple[Dim, ...]] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)


def unmerge_heads(graph: Graph) -> int:
    """Write products over [batch * heads, ...] as over [batch, heads, ...]; how many it concerned.

    Only where all that is computed from the merged form is taken apart again, and shapes show that it is the same
    batch and the same heads everywhere.

    Args:
        graph: A graph, shapes inferred; its regions are left alone.
    """
    chain = _closed(_chain(graph))
    apart: dict[Value, _Apart] = {}
    count = 0
    for op in chain.ops:
        count += op.is_a("MatMul")
        _rewrite(op, chain, apart)
    for op in reversed(chain.ops):
        if not op.result.has_uses:
            op.erase()
    return count


def _chain(graph: Graph) -> _Chain:
    found = _Chain()
    for op in graph.ops:
        if op.domain or len(op.results) != 1:
            continue
        shape = _extents(op, found)
        if shape is not None:
            found.ops.append(op)
            if len(shape_of(op.result)) == 3:
                found.merged[op.result] = shape
    return found


def _extents(op: Op, found: _Chain) -> tuple[Dim, ...] | None:
    """Extents of a result with batch and heads apart; `None` for an op that is no part of a chain."""
    given = [found.merged.get(v) for v in op.operands]
    first, shape = next((g for g in given if g is not None), None), shape_of(op.result)
    if op.is_a("Reshape"):
        before = shape_of(op.operand)
        if first is None:
            if len(before) != 4 or len(shape) != 3 or not isinstance(before[1], int) or before[1] < 2:
                return None
            rows = None if before[0] is None else before[0] * before[1]
            return before if _reshaped((rows, *before[2:]), shape) else None
        return shape if len(shape) == 4 and shape[1] == first[1] and _reshaped(first, shape) else None
    if first is None or len(shape) != 3:
        return None
    whole = (*first[:2], *shape[1:])
    if op.is_a("Transpose"):
        return whole if tuple(op.attrs.get("perm", ())) == (0, 2, 1) else None
    if op.is_a("Softmax"):
        return whole if op.attrs.get("axis", -1) in _LAST else None
    if op.is_a("MatMul"):
        both = given[0] is not None and given[1] is not None and _alike(given[0][:2], given[1][:2])
        return whole if both else None
    if op.is_a("Mul", "Div") and scaled_by(op) is not None:
        return whole
    if op.is_a("Add"):
        known = [
            _added(v, op) if g is None else _alike(g[:2], first[:2]) for g, v in zip(given, op.operands, strict=True)
        ]
        return whole if all(known) else None
    return None


def _added(value: Value, op: Op) -> bool:
    """True if what is added has one row of numbers for each merged row, or the same for all."""
    shape = shape_of(value)
    other = shape_of(op.operands[1] if value is op.operands[0] else op.operands[0])
    if value.shape is None:
        return False
    return not shape or (len(shape) == 3 and (shape[0] == 1 or same(shape[0], other[0])))


def _alike(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def _reshaped(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    """True if two shapes with as many elements are the same: all extents but one agree, and so does that one."""
    return sum(not same(x, y) for x, y in zip(a, b, strict=True)) <= 1


def _closed(chain: _Chain) -> _Chain:
    """The part of which nothing else reads the merged form, if there is a product in it."""
    ops = list(chain.ops)
    while True:
        kept = set(ops)
        made = {op.result for op in ops}
        left = [op for op in ops if _stays(op, kept, made, chain)]
        if len(left) == len(ops):
            break
        ops = left
    return _Chain(chain.merged, ops if any(op.is_a("MatMul") for op in ops) else [])


def _stays(op: Op, kept: set[Op], made: set[Value], chain: _Chain) -> bool:
    starts = len(shape_of(op.operands[0])) == 4
    fed = starts or all(v in made for v in op.operands if v in chain.merged)
    ends = len(shape_of(op.result)) == 4
    return fed and (ends or (op.result.has_uses and all(user in kept for user in op.result.users)))


def _rewrite(op: Op, chain: _Chain, apart: dict[Value, _Apart]) -> None:
    b = Builder(op.graph, before=op, loc=op.loc.union(rule="heads-apart"))  # type: ignore[arg-type]
    if len(shape_of(op.operands[0])) == 4:
        apart[op.result] = _Apart(op.operand, op.operand)
        return
    value, given = next(apart[v] for v in op.operands if v in apart)
    if op.is_a("Reshape"):
        op.result.replace_by(value)
        return
    if op.is_a("Transpose"):
        made = b.Transpose(value, perm=[0, 1, 3, 2])
    elif op.is_a("Softmax"):
        made = b.Softmax(value, axis=-1)
    else:
        operands = [apart[v].value if v in apart else _split(b, v, given) for v in op.operands]
        made = b.op(op.op_type, operands, dict(op.attrs)).result
    apart[op.result] = _Apart(made, given)


def _split(b: Builder, value: Value, given: Value) -> Value:
    """Numbers for each merged row with batch and heads apart, which are those of `given`."""
    shape = shape_of(value)
    if len(shape) < 3 or shape[0] == 1:
        return value
    start, two, three = (np.asarray([n], np.int64) for n in (0, 2, 3))
    first, rest = b.Slice(b.Shape(given), start, two), b.Slice(b.Shape(value), np.asarray([1], np.int64), three)
    wide = TensorType(value.dtype, (*shape_of(given)[:2], *shape[1:])) if value.dtype else None
    return b.Reshape(value, b.Concat(first, rest, axis=0), _type=wide)  # type: ignore[no-any-return]
