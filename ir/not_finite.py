"""Weights that hold NaN or Inf, and the values that these may make so."""

from __future__ import annotations

import math
import weakref

import numpy as np

from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.mapped import release
from memoptc.ir.ops import definition, weight_layout

_MAGNITUDES: weakref.WeakKeyDictionary[Tensor, float] = weakref.WeakKeyDictionary()


def magnitude_of(tensor: Tensor) -> float:
    """Largest magnitude of a weight, NaN or Inf where it holds such; read once, however many copies of a graph ask."""
    found = _MAGNITUDES.get(tensor)
    if found is None:
        content = np.asarray(tensor.numpy())
        ends = [float(content.min()), float(content.max())] if content.size else [0.0]  # not all types have a zero
        found = float(np.abs(ends).max())
        _MAGNITUDES[tensor] = found
        del content
        release(tensor)
    return found


def has_infinite_weight(op: Op) -> bool:
    """True if a weight or bias of a product or convolution holds NaN or Inf."""
    return weight_layout(op) is not None and _reads_infinite(op)


def _reads_infinite(op: Op) -> bool:
    return any(
        v.tensor is not None and v.is_floating_point and not math.isfinite(magnitude_of(v.tensor)) for v in op.operands
    )


def _adds_infinite(op: Op) -> bool:
    """True if a bias beside a product with a weight does; masks lie beside products of what is computed."""
    if not definition(op).commutative:
        return False
    made = (v.op for v in op.operands if v.op is not None)
    weighted = any(weight_layout(by) is not None and by.operands[1].tensor is not None for by in made)
    return weighted and _reads_infinite(op)


def behind_infinite_weights(graph: Graph) -> frozenset[Value]:
    """Values of the top graph that such weights and biases of products and convolutions lead to.

    Which of them hold NaN or Inf depends on signs in the inputs: a sample that shows none says nothing of the next.
    """
    found = dict.fromkeys(
        result for op in graph.ops if has_infinite_weight(op) or _adds_infinite(op) for result in op.results
    )
    todo = list(found)
    while todo:
        for user in todo.pop().users:
            top = user
            while top.graph is not graph and top.graph is not None and top.graph.parent is not None:
                top = top.graph.parent
            todo += [result for result in top.results if result not in found]
            found |= dict.fromkeys(top.results)
    return frozenset(found)
