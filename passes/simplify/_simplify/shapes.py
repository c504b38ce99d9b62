"""Shape computations under symbolic dimensions: a Reshape whose target is known needs no computed one."""

from __future__ import annotations

import numpy as np

from memoptc.ir.core import Graph, Op
from memoptc.ir.dims import Dim, same
from memoptc.ir.tensors import from_array
from memoptc.pass_base import Context


def simplify_shapes(graph: Graph, context: Context) -> None:
    """Replace computed targets of Reshape by constants where shape inference knows them."""
    computed = [op for op in graph.walk("Reshape") if len(op.operands) > 1 and op.operands[1].tensor is None]
    if not computed and not _some_unknown(graph):
        return
    elements = context.shapes(graph).elements
    for op in computed:
        known = elements.get(op.operands[1])
        if known is None or op.graph is None or op.attrs.get("allowzero", 0):
            continue
        written = constant_target(op, known)
        if written is not None:
            op.set_operand(1, op.graph.const(from_array(np.asarray(written, np.int64)), f"{op.result.name}_shape"))
            context.stats["reshape targets"] += 1


def _some_unknown(graph: Graph) -> bool:
    """True if shape inference may find more than it did before."""
    values = (r for op in graph.walk() for r in op.results if not (r.omitted or r.is_absent))
    return any(v.is_shapeless for v in values)


def constant_target(op: Op, known: tuple[Dim, ...]) -> list[int] | None:
    """Give a constant target that means the same as the computed one for every extent, 0 included.

    A computed 0 copies the operand's extent at that place, as a constant 0 does: an extent that the operand has at
    the same place may therefore be written as 0, beside anything. Otherwise one element that is not known may be
    left to inference (-1) when all others are known and none is 0: the elements then decide it alone.
    """
    shape = op.operand.shape or ()
    target: list[int | None] = []
    for index, dim in enumerate(known):
        if isinstance(dim, int):
            target.append(dim)
        else:
            target.append(0 if index < len(shape) and same(shape[index], dim) else None)
    plain = [d for d in target if d is not None]
    if len(plain) == len(target):
        return plain
    numbers = [d if isinstance(d, int) else -1 for d in known]
    return numbers if numbers.count(-1) == 1 and min(d for d in (*numbers, 1) if d != -1) > 0 else None
