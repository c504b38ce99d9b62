"""narrow: compute no more than what is taken: Slice and Gather move before what makes their operand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim
from memoptc.ir.iteration import Axis, Form, iteration_space
from memoptc.ir.ops import VIEWS, is_pure, opset_of
from memoptc.ir.ops.extent import runs_on_part
from memoptc.ir.tensors import ints
from memoptc.ir.types import TensorType
from memoptc.pass_base import Context, Pass
from memoptc.passes.memory._narrow.crop import fold_slice_into_pads
from memoptc.passes.memory._narrow.merge import merge
from memoptc.passes.simplify._simplify.slice_ranges import keeps_some, may_be_sliced

_SLICE_OPERANDS = 10
"""Opset since which Slice has its bounds as operands."""

_PASSED = 8
"""Slices and Gathers that another one passes in one go, at most: bounds the work for each."""


class Narrow(Pass):
    """Take a part of the operands instead of a part of the result, as far up as that goes.

    What becomes of one token of a sequence, or of some channels, needs the others only where they meet: in attention
    keys and values, not in the layers behind it. A Slice or Gather along one axis moves before an op whose result
    nothing else uses and whose elements along that axis each need those at the same place, and no others. What a Slice
    cuts off the image that a transposed convolution gives becomes padding of that. Two Slices in a row become one.
    Outputs may differ by float noise, since kernels add up in another order for other shapes.

    Slices and Gathers along different axes commute, so one moves past others only together with an op that is neither.
    That ends: the measure that falls with every change is, compared in this order, how many Gathers drop their axis
    (the others keep theirs, and a Squeeze drops it behind them); for each Slice and Gather, how many other ops it
    depends on, compared as multisets, since a move replaces one by some for which there are fewer; and how many Slices
    there are.

    Args:
        reshapes: Also before a Reshape, to extents one of which becomes that of the part. Behind attention
            that computes the queries of the tokens that are read alone; over a cache it is not recognised any more.
    """

    reshapes: bool = False

    def run(self, graph: Graph, context: Context) -> None:
        """Move every Slice and Gather as far up as it goes, those nearest to the outputs first; then merge Slices."""
        for op in list(graph.walk("Slice")):
            context.stats["slices merged"] += op.graph is not None and merge(op, same_axis=True)
        todo = [op for op in graph.walk() if op.is_a("Slice", "Gather")]
        while todo:
            op = todo.pop()
            if op.graph is None:
                continue
            if fold_slice_into_pads(op):
                context.stats["into pads"] += 1
                continue
            take = _take(op, reshapes=self.reshapes)
            if take is None or not _leads_on(op, take):
                continue
            moved = _move(op, take)
            if moved is not None:
                context.stats[f"before {moved.over}"] += 1
                todo += moved.taken
        for op in list(graph.walk("Slice")):
            context.stats["slices merged"] += op.graph is not None and merge(op)
        context.stats += Counter()


@dataclass(frozen=True)
class _Take:
    """Part that a Slice or Gather takes.

    Args:
        axis: Of its operand, along which.
        drops: Whether that axis goes.
        extent: Elements of the part.
        reshapes: Whether it may move before a Reshape.
    """

    axis: int
    drops: bool
    extent: Dim
    reshapes: bool


@dataclass(frozen=True)
class _Moved:
    over: str
    taken: list[Op]


def _take(op: Op, *, reshapes: bool) -> _Take | None:
    """The part that an op takes, when it is a part of one axis."""
    shape = op.operands[0].shape
    if shape is None or not shape:
        return None
    if op.op_type == "Gather":
        axis = int(op.attrs.get("axis", 0))
        axis = axis + len(shape) if axis < 0 else axis
        index = op.operands[1].shape
        if index == ():
            return _Take(axis, True, 1, reshapes)
        if index is not None and len(index) == 1 and _fewer(index[0], shape[axis]):
            return _Take(axis, False, index[0], reshapes)
        return None
    axes, part = _slice_axes(op, len(shape)), op.result.shape
    if axes is None or len(axes) != 1:
        return None
    return _Take(axes[0], False, None if part is None else part[axes[0]], reshapes)


def _fewer(count: Dim, extent: Dim) -> bool:
    return isinstance(count, int) and (count <= 1 or (isinstance(extent, int) and count < extent))


def _slice_axes(op: Op, rank: int) -> list[int] | None:
    """The axes that a Slice cuts; `None` when they, or a step backwards, are not known."""
    if "starts" in op.attrs:
        starts = op.attrs["starts"]
        axes = op.attrs.get("axes", range(len(starts)))
    else:
        given = op.input(3)
        count = op.operands[1].shape
        if given is None:
            axes = range(count[0]) if count is not None and isinstance(count[0], int) else None
        else:
            axes = None if given.tensor is None else given.tensor.numpy().reshape(-1).tolist()
    return None if axes is None else [int(a) + rank if a < 0 else int(a) for a in axes]


def _leads_on(op: Op, take: _Take) -> bool:
    """True if behind the other Slices and Gathers that make an op's operand, there is another op that it can pass."""
    value, place = op.operands[0], take.axis
    for _ in range(_PASSED):
        axis = _passable(value, replace(take, axis=place), op.graph)
        if axis is None or value.op is None:
            return False
        if not value.op.is_a("Slice", "Gather") or _take(value.op, reshapes=take.reshapes) is None:
            return True
        along = axis.operands[0]
        if along is None:
            return False
        value, place = value.op.operands[0], along.axis
    return False


