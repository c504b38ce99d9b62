"""scale-early: scale the smaller operand of a product instead of its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.liveness import value_bytes

_FLOATS = (DType.FLOAT, DType.DOUBLE)


class ScaleEarly(Pass):
    """Turn `(a b) c` into `(a c) b`, for a product of matrices and a constant number.

    The scores of attention, scaled before Softmax, exist twice, since onnxruntime multiplies into a buffer of its own;
    scaled queries are much smaller, and a weight that nothing else uses takes the factor up for good. A factor beyond
    2^24 or below 2^-24 is left where it is. Outputs may differ by float noise.
    """

    def apply(self, graph: Graph, stats: Counter[str], context: Context) -> None:
        """Look at every product."""
        dims = extents(graph, context.dims)
        for op in [op for op in graph.walk() if op.op_type in ("Mul", "Div") and not op.domain]:
            found = _scaled(op)
            if found is None:
                continue
            product, factor = found
            side = _side(product, dims)
            if side is not None:
                stats["into weights" if product.operands[side].tensor is not None else "into operands"] += 1
                _move(op, product, side, factor)

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        """Scale without facts about the compile."""
        self.apply(graph, stats, Context())


def _scaled(op: Op) -> tuple[Op, float] | None:
    """The product that an op scales by a number, and that number."""
    places = (0,) if op.op_type == "Div" else (0, 1)
    for place in places:
        product, factor = op.operands[place].op, _number(op.operands[1 - place])
        if product is None or factor is None or not product.is_a("MatMul") or product.graph is not op.graph:
            continue
        type_ = product.result.type
        known = isinstance(type_, TensorType) and type_.dtype in _FLOATS and type_.shape is not None
        if not known or not product.result.single_use or not _same_rank(product.result, op.operands[1 - place]):
            continue
        if op.op_type == "Div":
            factor = 1 / factor if factor else float("nan")
        return (product, factor) if np.isfinite(factor) and 2**-24 <= abs(factor) <= 2**24 else None
    return None


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
    """Whether scaling keeps the product's shape: a number of more axes would add some."""
    shapes = [v.type.shape for v in (product, factor) if isinstance(v.type, TensorType) and v.type.shape is not None]
    return len(shapes) == 2 and len(shapes[1]) <= len(shapes[0])


def _move(op: Op, product: Op, side: int, factor: float) -> None:
    assert op.graph is not None
    b = Builder(op.graph, before=product, loc=product.loc.union(op.loc, rule="scale-early"))
    operand = product.operands[side]
    type_ = operand.type
    assert isinstance(type_, TensorType)
    dtype = type_.dtype.numpy()
    if operand.tensor is not None:
        scaled = b.const((operand.tensor.numpy() * dtype.type(factor)).astype(dtype), operand.name)
    else:
        scaled = b.op("Mul", [operand, np.array(factor, dtype)], type=type_).result
    product.set_operand(side, scaled)
    name = op.result.name
    op.result.replace_by(product.result)
    product.result.doc, product.result.metadata = op.result.doc, dict(op.result.metadata)
    op.erase()
    product.result.name = name
