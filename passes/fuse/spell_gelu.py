"""spell-gelu: x (1 + erf(x / sqrt(2))) / 2 in the spelling that onnxruntime makes one operator of when it loads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.tensors import scalar
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass

_CLOSE = 1e-5
"""Relative distance from the root of 2 up to which a constant is meant to be it."""


class SpellGelu(Pass):
    """Write GELU by the error function as onnxruntime's optimizer knows it: (x (1 + erf(x / sqrt(2)))) 0.5.

    It then computes one operator instead of five, with the bias before it, too, and the file stays plain ONNX. It knows
    no halving before the last product, no division by 2, and no multiplication by the inverse of the root. The formula:
    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016. Outputs may differ by float noise.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look at every error function."""
        if next(graph.walk("Erf"), None) is None:
            return
        context.shapes(graph)
        for erf in list(graph.walk("Erf")):
            if erf.graph is not None and _respell(erf, erf.graph):
                context.stats["respelled"] += 1


def _respell(erf: Op, graph: Graph) -> bool:
    scaled, plus = erf.operand.op, _only_user(erf.result)
    x = _part(scaled, math.sqrt(2)) if scaled is not None and erf.operand.single_use else None
    if scaled is None or x is None or x.dtype != DType.FLOAT or x.rank is None or plus is None or not plus.is_a("Add"):
        return False
    one = plus.operands[1 - plus.operands.index(erf.result)]
    if scalar(one.tensor) != 1 or not _keeps_rank(one, x):
        return False
    end, halved = _product(plus.result, x)
    if end is None or halved is None or end.graph is not graph or not halved.op:
        return False
    if scaled.is_a("Div") and halved.op.is_a("Mul") and plus.result not in halved.op.operands:
        return False  # as onnxruntime knows it
    b = Builder(graph, before=end, loc=end.loc.union(erf.loc, plus.loc, halved.op.loc, rule="spell-gelu"))
    if not scaled.is_a("Div"):
        root = b.Div(x, b.const(np.array(math.sqrt(2), np.float32)))
        plus = b.op("Add", [b.Erf(root), one])
    half = b.const(np.array(0.5, np.float32))
    end.result.replace_by(b.Mul(b.Mul(x, plus.result), half))
    return True


def _product(a: Value, x: Value) -> tuple[Op | None, Value | None]:
    """Find the op that gives half of `a` times `x`, and the value of those before it that is halved."""
    first = _only_user(a)
    if first is None:
        return None, None
    if _part(first, 2.0) is a:
        last = _only_user(first.result)
        return (last, first.result) if last is not None and _is_product(last, first.result, x) else (None, None)
    if _is_product(first, a, x):
        last = _only_user(first.result)
        return (last, last.result) if last is not None and _part(last, 2.0) is first.result else (None, None)
    for other in first.operands if first.is_a("Mul") else ():
        if other is not a and other.op is not None and _part(other.op, 2.0) is x:
            return first, other
    return None, None


def _is_product(op: Op, a: Value, b: Value) -> bool:
    return op.is_a("Mul") and op.operands in ((a, b), (b, a))


def _part(op: Op, divisor: float) -> Value | None:
    """What an op divides by a number, or multiplies by its inverse."""
    for value, number in _with_numbers(op):
        wanted = divisor if op.is_a("Div") else 1 / divisor
        if math.isclose(number, wanted, rel_tol=_CLOSE):
            return value
    return None


def _with_numbers(op: Op) -> Iterator[tuple[Value, float]]:
    if not (op.is_a("Div") or op.is_a("Mul")):
        return
    for index in (0,) if op.is_a("Div") else (0, 1):
        value, other = op.operands[index], op.operands[1 - index]
        number = scalar(other.tensor)
        if isinstance(number, float) and value.tensor is None and _keeps_rank(other, value):
            yield value, number


def _keeps_rank(number: Value, value: Value) -> bool:
    """True if a constant of one element has no axes that would make the result one of more axes."""
    return number.rank is not None and value.rank is not None and number.rank <= value.rank


def _only_user(value: Value) -> Op | None:
    return value.uses[0][0] if value.single_use else None