def _passable(value: Value, take: _Take, graph: Graph | None) -> Axis | None:
    """The axis along which a part of a value can be computed from parts of its maker's operands, if nothing else needs
    the rest.
    """
    maker = value.op
    if maker is None or maker.graph is not graph or not value.single_use or maker.regions:
        return None
    if maker.is_const or not is_pure(maker) or any(r.has_uses for r in maker.results if r is not value):
        return None
    axis = _axis(maker, maker.results.index(value), take)
    cut = zip(maker.operands, axis.operands, strict=True) if axis is not None else ()
    return axis if all(along is None or may_be_sliced(operand) for operand, along in cut) else None


def _move(op: Op, take: _Take) -> _Moved | None:
    """Put a Slice or Gather before what makes its operand."""
    value = op.operands[0]
    maker, axis = value.op, _passable(value, take, op.graph)
    if maker is None or axis is None:
        return None
    if not runs_on_part(maker, take.extent, never_alone_empty=keeps_some(op)):
        return None
    assert op.graph is not None
    # what is moved past a chain of makers stands for none of them: each would be named in each otherwise
    b = Builder(op.graph, before=op, loc=op.loc.union(rule="narrow"))
    taken: list[Op] = []
    operands: list[Value] = []
    for operand, along in zip(maker.operands, axis.operands, strict=True):
        if along is None:
            operands.append(op.graph.absent() if operand.is_absent else operand)
        else:
            taken.append(_taking(op, operand, along.axis, b))
            taken[-1].result.type = _narrowed(operand, along.axis, take.extent)
            operands.append(taken[-1].result)
    if axis.form is Form.SHAPE:
        operands[1] = _extents_of_part(b, maker, take)
    made = b.op(maker.op_type, operands, dict(maker.attrs), domain=maker.domain, outputs=len(maker.results))
    made.overload, made.name, made.loc = maker.overload, maker.name, maker.loc.union(rule="narrow")
    for old, new in zip(maker.results, made.results, strict=True):
        new.omitted = old.omitted
    result = made.results[maker.results.index(value)]
    narrowed = _narrowed(value, take.axis, take.extent)
    result.type = (narrowed or result.type) if axis.form is Form.SHAPE else (result.type or narrowed)
    if take.drops:
        result = _without(result, take.axis, b)
    op.replace_by(result)
    maker.erase()
    return _Moved(made.op_type, [made, *taken] if made.is_a("Slice", "Gather") else taken)


def _axis(maker: Op, index: int, take: _Take) -> Axis | None:
    """The axis of an op along which each element needs those at the same place only."""
    for axis in iteration_space(maker):
        cut = [a for a in axis.operands if a is not None]
        if axis.results[index] == take.axis and axis.grain == 1 and cut and all(a.is_identity for a in cut):
            if axis.form is Form.SAME or (axis.form is Form.SHAPE and _reshapes_part(maker, axis, take)):
                return axis
    return None


def _reshapes_part(maker: Op, axis: Axis, take: _Take) -> bool:
    """True if the extents that a Reshape gives to a part can be told: those to all, but for that of the part."""
    target = maker.input(1) if maker.key in VIEWS and take.reshapes else None
    along = axis.operands[0]
    if target is None or along is None or not isinstance(take.extent, int) or take.extent < 1:
        return False
    known = ints(target.tensor)
    if known is None:
        opset = None if maker.graph is None else opset_of(maker.graph)
        return along.axis == take.axis and opset is not None and opset >= _SLICE_OPERANDS
    if 0 in known and maker.attrs.get("allowzero", 0):
        return False
    # A 0 copies an extent of the operand: elsewhere it would be that of the part.
    return along.axis == take.axis or known[along.axis : along.axis + 1] != (0,)


def _extents_of_part(b: Builder, maker: Op, take: _Take) -> Value:
    """The extents that a Reshape gives to the part."""
    target, rank = maker.operands[1], len(maker.result.shape or ())
    known = ints(target.tensor)
    if known is not None:
        part = [*known[: take.axis], take.extent, *known[take.axis + 1 :]]
        return b.const(np.array(part, np.int64), "extents")
    zero, at, after, end = (np.array([n], np.int64) for n in (0, take.axis, take.axis + 1, rank))
    before = [b.Slice(target, zero, at, zero)] if take.axis else []
    behind = [b.Slice(target, after, end, zero)] if take.axis + 1 < rank else []
    found: Value = b.Concat(*before, np.array([take.extent], np.int64), *behind, axis=0)
    return found


def _taking(op: Op, operand: Value, axis: int, b: Builder) -> Op:
    """Take the same part of another value, along an axis of its own; the axis stays."""
    if op.op_type == "Gather":
        index = op.operands[1]
        if index.shape == () and index.tensor is not None:
            index = b.const(index.tensor.numpy().reshape(1), "index")
        elif index.shape == ():
            old = (opset_of(b.graph) or 5) < 5
            index = b.Reshape(index, shape=[1]) if old else b.Reshape(index, np.array([1], np.int64))
        return b.op("Gather", [operand, index], {"axis": axis})
    if "starts" in op.attrs:
        return b.op("Slice", [operand], {**op.attrs, "axes": [axis]})
    starts, ends, *rest = op.operands[1:]
    steps = rest[1:2]
    dtype = starts.dtype.numpy() if starts.dtype is not None else np.int64
    return b.op("Slice", [operand, starts, ends, b.const(np.array([axis], dtype), "axis"), *steps])


def _without(value: Value, axis: int, b: Builder) -> Value:
    """A value without an axis of extent 1."""
    if (opset_of(b.graph) or 13) < 13:
        return b.op("Squeeze", [value], {"axes": [axis]}).result
    return b.op("Squeeze", [value, np.array([axis], np.int64)]).result


def _narrowed(value: Value, axis: int, extent: Dim) -> TensorType | None:
    shape, type_ = value.shape, value.tensor_type
    if shape is None or type_ is None:
        return None
    return type_.with_shape((*shape[:axis], extent, *shape[axis + 1 :]))
