"""Chains of operations that only move or rename elements."""

from __future__ import annotations

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import same
from memoptc.ir.types import DType
from memoptc.passes.simplify._simplify.facts import (
    axes_of,
    forward,
    opset,
    require,
    require_plain_view,
    same_shape,
    shape_of,
    splat_of,
    tensor_type,
)
from memoptc.rewrite import Rule, op, rest, rewrite

VIEWS = tuple(sorted(ops.VIEWS - {"Identity"}))

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
    require_plain_view(inner)
    require_plain_view(outer)
    if tensor_type(x).shape is not None and same_shape(x, outer.result):
        return forward(x, outer.result)
    return _one_reshape(b, x, outer)


def _one_reshape(b: Builder, x: Value, outer: Op) -> Value:
    """Give the outer view of `x` as one Reshape to a constant shape, with at most one -1."""
    if x.tensor is not None:
        forward(x, outer.result)
    wanted = shape_of(outer.result)
    target = [d if isinstance(d, int) else -1 for d in wanted]
    require(0 not in target, "may be empty")
    if target.count(-1) > 1:
        # A 0 copies an extent of the operand; none may be left to inference then, since the copied one may be 0.
        here = shape_of(x)
        pairs = zip(wanted, (*here, *(None,) * len(wanted)), strict=False)
        target = [d if isinstance(d, int) else 0 if same(d, there) else -1 for d, there in pairs]
    require(target.count(-1) <= (0 not in target), "shape not known enough")
    if (ops.opset_of(b.graph) or 5) < 5:
        return b.Reshape(x, shape=target)  # type: ignore[no-any-return]
    return b.Reshape(x, np.asarray(target, np.int64))  # type: ignore[no-any-return]


_ONE_OPERAND = tuple(sorted(ops.UNARY - {"CastLike", "Clip", "Identity"}))


@rewrite(
    op.any(*VIEWS)(
        op.any(*_ONE_OPERAND)(op.any(*VIEWS)("x", rest("_a"), keep=True, bind="inner"), bind="unary"),
        rest("_b"),
        bind="outer",
    )
)
def view_around_unary(b: Builder, x: Value, inner: Op, unary: Op, outer: Op) -> Value:
    """An element-wise operator sees the same elements in the same order through every view."""
    require_plain_view(inner)
    require_plain_view(outer)
    shape_of(x)
    require(x.tensor is None, "a constant")
    moved = b.op(unary.op_type, [x], dict(unary.attrs)).result
    if moved.tensor_type is not None and same_shape(moved, outer.result):
        return moved
    return _one_reshape(b, moved, outer)


@rewrite(
    op.any(*VIEWS, "Transpose", "Expand", "Slice", "Tile")(
        op.ConstantOfShape("_shape", keep=True, bind="inner"), rest("_others"), bind="outer"
    )
)
def shape_of_constant(b: Builder, inner: Op, outer: Op) -> Value:
    """Equal elements under another shape are made in that shape at once."""
    type_ = tensor_type(outer.result)
    require(type_.static_shape is not None, "shape not known")
    size = type_.nbytes
    cheap = isinstance(size, int) and size <= _SMALL
    require(inner.result.single_use or cheap, "would be made twice")
    return b.ConstantOfShape(np.asarray(type_.static_shape, np.int64), **inner.attrs)  # type: ignore[no-any-return]


_SMALL = 4096


@rewrite(op.Concat(rest("parts"), bind="node"))
def concat_with_constant(b: Builder, parts: tuple[Value, ...], node: Op) -> Value:
    """Write a Concat with equal elements as a Pad, which needs no tensor of them."""
    require(opset(node) >= 11 and tensor_type(node.result).dtype in _PADDED, "Pad does not take this type")
    splats = [splat_of(p) for p in parts]
    others = [i for i, s in enumerate(splats) if s is None]
    require(len(others) == 1 and len(parts) > 1, "joins several")
    values = {s.tobytes(): s for s in splats if s is not None}
    require(len(values) == 1, "different elements")
    rank = len(shape_of(node.result))
    axis = node.attrs["axis"] % rank
    pads = np.zeros((2, rank), np.int64)
    for index, part in enumerate(parts):
        if index != others[0]:
            extent = shape_of(part)[axis]
            require(isinstance(extent, int), "extent not known")
            pads[int(index > others[0]), axis] += extent
    # The kernel divides by extents: an empty operand is not for it.
    require(all(isinstance(d, int) and d > 0 for d in shape_of(parts[others[0]])), "may be empty")
    return b.Pad(parts[others[0]], pads.reshape(-1), next(iter(values.values())))  # type: ignore[no-any-return]


