"""Operands with heads inside, [batch, rows, heads * width], from those with heads outside, as exporters write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import same
from memoptc.ir.ops import opset_of
from memoptc.ir.tensors import ints, scalar
from memoptc.passes.fuse._fuse.core import shape_of


@dataclass(frozen=True)
class Source:
    """Origin of a value's elements before transposes, and before one part was taken.

    Args:
        value: What holds them.
        axes: Of the wanted axes, in the wanted order, where each lies in `value`.
        taken: An axis of `value` of which one place is wanted, and which place; all other axes have one element.
    """

    value: Value
    axes: tuple[int, ...]
    taken: tuple[int, int] | None = None


def source(value: Value, axes: Sequence[int], graph: Graph) -> Source:
    """Look through transposes, and what takes one of several parts that were computed together.

    Args:
        value: A value.
        axes: Its axes in the wanted order.
        graph: Where to look.
    """
    found = Source(value, tuple(axes))
    while found.value.op is not None and found.value.op.graph is graph:
        before = _before(found, found.value.op)
        if before is None:
            break
        found = before
    return found


def _before(at: Source, op: Op) -> Source | None:
    if op.is_a("Transpose"):
        rank = len(shape_of(op.operand))
        perm = op.attrs.get("perm") or tuple(reversed(range(rank)))
        taken = (perm[at.taken[0]], at.taken[1]) if at.taken is not None else None
        return Source(op.operand, tuple(perm[a] for a in at.axes), taken)
    if op.is_a("Squeeze"):
        rank = len(shape_of(op.operand))
        axes = op.attrs.get("axes")
        given = op.input(1)
        if axes is None and given is not None:
            axes = ints(given.tensor)
        if not axes or not rank:
            return None
        gone = {int(a) % rank for a in axes}
        kept = [i for i in range(rank) if i not in gone]
        taken = (kept[at.taken[0]], at.taken[1]) if at.taken is not None else None
        return Source(op.operand, tuple(kept[a] for a in at.axes), taken)
    return None if at.taken is not None else _source_of_index(at, op)


def _source_of_index(at: Source, op: Op) -> Source | None:
    """The value of which an op takes one index of an axis."""
    shape = shape_of(op.operand) if op.operands else ()
    if op.is_a("Gather"):
        axis = int(op.attrs.get("axis", 0)) % max(len(shape), 1)
        index = scalar(op.operands[1].tensor)
        if index is None or shape_of(op.operands[1]) != () or not shape:
            return None
        place = _normalized_index(int(index), shape[axis])
        moved = tuple(a if a < axis else a + 1 for a in at.axes)
        return None if place is None else Source(op.operand, moved, (axis, place))
    result = shape_of(at.value)
    if op.is_a("Split"):
        axis = int(op.attrs.get("axis", 0)) % max(len(shape), 1)
        single = all(shape_of(r)[axis : axis + 1] == (1,) for r in op.results)
        return Source(op.operand, at.axes, (axis, at.value.index)) if single and axis not in at.axes else None
    if op.is_a("Slice"):
        starts, axes = _sliced(op)
        if starts is None or axes is None or len(axes) != 1 or not shape:
            return None
        axis = axes[0] % len(shape)
        place = _normalized_index(starts[0], shape[axis])
        if place is not None and axis not in at.axes and result[axis : axis + 1] == (1,):
            return Source(op.operand, at.axes, (axis, place))
    return None


def _sliced(op: Op) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    if "starts" in op.attrs:
        return op.attrs["starts"], op.attrs.get("axes", tuple(range(len(op.attrs["starts"]))))
    starts, axes = op.operands[1], op.input(3)
    known = ints(starts.tensor)
    if axes is None:
        return known, tuple(range(len(known))) if known is not None else None
    return known, ints(axes.tensor)


def _normalized_index(index: int, extent: object) -> int | None:
    """Index counted from the front; `None` where it is not known to be in range."""
    if not isinstance(extent, int) or not -extent <= index < extent:
        return None
    return index % extent


def inside(b: Builder, at: Source) -> Value:
    """Give [batch, rows, heads, width] as [batch, rows, heads * width]."""
    value, axes = at.value, at.axes
    shape = shape_of(value)
    wanted = [shape[a] for a in axes]
    assert isinstance(wanted[2], int)
    assert isinstance(wanted[3], int)
    width = wanted[2] * wanted[3]
    if at.taken is not None:
        value = _part(b, value, at.taken)
    elif is_inside(at) and (before := unsplit(value, width)) is not None:
        return before
    if axes[:2] != (0, 1) or list(axes) != sorted(axes):
        others = [i for i in range(len(shape)) if i not in axes]
        value = b.Transpose(value, perm=[*axes, *others])
    return b.Reshape(value, np.asarray([0, 0, width], np.int64))  # type: ignore[no-any-return]


def is_inside(at: Source) -> bool:
    """True if nothing has to be moved to put the heads inside."""
    return at.taken is None and at.axes[:2] == (0, 1) and list(at.axes) == sorted(at.axes)


def _part(b: Builder, value: Value, taken: tuple[int, int]) -> Value:
    axis, place = taken
    if (opset_of(b.graph) or 13) < 10:
        return b.op("Slice", [value], {"axes": [axis], "starts": [place], "ends": [place + 1]}).result
    cut = [np.asarray([n], np.int64) for n in (place, place + 1, axis)]
    return b.Slice(value, *cut)  # type: ignore[no-any-return]


def unsplit(value: Value, width: int) -> Value | None:
    """The value that a Reshape split into heads, when they were its innermost axes already."""
    op = value.op
    if op is None or not op.is_a("Reshape"):
        return None
    flat, shape = shape_of(op.operand), shape_of(value)
    fits = len(flat) == 3 and flat[2] == width and same(flat[0], shape[0]) and same(flat[1], shape[1])
    return op.operand if fits else None


def outside(b: Builder, value: Value, heads: int, width: int) -> Value:
    """Give [batch, rows, heads * width] as [batch, heads, rows, width]."""
    apart = b.Reshape(value, np.asarray([0, 0, heads, width], np.int64))
    return b.Transpose(apart, perm=[0, 2, 1, 3])  # type: ignore[no-any-return]


def merged_again(value: Value) -> list[Value]:
    """Results that merge the heads of [batch, heads, rows, width] again, if all users do so; [] otherwise."""
    shape = shape_of(value)
    found: list[Value] = []
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        return found
    for user in value.users:
        turned = user.is_a("Transpose") and user.graph is value.graph
        if not turned or tuple(user.attrs.get("perm", ())) != (0, 2, 1, 3):
            return []
        for last in user.result.users:
            flat = shape_of(last.result) if last.is_a("Reshape") else ()
            if last.operands[:1] != (user.result,) or len(flat) != 3 or flat[2] != shape[1] * shape[3]:
                return []
            if not same(flat[0], shape[0]) or not same(flat[1], shape[2]):
                return []
            found.append(last.result)
    return found
