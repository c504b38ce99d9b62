"""Chains of operations that only move or rename elements."""

from __future__ import annotations

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.types import DType
from memoptc.passes._simplify.facts import forward, require, same_shape, shape_of, tensor_type
from memoptc.rewrite import Rule, op, rest, rewrite

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

_D = DType
_WIDER = {
    _D.BOOL: {_D.INT8, _D.UINT8, _D.INT16, _D.INT32, _D.INT64, _D.FLOAT, _D.DOUBLE},
    _D.INT8: {_D.INT16, _D.INT32, _D.INT64, _D.FLOAT, _D.DOUBLE},
    _D.UINT8: {_D.INT16, _D.UINT16, _D.INT32, _D.INT64, _D.FLOAT, _D.DOUBLE},
    _D.INT16: {_D.INT32, _D.INT64, _D.FLOAT, _D.DOUBLE},
    _D.INT32: {_D.INT64, _D.DOUBLE},
    _D.FLOAT16: {_D.FLOAT, _D.DOUBLE},
    _D.BFLOAT16: {_D.FLOAT, _D.DOUBLE},
    _D.FLOAT: {_D.DOUBLE},
}
"""Element types that hold every value of the key exactly."""


def _perm(node: Op, rank: int) -> tuple[int, ...]:
    return tuple(node.attrs.get("perm", range(rank - 1, -1, -1)))


@rewrite(op.Transpose(op.Transpose("x", bind="inner", keep=True), bind="outer"))
def transpose_twice(b: Builder, x: Value, inner: Op, outer: Op) -> Value:
    rank = len(shape_of(outer.result))
    first, second = _perm(inner, rank), _perm(outer, rank)
    perm = [first[p] for p in second]
    if perm == list(range(rank)):
        return forward(x, outer.result)
    require(inner.result.single_use, "the inner result has other users")
    return b.Transpose(x, perm=perm)  # type: ignore[no-any-return]


@rewrite(op.any(*VIEWS)(op.any(*VIEWS)("x", rest("_a"), keep=True, bind="inner"), rest("_b"), bind="outer"))
def view_of_view(b: Builder, x: Value, inner: Op, outer: Op) -> Value:
    if tensor_type(x).shape is not None and same_shape(x, outer.result):
        return forward(x, outer.result)
    return _one_reshape(b, x, outer)


def _one_reshape(b: Builder, x: Value, outer: Op) -> Value:
    """Give the outer view of `x` as one Reshape to a constant shape, with at most one -1."""
    if x.tensor is not None:
        forward(x, outer.result)
    target = [d if isinstance(d, int) else -1 for d in shape_of(outer.result)]
    require(target.count(-1) <= 1 and 0 not in target, "shape not known enough")
    return b.Reshape(x, np.asarray(target, np.int64))  # type: ignore[no-any-return]


@rewrite(op.Transpose("x", bind="node"))
def transpose_of_unit_axes(b: Builder, x: Value, node: Op) -> Value:
    shape = shape_of(x)
    moved = [p for p in _perm(node, len(shape)) if shape[p] != 1]
    require(moved == sorted(moved), "moves elements")
    return _one_reshape(b, x, node)


@rewrite(op.Concat(rest("parts"), bind="node"))
def concat_of_concat(b: Builder, parts: tuple[Value, ...], node: Op) -> Value:
    rank = len(shape_of(node.result))
    axis = node.attrs.get("axis", 1) % rank
    flat: list[Value] = []
    for part in parts:
        inner = part.op
        if (
            inner is not None
            and inner.is_a("Concat")
            and part.single_use
            and inner.graph is node.graph
            and inner.attrs.get("axis", 1) % rank == axis
        ):
            flat.extend(inner.operands)
        else:
            flat.append(part)
    require(len(flat) > len(parts), "nothing to merge")
    return b.Concat(*flat, axis=axis)  # type: ignore[no-any-return]


@rewrite(op.Concat(rest("parts"), bind="node"))
def concat_of_split(b: Builder, parts: tuple[Value, ...], node: Op) -> Value:
    split = parts[0].op
    require(split is not None and split.is_a("Split"), "no split")
    assert split is not None
    require(parts == split.results, "other parts or order")
    rank = len(shape_of(node.result))
    require(node.attrs.get("axis", 1) % rank == split.attrs.get("axis", 0) % rank, "another axis")
    require(same_shape(split.operand, node.result), "may leave something out")
    return forward(split.operand, node.result)


@rewrite(op.Cast(op.Cast("x", keep=True, bind="_inner"), bind="outer"))
def cast_there_and_back(b: Builder, x: Value, outer: Op) -> Value:
    start, between = tensor_type(x).dtype, tensor_type(outer.operand).dtype
    require(int(start) == outer.attrs.get("to"), "to another type")
    require(between in _WIDER.get(start, ()), "not exact")
    return forward(x, outer.result)


RULES: tuple[Rule, ...] = (
    transpose_twice, view_of_view, transpose_of_unit_axes, concat_of_concat, concat_of_split, cast_there_and_back,
)  # fmt: skip