_PADDED = (DType.FLOAT, DType.DOUBLE, DType.INT32, DType.INT64)


@rewrite(op.Transpose("x", bind="node"))
def transpose_of_unit_axes(b: Builder, x: Value, node: Op) -> Value:
    shape = shape_of(x)
    moved = [p for p in _perm(node, len(shape)) if shape[p] != 1]
    require(moved == sorted(moved), "moves elements")
    return _one_reshape(b, x, node)


@rewrite(op.Squeeze(op.Transpose(op.any(*VIEWS)(rest("_x"), bind="view"), bind="node"), rest("_axes"), bind="outer"))
def squeeze_of_transpose(b: Builder, view: Op, node: Op, outer: Op) -> Value:
    """An axis of extent 1 goes before a Transpose instead of behind it, where it becomes part of the view there."""
    shape = shape_of(node.result)
    axes = axes_of(outer)
    gone = [i for i, d in enumerate(shape) if d == 1] if axes is None else [a % len(shape) for a in axes]
    require(axes is not None or all(isinstance(d, int) for d in shape), "axes not known")
    require(bool(gone) and all(shape[a] == 1 for a in gone), "no unit axes")
    perm = _perm(node, len(shape))
    before = sorted(perm[a] for a in gone)
    kept = [p for i, p in enumerate(perm) if i not in gone]
    places = {p: i for i, p in enumerate(sorted(kept))}
    squeezed = b.Squeeze(view.result, axes=before) if opset(node) < 13 else b.Squeeze(view.result, np.asarray(before))
    return b.Transpose(squeezed, perm=[places[p] for p in kept]) if kept else squeezed  # type: ignore[no-any-return]


@rewrite(
    op.any(*VIEWS)(
        op.Transpose(op.any(*VIEWS)("x", rest("_a"), keep=True, bind="inner"), keep=True, bind="node"),
        rest("_b"),
        bind="outer",
    )
)
def transpose_of_merged_axes(b: Builder, x: Value, inner: Op, node: Op, outer: Op) -> Value:
    """Leading axes that are merged, stay in front and are split again need not be merged for a Transpose.

    A 0 in a computed target copies an extent of the operand. In front that is 0, too, as the batch is; behind the
    operand's last axis there is none to copy, and onnxruntime refuses to run the original.
    """
    whole, merged, wanted = shape_of(x), shape_of(inner.result), shape_of(outer.result)
    perm, lead = _perm(node, len(merged)), len(whole) - len(merged) + 1
    require(len(merged) > 1 and lead > 1 and len(wanted) == len(whole), "merges no axes")
    require(perm[0] == 0 and node.result.single_use, "moves the merged axis")
    moved = [*range(lead), *(p - 1 + lead for p in perm[1:])]
    known = zip((*whole[lead:], *(whole[p] for p in moved)), (*merged[1:], *wanted), strict=True)
    require(all(same(a, b) for a, b in known), "other extents")
    safe = all(i >= len(merged) or (isinstance(d, int) and d > 0) for i, d in enumerate(wanted) if i)
    require(safe or not _computed(inner, outer), "reshapes to a computed shape")
    return b.Transpose(x, perm=moved)  # type: ignore[no-any-return]


def _computed(*views: Op) -> bool:
    """True if a view is a Reshape to a computed shape."""
    return any(v.is_a("Reshape") and "shape" not in v.attrs and v.operands[1].tensor is None for v in views)


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
    transpose_twice, view_of_view, view_around_unary, shape_of_constant, transpose_of_unit_axes,
    transpose_of_merged_axes, squeeze_of_transpose, concat_of_concat,
    concat_of_split, concat_with_constant, cast_there_and_back,
)  # fmt: skip
