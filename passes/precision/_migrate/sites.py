"""Sites where a factor per channel can move from a constant before a tensor to the constants of all that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir import tensors
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import facts, layout_of, names_where
from memoptc.ir.types import DType

Floats = npt.NDArray[np.float64]

HOMOGENEOUS = names_where(lambda o: o.homogeneous)
"""Commute with positive factors per channel: f(s * x) = s * f(x)."""

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Edit:
    """One operand to be multiplied along its channel axis.

    Args:
        op: Whose operand.
        index: Which operand.
        axis: Channel axis of the constant, from its end (1 is the last); 0 for input channels of a Conv.
        inverse: Multiply by the factors' reciprocals.
    """

    op: Op
    index: int
    axis: int
    inverse: bool = False


@dataclass
class RescaleSite:
    """One tensor, or several that share their channels, between a constant and its readers.

    Args:
        source: The op whose constants take the reciprocal factors; `None` where a Mul has to be put in.
        axis: Channel axis of the tensors: 1, or -1.
        channels: How many.
        edits: Constants to change.
        points: Tensors that the readers read.
        readers: Weighted ops.
        scaled: All tensors whose values change.
    """

    source: Op | None
    axis: int
    channels: int
    edits: list[Edit] = field(default_factory=list)
    points: dict[Value, None] = field(default_factory=dict)
    readers: dict[Op, None] = field(default_factory=dict)
    scaled: set[Value] = field(default_factory=set)


def shape_of(value: Value) -> tuple[object, ...] | None:
    """The extents of a tensor of float32, if their number is known."""
    return value.shape if value.dtype == DType.FLOAT else None


def weight_of(op: Op) -> Value | None:
    """The weights of a Conv, Gemm or MatMul whose left side is computed, if nobody else reads them."""
    weight = op.input(1)
    if op.key not in WEIGHTED or weight is None or weight.tensor is None or op.operand.tensor is not None:
        return None
    if weight.tensor.dtype != DType.FLOAT or not weight.single_use or op.attrs.get("transA", 0):
        return None
    return weight if op.op_type != "MatMul" or len(weight.tensor.shape) == 2 else None


def read_axis(op: Op) -> int:
    """Axis of the input channels in a reader's left side."""
    return layout_of(op).data_axis


def sites(graph: Graph, sources: frozenset[str]) -> Iterator[RescaleSite]:
    """Find sites in the top graph, those nearest to the readers first; no reader belongs to two.

    Args:
        graph: The top graph.
        sources: Operators whose constants may take the factors.
    """
    taken: set[Op] = set()
    for op in reversed(list(graph.ops)):
        if op.key not in sources or not op.results:
            continue
        for axis in (1, -1):
            site = _from(op, axis)
            if site is not None and site.readers and not taken & site.readers.keys():
                taken |= site.readers.keys()
                yield site
                break


def _from(op: Op, axis: int) -> RescaleSite | None:
    shape = shape_of(op.result)
    edits = _given(op, axis) if shape is not None and len(shape) >= 2 else None
    if edits is None or shape is None:
        return None
    channels = shape[axis]
    if not isinstance(channels, int) or channels < 2:
        return None
    site = RescaleSite(op, axis, channels, edits)
    return site if _follow(op.result, site) and _independent(site) else None


def _given(op: Op, axis: int) -> list[Edit] | None:
    """The constants of a source; `None` when they do not fit."""
    if facts(op).affine:  # its other results come before scale and shift
        return _affine(op, axis)
    if any(r.has_uses for r in op.results[1:]):
        return None
    if op.key in WEIGHTED:
        weight, bias = weight_of(op), op.input(2)
        if weight is None or axis != read_axis(op) or (bias is not None and bias.tensor is None):
            return None
        assert weight.tensor is not None
        rank = len(weight.tensor.shape)
        along = rank - layout_of(op).output_axis
        return [Edit(op, 1, along, True), *([Edit(op, 2, 1, True)] if bias is not None else [])]
    if op.key in ("Mul", "Div"):
        constant = next((i for i in (1, 0) if op.operands[i].tensor is not None), None)
        if constant is None or (op.op_type == "Div" and constant == 0) or not _same_rank(op, 1 - constant):
            return None
        rank = len(shape_of(op.result) or ())
        return [Edit(op, constant, rank - 1 if axis == 1 else 1, op.op_type == "Mul")]
    return None


