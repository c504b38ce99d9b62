"""fuse-skip-norm: a sum and its root-mean-square norm as one operator, which gives both."""

from __future__ import annotations

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import same
from memoptc.ir.tensors import ints, scalar
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.passes.fuse._fuse.core import shape_of


class FuseSkipNorm(Pass):
    """Turn x = a + b, x / sqrt(mean(x * x) + epsilon) * gain into SkipSimplifiedLayerNormalization.

    onnxruntime's own optimizer knows one spelling of it of many. What normalizes a value that is no sum stays: the
    operator for that has no standard name before opset 23. Outputs may differ by float noise.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look at every mean."""
        context.shapes(graph)
        for mean in list(graph.walk("ReduceMean")):
            if mean.graph is not None and _replace(mean, mean.graph):
                context.stats["fused"] += 1


def _replace(mean: Op, graph: Graph) -> bool:
    x = _squared(mean.operand)
    epsilon_op = _only_user(mean.result)
    if x is None or not _last_axis(mean) or epsilon_op is None or not epsilon_op.is_a("Add"):
        return False
    other = epsilon_op.operands[1 - epsilon_op.operands.index(mean.result)]
    epsilon = scalar(other.tensor)
    normed = _normed(epsilon_op.result, x)
    if epsilon is None or normed is None or not 0 <= float(epsilon) < 1:
        return False
    end = _only_user(normed)
    total = x.op
    if end is None or not end.is_a("Mul") or total is None or not total.is_a("Add") or total.graph is not graph:
        return False
    gain = end.operands[1 - end.operands.index(normed)]
    shape = shape_of(x)
    if not _fits(total, shape) or len(shape_of(end.result)) != 3:  # an epsilon of more axes gives the result more
        return False
    if gain.op is None or gain.tensor is None or end.graph is not graph or not isinstance(shape[-1], int):
        return False
    if gain.tensor.size != shape[-1] or shape_of(gain)[-1:] != (shape[-1],) or len(shape_of(gain)) > 3:
        return False
    if gain.op.graph is graph and graph.first is not None:
        gain.op.move_before(graph.first)  # the sum may stand before it
    b = Builder(graph, before=total, loc=end.loc.union(total.loc, mean.loc, rule="fuse-skip-norm"))
    if len(shape_of(gain)) != 1:
        gain = b.const(np.asarray(gain.tensor.numpy()).reshape(-1), gain.name)
    made = b.op(
        "SkipSimplifiedLayerNormalization",
        [*total.operands, gain],
        {"epsilon": float(epsilon)},
        domain="com.microsoft",
        outputs=4,
        type=[end.result.type, None, None, x.type],
    )
    for result in made.results[1:3]:
        result.omitted = True
        result.name = ""
    end.result.replace_by(made.result)
    x.replace_by(made.results[3])
    _erase(end)
    return True


def _fits(total: Op, shape: tuple[object, ...]) -> bool:
    """True if both sides of a sum have its shape, three axes of float32."""
    sides = [shape_of(v) for v in total.operands]
    floats = all(v.dtype == DType.FLOAT for v in total.operands)
    alike = all(len(s) == 3 and all(same(a, b) for a, b in zip(s, sides[0], strict=True)) for s in sides)
    return floats and len(shape) == 3 and alike and not any(v.tensor is not None for v in total.operands)


def _squared(value: Value) -> Value | None:
    op = value.op
    if op is None or not value.single_use:
        return None
    if op.is_a("Mul") and op.operands[0] is op.operands[1]:
        return op.operand
    return op.operand if op.is_a("Pow") and scalar(op.operands[1].tensor) == 2 else None


def _last_axis(mean: Op) -> bool:
    axes = mean.attrs.get("axes") or (ints(mean.operands[1].tensor) if mean.input(1) is not None else None)
    return (
        axes is not None
        and tuple(axes) in ((-1,), (len(shape_of(mean.operand)) - 1,))
        and mean.attrs.get("keepdims", 1) == 1
    )


def _normed(total: Value, x: Value) -> Value | None:
    """x over the root of a value, however that is written."""
    root = _only_user(total)
    if root is None:
        return None
    if root.is_a("Pow") and root.operand is total and scalar(root.operands[1].tensor) == -0.5:
        factor = _only_user(root.result)
        return factor.result if factor is not None and factor.is_a("Mul") and x in factor.operands else None
    last = _only_user(root.result) if root.is_a("Sqrt") else None
    if last is None:
        return None
    if last.is_a("Div") and last.operands[1] is root.result and last.operands[0] is x:
        return last.result
    inverse = last.is_a("Reciprocal") or (
        last.is_a("Div") and last.operands[1] is root.result and scalar(last.operands[0].tensor) == 1
    )
    factor = _only_user(last.result) if inverse else None
    return factor.result if factor is not None and factor.is_a("Mul") and x in factor.operands else None


def _only_user(value: Value) -> Op | None:
    return value.uses[0][0] if value.single_use else None


def _erase(op: Op) -> None:
    """Erase an op that nothing uses, and what only it used."""
    todo = [op]
    while todo:
        dead = todo.pop()
        if dead.graph is None or dead.is_const or any(r.has_uses for r in dead.results):
            continue
        before = [v.op for v in dead.operands if v.op is not None and v.op.graph is dead.graph]
        dead.erase()
        todo += before
