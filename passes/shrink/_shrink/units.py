"""Channels and hidden units that can go: who makes them, what lies between, who reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType
from memoptc.passes.precision._migrate.sites import WEIGHTED, read_axis, shape_of
from memoptc.passes.precision._quantize.correct import output_axis
from memoptc.passes.precision._quantize.matrix import replace_constant

ELEMENTWISE = ops.UNARY | {"Dropout"}
BINARY = ops.BINARY | ops.VARIADIC
POOLS = ops.names_where(lambda o: o.family is ops.Family.POOL and o.space is not None)


@dataclass(frozen=True)
class Cut:
    """A constant that loses slices.

    Args:
        op: Who reads it.
        index: As which operand.
        axis: Along which axis.
        each: Slices in a row that belong to one unit.
    """

    op: Op
    index: int
    axis: int
    each: int = 1


@dataclass
class Units:
    """Units that one product or convolution makes.

    Args:
        source: Who makes them.
        count: How many.
        cuts: Constants that go along.
        readers: Products and convolutions that read them, each with the slices per unit along what it sums up.
        values: Tensors that become narrower, with axis and slices per unit.
        depthwise: Convolutions whose groups are the units.
        awaited: Tensors that must become narrower in the same way.
        number: Where each op of the graph stands.
    """

    source: Op
    count: int
    cuts: list[Cut] = field(default_factory=list)
    readers: dict[Op, int] = field(default_factory=dict)
    values: dict[Value, tuple[int, int]] = field(default_factory=dict)
    depthwise: list[Op] = field(default_factory=list)
    awaited: list[Value] = field(default_factory=list)
    number: Mapping[Op, int] = field(default_factory=dict)


def find_units(graph: Graph, excluded: frozenset[str]) -> Iterator[Units]:
    """Find units of the top graph that can go without anything else changing its form."""
    number = {op: i for i, op in enumerate(graph.ops)}
    for op in graph.ops:
        if op.key not in WEIGHTED or op.name in excluded or op.key in excluded or _weight(op) is None:
            continue
        if int(op.attrs.get("group", 1)) != 1 or op.result.is_output:
            continue
        shape, weight = shape_of(op.result), _weight(op)
        assert weight is not None
        found = Units(op, weight[output_axis(op)], number=number)
        axis = read_axis(op)
        bias = op.input(2)
        if shape is None or found.count < 8 or (bias is not None and bias.tensor is None):
            continue
        found.cuts.append(Cut(op, 1, output_axis(op)))
        if bias is not None and bias.tensor is not None and bias.tensor.size > 1:
            if bias.tensor.shape.numpy()[-1] != found.count or bias.tensor.size != found.count:
                continue
            found.cuts.append(Cut(op, 2, len(bias.tensor.shape) - 1))
        if _follow(op.result, len(shape) + axis if axis < 0 else axis, 1, found) and found.readers:
            if all(value in found.values for value in found.awaited):
                yield found


def _weight(op: Op) -> tuple[int, ...] | None:
    """Shape of the weights of a product or convolution, if nobody else reads them."""
    value = op.input(1)
    if value is None or value.tensor is None or not value.single_use or value.tensor.dtype != DType.FLOAT:
        return None
    shape = tuple(value.tensor.shape.numpy())
    if not all(shape):
        return None
    if op.operand.tensor is not None or (op.op_type != "Conv" and len(shape) != 2) or op.attrs.get("transA", 0):
        return None
    return shape if op.op_type != "Gemm" or op.attrs.get("alpha", 1.0) == op.attrs.get("beta", 1.0) == 1.0 else None


def _follow(value: Value, axis: int, each: int, found: Units) -> bool:
    """Note everything that reads a tensor; gives whether all of it can do with fewer units. Looks once at each."""
    todo = [(value, axis, each)]
    while todo:
        value, axis, each = todo.pop()
        if value in found.values:
            if found.values[value] != (axis, each):
                return False
            continue
        found.values[value] = (axis, each)
        onward = _readers(value, axis, each, found)
        if onward is None:
            return False
        todo += reversed(onward)
    return True


_Onward = tuple[Value, int, int]
"""A value, the axis of the units, and how many places each has there."""


def _readers(value: Value, axis: int, each: int, found: Units) -> list[_Onward] | None:
    """Note what reads a tensor; gives what else is to be looked at, `None` where something needs all units."""
    shape = shape_of(value)
    if shape is None or shape[axis] != found.count * each:
        return None
    passed: list[_Onward] = []
    for user, index in value.uses:
        if user.is_return or user.graph is not value.graph or any(r.has_uses for r in user.results[1:]):
            return None
        if user.key in WEIGHTED:
            if index != 0 or not _read(user, axis, each, len(shape), found):
                return None
            if found.depthwise[-1:] == [user]:
                passed.append((user.result, 1, 1))
            continue
        if user.key in ELEMENTWISE:
            follows = index == 0 and all(v.tensor is None or v.tensor.size == 1 for v in user.operands[1:])
            onward = (axis, each)
        elif user.key in POOLS:
            follows, onward = axis == 1 and index == 0, (axis, each)
        elif user.key == "BatchNormalization":
            follows = axis == 1 and index == 0 and all(v.tensor is not None for v in user.operands[1:])
            found.cuts += [Cut(user, i, 0, each) for i in range(1, 5)]
            onward = (axis, each)
        elif user.key in BINARY and len(user.operands) == 2:
            follows, onward = _beside(user, 1 - index, axis, each, shape, found), (axis, each)
        elif user.key in ("Flatten", "Reshape"):
            inner = [d for d in shape[2:] if isinstance(d, int)]
            to = shape_of(user.result)
            whole = axis == 1 and index == 0 and len(inner) == len(shape) - 2 and to is not None and len(to) == 2
            follows = whole and _flattens(user)
            onward = (1, each * prod(inner))
        else:
            return None
        if not follows:
            return None
        passed.append((user.result, *onward))
    return passed


def _flattens(op: Op) -> bool:
    """True if a result keeps the batch and has all else in a row, whatever the number of units."""
    if op.op_type == "Flatten":
        return int(op.attrs.get("axis", 1)) == 1
    target = op.operands[1].tensor
    return target is not None and len(target.numpy()) == 2 and int(target.numpy()[1]) == -1


def _read(user: Op, axis: int, each: int, rank: int, found: Units) -> bool:
    """Note a product or convolution."""
    weight = _weight(user)
    if weight is None or axis != (read_axis(user) + rank if read_axis(user) < 0 else read_axis(user)):
        return False
    group = int(user.attrs.get("group", 1)) if user.op_type == "Conv" else 1
    if group == 1:
        along = 1 - output_axis(user)
        found.cuts.append(Cut(user, 1, along, each))
        found.readers[user] = each * prod(weight[2:])
        return True
    bias = user.input(2)
    if group != found.count or weight[0] != group or each != 1 or (bias is not None and bias.tensor is None):
        return False
    found.cuts += [Cut(user, 1, 0), *([Cut(user, 2, 0)] if bias is not None else [])]
    found.depthwise.append(user)
    return True


def _beside(user: Op, other: int, axis: int, each: int, shape: Sequence[object], found: Units) -> bool:
    """Note the other operand of an elementwise operator; gives whether it can lose the same units, or needs not."""
    value, result = user.operands[other], shape_of(user.result)
    if result is None or len(result) != len(shape):
        return False
    if value.tensor is None:
        if value.op is None or found.number.get(value.op, -1) < found.number[found.source]:
            return False  # made before the units, so none of them
        found.awaited.append(value)
        return shape_of(value) is not None and len(shape_of(value) or ()) == len(shape)
    own = value.tensor.shape.numpy()
    at = len(own) - (len(shape) - axis)
    if len(own) > len(shape):
        return False
    if at >= 0 and own[at] != 1:
        if own[at] != found.count * each:
            return False
        found.cuts.append(Cut(user, other, at, each))
    return True


def remove(graph: Graph, units: Units, kept: np.ndarray, rule: str) -> None:
    """Keep some units, in the order that they have.

    Args:
        graph: The top graph.
        units: All of them.
        kept: Indices that stay, sorted.
        rule: What new constants carry as their origin.
    """
    for cut in units.cuts:
        value = cut.op.operands[cut.index]
        assert value.tensor is not None
        array = value.tensor.numpy()
        places = (kept[:, None] * cut.each + np.arange(cut.each)).reshape(-1)
        replace_constant(graph, cut.op, cut.index, np.ascontiguousarray(np.take(array, places, cut.axis)), rule)
    for op in units.depthwise:
        op.set_attr("group", len(kept))
    for value, (axis, each) in units.values.items():
        type_ = value.tensor_type
        assert type_ is not None
        assert type_.shape is not None
        shape = list(type_.shape)
        shape[axis] = len(kept) * each
        value.type = type_.with_shape(tuple(shape))
