"""split-products: a product whose result is only taken apart becomes a product for each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.iteration import Axis, iteration_space
from memoptc.ir.ops import VIEWS, facts, layout_of, opset_of
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.passes.simplify._simplify.slice_ranges import Part, parts_of
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.liveness import value_bytes

_FLOATS = (DType.FLOAT, DType.DOUBLE)
_STEPS = 8
"""Ops between a product and the Slices of its result, at most."""


class SplitProducts(Pass):
    """Cut the weights of a product instead of its result.

    Queries, keys and values often come from one product, whose result is reshaped, transposed and then sliced: it
    exists whole, twice, and once more in parts. Where every use of a value is a Slice, Split or Gather of another
    part of one axis, and that axis leads back, through views, Transposes and element-wise ops with constants, to the
    columns of a product with constant weights, each part is computed by itself. Outputs may differ by float noise.

    Args:
        least: Bytes of the result from which on that is done: for fewer, products cost more than slices.
    """

    least: int = 65536

    def run(self, graph: Graph, context: Context) -> None:
        """Look once at every value that is taken apart; the parts that are made are not looked at again."""
        dims = extents(graph, context.dims)
        values = dict.fromkeys(op.operands[0] for op in graph.walk("Gather", "Slice", "Split"))
        for value in values:
            found = parts_of(value) if (value_bytes(value, dims) or 0) >= self.least else None
            if found is None or len(found[1]) < 2 or not _disjoint(found[1]):
                continue
            way = _path_from_product(value, found[0])
            if way is not None and all(_targets(way, part) is not None for part in found[1]):
                _split(value, found[0], found[1], way)
                context.stats["products"] += 1
                context.stats["parts"] += len(found[1])


@dataclass(frozen=True)
class _Step:
    """An op on the way from the product to the parts.

    Args:
        op: The op; result 0 lies on the way.
        place: The axis of its result that is taken apart.
        source: The operand on the way; of the product, what it multiplies.
        axis: How the op can be computed in parts; `None` for the product.
        scale: Elements along `place` per element along the axis that is taken apart at the end.
    """

    op: Op
    place: int
    source: int
    axis: Axis | None
    scale: int

    def shape(self, part: Part) -> tuple[Dim, ...]:
        """Shape of the result of a part."""
        whole = self.op.results[0].shape or ()
        return (*whole[: self.place], (part.hi - part.lo) * self.scale, *whole[self.place + 1 :])


def _disjoint(parts: Sequence[Part]) -> bool:
    ordered = sorted(parts, key=lambda p: p.lo)
    return all(a.hi <= b.lo for a, b in pairwise(ordered))


def _path_from_product(value: Value, place: int) -> list[_Step] | None:
    """Ops on the path from a product to a value, the product first; `None` where it cannot be split along the axis."""
    found: list[_Step] = []
    scale = 1
    for _ in range(_STEPS):
        op = value.op
        if (
            op is None
            or op.graph is not value.graph
            or value is not op.results[0]
            or not (value.single_use or not found)
        ):
            return None
        if _has_columns(op, place):
            return [_Step(op, place, 0, None, scale), *reversed(found)]
        if not (facts(op).elementwise or op.key in VIEWS or op.is_a("Transpose")):
            return None
        axis = next((a for a in iteration_space(op) if a.results[0] == place), None)
        loose = [] if axis is None else [i for i, v in enumerate(op.operands) if axis.operands[i] and v.tensor is None]
        if axis is None or len(loose) != 1:
            return None
        along = axis.operands[loose[0]]
        if along is None or along.per != 1 or along.low or along.high != along.stride - 1:
            return None
        found.append(_Step(op, place, loose[0], axis, scale))
        scale *= along.stride
        value, place = op.operands[loose[0]], along.axis
    return None


def _has_columns(op: Op, place: int) -> bool:
    """True if an axis of an op's result is the columns of weights that may be cut."""
    if not op.is_a("Gemm", "MatMul") or op.operands[0].tensor is not None:
        return False
    weight, shape = op.operands[1], op.result.shape
    if weight.tensor is None or not weight.single_use or DType(weight.tensor.dtype) not in _FLOATS or shape is None:
        return False
    bias = op.input(2)
    known = bias is None or bias.tensor is not None
    return known and len(weight.tensor.shape.numpy()) >= 2 and place == len(shape) - 1


def _targets(way: Sequence[_Step], part: Part) -> dict[Op, list[int]] | None:
    """Constant targets of the Reshapes on the way; `None` where there is none."""
    found: dict[Op, list[int]] = {}
    for before, step in pairwise(way):
        if not step.op.is_a("Reshape"):
            continue
        here, there = before.shape(part), step.shape(part)
        target = [
            d if isinstance(d, int) else 0 if i < len(here) and same(here[i], d) else -1 for i, d in enumerate(there)
        ]
        # A 0 copies an extent; beside one that is left to inference it could be that of an empty operand.
        if target.count(-1) > (0 not in target) or 0 in there:
            return None
        found[step.op] = target
    return found


def _split(value: Value, place: int, parts: Sequence[Part], way: Sequence[_Step]) -> None:
    for part in parts:
        user = part.value.op
        assert user is not None
        assert user.graph is not None
        targets = _targets(way, part)
        assert targets is not None
        b = Builder(user.graph, before=user, loc=user.loc.union(*(s.op.loc for s in way), rule="split-products"))
        made: Value | None = None
        for step in way:
            made = _copy_for_part(b, step, part, made, targets)
        assert made is not None
        if part.drops:
            axes = {"axes": [place]} if (opset_of(user.graph) or 13) < 13 else None
            made = b.op("Squeeze", [made] if axes else [made, np.array([place], np.int64)], axes).result
        name = part.value.name
        part.value.replace_by(made)
        made.doc, made.metadata = part.value.doc, dict(part.value.metadata)
        part.value.name = f"{name}_whole"
        made.name = name
    for user in dict.fromkeys(p.value.op for p in parts):
        if user is not None:
            user.erase()
    for step in reversed(way):
        step.op.erase()


def _copy_for_part(b: Builder, step: _Step, part: Part, made: Value | None, targets: dict[Op, list[int]]) -> Value:
    """Copy an op of the path for one part of the split axis."""
    op, lo, hi = step.op, part.lo * step.scale, part.hi * step.scale
    attrs, operands = dict(op.attrs), list(op.operands)
    if step.axis is None:
        operands[1] = _cut(b, operands[1], layout_of(op).output_axis, lo, hi)
        bias = op.input(2)
        if bias is not None and bias.tensor is not None and bias.tensor.shape.numpy()[-1:] not in ((), (1,)):
            operands[2] = _cut(b, bias, -1, lo, hi)
    else:
        for index, along in enumerate(step.axis.operands):
            if index == step.source and made is not None:
                operands[index] = made
            elif along is not None:
                operands[index] = _cut(b, operands[index], along.axis, lo, hi)
    if op in targets:
        operands[1] = b.const(np.asarray(targets[op], np.int64), f"{op.result.name}_shape")
        attrs.pop("allowzero", None)
    whole = op.result.tensor_type
    assert whole is not None
    new = b.op(op.op_type, operands, attrs, domain=op.domain, type=whole.with_shape(step.shape(part)))
    return new.result


def _cut(b: Builder, value: Value, axis: int, lo: int, hi: int) -> Value:
    assert value.tensor is not None
    content = value.tensor.numpy()
    index = [slice(None)] * content.ndim
    index[axis] = slice(lo, hi)
    return b.const(np.ascontiguousarray(content[tuple(index)]), value.name)
