"""Shape computations under symbolic dimensions: a Reshape whose target is known needs no computed one."""

from __future__ import annotations

from collections import Counter

import numpy as np

from memoptc.ir.core import Graph, Op
from memoptc.ir.dims import Dim, is_nonnegative, same
from memoptc.ir.tensors import from_array
from memoptc.ir.types import TensorType
from memoptc.pass_base import Context


def simplify_shapes(graph: Graph, stats: Counter[str], context: Context) -> None:
    """Replace computed targets of Reshape by constants where shape inference knows them."""
    computed = [op for op in graph.walk("Reshape") if len(op.operands) > 1 and op.operands[1].tensor is None]
    if not computed:
        return
    elements = context.shapes(graph).elements
    for op in computed:
        known = elements.get(op.operands[1])
        if known is None or op.graph is None or op.attrs.get("allowzero", 0):
            continue
        written = constant_target(op, known)
        if written is not None:
            op.set_operand(1, op.graph.const(from_array(np.asarray(written, np.int64)), f"{op.result.name}_shape"))
            stats["reshape targets"] += 1


def constant_target(op: Op, known: tuple[Dim, ...]) -> list[int] | None:
    """Give a constant target that means the same for every extent, 0 included.

    An extent that the operand has at the same place is copied (0); one other symbol may be inferred (-1), but
    not beside a copied one: with an empty tensor -1 could then not be inferred.
    """
    type_ = op.operand.type
    shape = type_.shape if isinstance(type_, TensorType) else None
    target: list[int] = []
    for index, dim in enumerate(known):
        if isinstance(dim, int):
            if dim <= 0:
                return None
            target.append(dim)
        elif dim is None or not is_nonnegative(dim):
            return None
        elif shape is not None and index < len(shape) and same(shape[index], dim):
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1 or (-1 in target and 0 in target):
        return _infer_only(known)
    return target


def _infer_only(known: tuple[Dim, ...]) -> list[int] | None:
    target = [d if isinstance(d, int) else -1 for d in known]
    return target if target.count(-1) == 1 else None
