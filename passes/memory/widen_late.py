"""widen-late: make values large as late as possible: broadcasts, casts to wider types, dequantization."""

from __future__ import annotations

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dataflow import on_demand
from memoptc.ir.dims import Dim, same
from memoptc.ir.ops import BINARY, UNARY, VARIADIC, opset_of
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.passes.memory._widen.uniform import Uniform, keeps
from memoptc.passes.simplify._simplify.facts import opset, require, shape_of, tensor_type
from memoptc.rewrite import Rule, apply_rules, op, rest, rewrite

BROADCASTS = 8
"""Opset from which on all element-wise operators broadcast as numpy does."""

_SHRINKING = ("Gather", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Moves elements and makes no more of them."""

_MOVABLE = frozenset(
    {
        DType.BOOL, DType.INT8, DType.UINT8, DType.INT16, DType.UINT16, DType.INT32, DType.UINT32, DType.FLOAT16,
        DType.FLOAT,
    }
)  # fmt: skip


class WidenLate(Pass):
    """Move what makes a value larger behind what commutes with it.

    A broadcast (Expand, ConstantOfShape, or a mask in which an axis turns out to say nothing) is taken back where all
    that uses it broadcasts anyway, through any element-wise ops between. A Cast to a wider type and a DequantizeLinear
    of one scale go behind Transpose, Slice and Gather, a Cast behind a Concat of such. Every element stays the same.

    That ends: each rule takes a Cast or DequantizeLinear past an op that moves elements, towards the outputs, and makes
    none of those; the walk over broadcasts goes backwards once.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Rules to a fixed point, then broadcasts, the last ones first."""
        apply_rules(graph, _RULES, context.stats, context.artefacts.declined, context.artefacts.trace)
        last, known = graph.last if (opset_of(graph) or 0) >= BROADCASTS else None, Uniform()
        while last is not None:
            before = last.prev
            if not last.is_return and len(last.results) == 1 and _take_back(last.result, known):
                context.stats["broadcasts"] += 1
            last = before


def _take_back(value: Value, known: Uniform) -> bool:
    """Give all users of a value a smaller one, without the axes along which it is repeated."""
    axes = known.axes(value) if value.has_uses and value.tensor is None else frozenset()
    for user, index in value.uses if axes else ():
        if user.graph is not value.graph or not _broadcasts(user) or not axes:
            return False
        if all(v is value or len(_extents(v)) < len(_extents(value)) for v in user.operands):
            return False
        axes = frozenset(a for a in axes if keeps(user, index, a))
    shrink = _Shrink(known)
    if not axes or value.op is None or not shrink.possible(value, axes):
        return False
    assert value.op.graph is not None
    b = Builder(value.op.graph, before=value.op, loc=value.op.loc.union(rule="widen-late"))
    small = shrink.made(value, axes, b)
    value.replace_by(small)
    value.op.erase()
    return True


def _broadcasts(op: Op) -> bool:
    """True if an op computes element by element, and all its operands broadcast against each other."""
    return op.op_type in BINARY | VARIADIC and op.op_type != "PRelu" and not op.domain


def _extents(value: Value) -> tuple[Dim, ...]:
    return value.shape or ()


def _inside(value: Value, operand: Value, axes: frozenset[int]) -> frozenset[int]:
    """Those axes of a value that an operand has, too, at their places there."""
    own = _extents(operand)
    more = len(_extents(value)) - len(own)
    return frozenset(a - more for a in axes if a >= more and own[a - more] != 1)


_Part = tuple[Value, frozenset[int]]
"""A value, and the axes that it shall lose."""


class _Shrink:
    """Makes values without some axes; extents of 1 may be missing in front. What is used twice is made once."""

    def __init__(self, known: Uniform) -> None:
        self._known = known
        self._possible: dict[_Part, bool] = {}
        self._made: dict[_Part, Value] = {}

    def possible(self, value: Value, axes: frozenset[int]) -> bool:
        """True if a value without some axes can be had from what is there."""
        return on_demand((value, axes), self._from, self._is_possible, self._possible)

    def _from(self, part: _Part) -> list[_Part]:
        """Values that have to be shrunk for that, of those it is made of."""
        value, axes = part
        maker = value.op
        if not axes or maker is None or maker.is_a("ConstantOfShape") or self._known.truth(value) is not None:
            return []
        if maker.is_a("Expand"):
            return [(maker.operands[0], _inside(value, maker.operands[0], axes))]
        if not _broadcasts(maker) and (maker.op_type not in UNARY or maker.domain):
            return []
        return [(v, _inside(value, v, axes)) for v in maker.operands if not v.is_absent]

    def _is_possible(self, part: _Part, known: dict[_Part, bool]) -> bool:
        value, axes = part
        maker = value.op
        if not axes or maker is None:
            return not axes
        whole = frozenset(i for i, d in enumerate(_extents(value)) if d != 1)
        if maker.is_a("ConstantOfShape") or self._known.truth(value) is not None:
            return axes == whole
        inside = self._from(part)
        if maker.is_a("Expand"):
            operand = maker.operands[0]
            more = len(_extents(value)) - len(_extents(operand))
            repeated = {i for i in whole if i < more or _extents(operand)[i - more] == 1}
            whole_there = all(same(_extents(operand)[i - more], _extents(value)[i]) for i in whole - axes - repeated)
            return repeated <= axes and whole_there and known[inside[0]]
        return bool(inside) and all(known[i] for i in inside)

    def made(self, value: Value, axes: frozenset[int], b: Builder) -> Value:
        """A value without some axes, where that is possible."""
        return on_demand((value, axes), self._from, lambda part, known: self._make(part, known, b), self._made)

    def _make(self, part: _Part, known: dict[_Part, Value], b: Builder) -> Value:
        value, axes = part
        if not axes:
            return value
        truth, maker = self._known.truth(value), value.op
        assert maker is not None
        if truth is not None:
            return b.const(np.array(truth))
        if maker.is_a("ConstantOfShape"):
            content = maker.attrs.get("value")
            return b.const(np.zeros((), np.float32) if content is None else content.numpy().reshape(()))
        if maker.is_a("Expand"):
            return known[self._from(part)[0]]
        operands = [v if v.is_absent else known[v, _inside(value, v, axes)] for v in maker.operands]
        return b.op(maker.op_type, operands, dict(maker.attrs), domain=maker.domain).result


def _widens(inner: Op) -> bool:
    """True if a Cast's result takes more bytes than its operand, whose type all kernels that move elements have."""
    narrow, wide = tensor_type(inner.operands[0]).dtype, tensor_type(inner.result).dtype
    return narrow in _MOVABLE and wide != DType.STRING and narrow.bitwidth < wide.bitwidth


@rewrite(op.any(*_SHRINKING)(op.Cast("x", bind="cast"), rest("others"), bind="move"))
def cast_behind_move(b: Builder, x: Value, cast: Op, others: tuple[Value, ...], move: Op) -> Value:
    """Move fewer bytes."""
    require(_widens(cast) and x.tensor is None, "does not widen")
    require(_keeps_count(move), "may repeat elements")
    moved = b.op(move.op_type, [x, *others], dict(move.attrs)).result
    return b.op("Cast", [moved], dict(cast.attrs)).result


@rewrite(op.any(*_SHRINKING)(op.DequantizeLinear("x", rest("scales"), bind="inner"), rest("others"), bind="move"))
def dequantize_behind_move(
    b: Builder, x: Value, scales: tuple[Value, ...], inner: Op, others: tuple[Value, ...], move: Op
) -> Value:
    """Move codes instead of floats."""
    require(x.tensor is None and tensor_type(x).dtype in _MOVABLE, "a weight, or a type that is not moved")
    require(all(s.is_absent or shape_of(s) == () for s in scales), "a scale for each of some axis")
    require(not inner.attrs.get("block_size", 0), "scales of blocks")
    require(_keeps_count(move), "may repeat elements")
    moved = b.op(move.op_type, [x, *others], dict(move.attrs)).result
    return b.op("DequantizeLinear", [moved, *scales], dict(inner.attrs)).result


def _keeps_count(move: Op) -> bool:
    """True if there are no more elements behind a move than before it."""
    if not move.is_a("Gather"):
        return True
    if tensor_type(move.operands[1]).elements == 1:
        return True
    before, after = tensor_type(move.operands[0]).elements, tensor_type(move.result).elements
    return isinstance(before, int) and isinstance(after, int) and after <= before


@rewrite(op.Concat(rest("parts"), bind="node"))
def casts_behind_concat(b: Builder, parts: tuple[Value, ...], node: Op) -> Value:
    """Join what is small."""
    casts = [p.op for p in parts]
    require(len(parts) > 1 and all(c is not None and c.is_a("Cast") and _widens(c) for c in casts), "not all are cast")
    kinds = {tensor_type(c.operands[0]).dtype for c in casts if c is not None}
    require(len(kinds) == 1 and all(p.single_use for p in parts), "different types, or used otherwise")
    require(opset(node) >= 4, "another Concat")
    joined = b.op("Concat", [c.operands[0] for c in casts if c is not None], dict(node.attrs)).result
    return b.op("Cast", [joined], dict(casts[0].attrs) if casts[0] is not None else {}).result


_RULES: tuple[Rule, ...] = (cast_behind_move, dequantize_behind_move, casts_behind_concat)
