"""scale-early: scale the smaller operand of a product instead of its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import VIEWS
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.liveness import value_bytes

Array = npt.NDArray[Any]
_FLOATS = (DType.FLOAT, DType.DOUBLE)
_SMALL = 65536
"""Bytes of a bias that may exist twice: as it is for others, and scaled."""


class ScaleEarly(Pass):
    """Turn `(a b) c` into `(a c) b`, for a product of matrices and a constant number.

    The scores of attention, scaled before Softmax, exist twice, since onnxruntime multiplies into a buffer of its own;
    scaled queries are much smaller, and a weight that nothing else uses takes the factor up for good, also one behind
    views, a Transpose and a bias. A factor beyond 2^24 or below 2^-24 is left where it is, and so is one that makes a
    weight infinite. Outputs may differ by float noise.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look once at every Mul and Div that is there; what takes a factor up is not looked at again."""
        dims = extents(graph, context.dims)
        for op in [op for op in graph.walk() if op.op_type in ("Mul", "Div") and not op.domain]:
            if _drop(op):
                context.stats["into weights"] += 1
                continue
            found = _scaled(op)
            if found is None:
                continue
            product, factor = found
            side = _side(product, dims)
            if side is not None and (moved := _move(op, product, side, factor)) is not None:
                context.stats[moved] += 1


def _by_number(op: Op) -> tuple[int, float] | None:
    """The operand that an op scales by a number, and that number."""
    for place in (0,) if op.op_type == "Div" else (0, 1):
        value, factor = op.operands[place], _number(op.operands[1 - place])
        known = value.dtype in _FLOATS and value.shape is not None
        if factor is None or not known or not value.single_use or not _same_rank(value, op.operands[1 - place]):
            continue
        if op.op_type == "Div":
            factor = 1 / factor if factor else float("nan")
        return (place, factor) if np.isfinite(factor) and 2**-24 <= abs(factor) <= 2**24 else None
    return None


def _scaled(op: Op) -> tuple[Op, float] | None:
    """The product that an op scales by a number, and that number."""
    found = _by_number(op)
    product = op.operands[found[0]].op if found is not None else None
    if found is None or product is None or not product.is_a("MatMul") or product.graph is not op.graph:
        return None
    return product, found[1]


def _drop(op: Op) -> bool:
    """Let the weights that an operand is made with take the factor up; gives whether that could be done."""
    found = _by_number(op)
    weights = _weights(op.operands[found[0]], op, found[0]) if found is not None else []
    if found is None or not weights or weights[-1][0] is op:
        return False
    scaled = _scaled_constants(weights, found[1])
    if scaled is None:
        return False
    _put(weights, scaled, op)
    op.replace_by(op.operands[found[0]])
    return True


def _side(product: Op, dims: Mapping[str, int]) -> int | None:
    """The operand to scale: a weight that nothing else uses, else the smaller one if it is smaller than the result."""
    for side, operand in enumerate(product.operands):
        if operand.tensor is not None and operand.single_use:
            return side
    known = [value_bytes(v, dims) for v in (*product.operands, product.result)]
    sizes = [s for s in known if s is not None]
    free = [side for side in (0, 1) if product.operands[side].tensor is None]
    if len(sizes) < len(known) or not free:
        return None
    side = min(free, key=sizes.__getitem__)
    return side if sizes[side] < sizes[2] else None


def _number(value: Value) -> float | None:
    if value.tensor is None or value.tensor.size != 1:
        return None
    return float(value.tensor.numpy().reshape(-1)[0])


def _same_rank(product: Value, factor: Value) -> bool:
    """True if scaling keeps the product's shape: a number of more axes would add some."""
    shapes = [v.shape for v in (product, factor) if v.shape is not None]
    return len(shapes) == 2 and len(shapes[1]) <= len(shapes[0])


def _move(op: Op, product: Op, side: int, factor: float) -> str | None:
    """Scale an operand of a product instead of its result; gives what takes the factor up, if anything can."""
    assert op.graph is not None
    operand = product.operands[side]
    weights = _weights(operand, product, side)
    if weights:
        scaled = _scaled_constants(weights, factor)
        if scaled is None:
            return None
        _put(weights, scaled, op)
    else:
        b = Builder(op.graph, before=product, loc=product.loc.union(op.loc, rule="scale-early"))
        type_ = operand.tensor_type
        assert type_ is not None
        by = np.array(factor, type_.dtype.numpy())
        product.set_operand(side, b.op("Mul", [operand, by], type=type_).result)
    op.replace_by(product.result)
    return "into weights" if weights else "into operands"


def _weights(value: Value, user: Op, index: int) -> list[tuple[Op, int]]:
    """The constants, as operands, that a scaled value can be had from: of views, sums with a bias, a product."""
    found: list[tuple[Op, int]] = []
    while value.tensor is None:
        op = value.op
        if op is None or op.graph is not user.graph or not value.single_use:
            return []
        if op.key in VIEWS or op.is_a("Transpose"):
            user, index = op, 0
        elif op.is_a("Add") and any(v.tensor is not None for v in op.operands):
            bias = next(i for i, v in enumerate(op.operands) if v.tensor is not None)
            constant = op.operands[bias]
            if constant.tensor is None or (constant.tensor.nbytes > _SMALL and not constant.single_use):
                return []
            found.append((op, bias))
            user, index = op, 1 - bias
        elif op.is_a("MatMul") and op.operands[1].tensor is not None:
            user, index = op, 1
        else:
            return []
        value = user.operands[index]
    return [*found, (user, index)] if value.single_use else []


def _scaled_constants(weights: list[tuple[Op, int]], factor: float) -> list[Array] | None:
    """Scaled copies of constants; `None` where a number that was finite would not be."""
    scaled: list[Array] = []
    for user, index in weights:
        tensor = user.operands[index].tensor
        assert tensor is not None
        content = tensor.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            scaled.append(content * content.dtype.type(factor))
        if not np.array_equal(np.isfinite(scaled[-1]), np.isfinite(content)):
            return None
    return scaled


def _put(weights: list[tuple[Op, int]], scaled: list[Array], op: Op) -> None:
    """Put scaled copies, the factor of which an op had, in the place of constants."""
    for (user, index), content in zip(weights, scaled, strict=True):
        assert user.graph is not None
        user.loc = user.loc.union(op.loc, rule="scale-early")
        b = Builder(user.graph, before=user, loc=user.loc)
        user.set_operand(index, b.const(content, user.operands[index].name))