def _affine(op: Op, axis: int) -> list[Edit] | None:
    """Scale and shift of a normalization, each one number per channel; `None` when they do not fit."""
    known = facts(op)
    last = {-1, len(shape_of(op.result) or ()) - 1}
    if axis != known.affine_axis or (axis == -1 and op.attrs.get("axis", -1) not in last):
        return None
    given = [(i, value) for i in known.affine if (value := op.input(i)) is not None]
    if any(v.tensor is None or len(v.tensor.shape) != 1 for _, v in given):
        return None
    return [Edit(op, i, 1, True) for i, _ in given]


def _same_rank(op: Op, index: int) -> bool:
    """True if an operand has as many axes as the result, and no channel is made by broadcasting."""
    mine, result = shape_of(op.operands[index]), shape_of(op.result)
    return mine is not None and result is not None and len(mine) == len(result) and mine == result


def _follow(value: Value, site: RescaleSite) -> bool:
    """True if everything that reads a value can take its factors; notes how. Each value is looked at once."""
    todo = [value]
    while todo:
        value = todo.pop()
        if value in site.scaled:
            continue
        site.scaled.add(value)
        onward = _readers(value, site)
        if onward is None:
            return False
        todo += reversed(onward)
    return True


def _readers(value: Value, site: RescaleSite) -> list[Value] | None:
    """Note what reads a value; gives the results that are scaled with it, `None` where something cannot be."""
    onward: list[Value] = []
    for user, index in value.uses:
        if user.is_return or user.graph is not value.graph:
            return None
        if user.key in WEIGHTED:
            weight = weight_of(user)
            if index != 0 or weight is None or read_axis(user) != site.axis or user in site.readers:
                return None
            site.readers[user] = None
            site.points[value] = None
            layout = layout_of(user)
            along = 0 if layout.taps else 2 - layout.input_axis
            site.edits.append(Edit(user, 1, along))
            continue
        if user.key in HOMOGENEOUS:
            whole = index == 0 and not any(r.has_uses for r in user.results[1:])
            if not whole or (site.axis == -1 and user.op_type not in ("Relu", "LeakyRelu", "Identity")):
                return None
        elif user.key in ("Add", "Sub"):
            other = user.operands[1 - index]
            if other.tensor is None or not _same_rank(user, index):
                return None
            rank = len(shape_of(user.result) or ())
            site.edits.append(Edit(user, 1 - index, rank - 1 if site.axis == 1 else 1, True))
        elif not (user.key == "Mul" or (user.key == "Div" and index == 0)) or not _same_rank(user, index):
            return None
        onward.append(user.result)
    return onward


def _independent(site: RescaleSite) -> bool:
    """True if products on the way are linear: just one of their operands is scaled."""
    for value in site.scaled:
        if value.op is not None and value.op is not site.source and value.op.key in ("Mul", "Div"):
            if sum(v in site.scaled for v in value.op.operands) != 1:
                return False
    return True


def move(site: RescaleSite, factors: Floats, rule: str) -> None:
    """Divide the tensors by factors and multiply the readers' weights by them.

    Args:
        site: Where.
        factors: Positive, float64 `[channels]`; of powers of two, no product is rounded.
        rule: Who does it, for the origin of new constants.
    """
    for edit in site.edits:
        value = edit.op.operands[edit.index]
        assert value.tensor is not None
        assert edit.op.graph is not None
        array = np.asarray(value.tensor.numpy(), np.float64)
        scale = 1.0 / factors if edit.inverse else factors
        new = _input_channels(array, scale) if edit.axis == 0 else _along(array, scale, edit.axis)
        builder = Builder(edit.op.graph, before=edit.op, loc=edit.op.loc.union(rule=rule))
        edit.op.set_operand(edit.index, builder.const(tensors.from_array(new.astype(np.float32)), value.name))


def _along(array: Floats, scale: Floats, axis: int) -> Floats:
    padded = array.reshape([1] * max(axis - array.ndim, 0) + list(array.shape))
    result: Floats = padded * scale.reshape([-1] + [1] * (axis - 1))
    return result


def _input_channels(weight: Floats, scale: Floats) -> Floats:
    """Multiply the input channels of a convolution, `[outputs, channels / groups, ...]`."""
    groups = len(scale) // weight.shape[1]
    parts = scale.reshape(groups, 1, weight.shape[1])
    spread = np.broadcast_to(parts, (groups, weight.shape[0] // groups, weight.shape[1]))
    result: Floats = weight * spread.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
    return result
