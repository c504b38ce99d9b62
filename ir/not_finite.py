"""Weights that hold NaN or Inf, and the values that these may make so."""

from __future__ import annotations

import math
import weakref

import numpy as np

from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.mapped import release
from memoptc.ir.ops import weight_layout

_MAGNITUDES: weakref.WeakKeyDictionary[Tensor, float] = weakref.WeakKeyDictionary()


def magnitude_of(tensor: Tensor) -> float:
    """Largest magnitude of a weight, NaN or Inf where it holds such; read once, however many copies of a graph ask."""
    found = _MAGNITUDES.get(tensor)
    if found is None:
        content = np.asarray(tensor.numpy())
        found = float(np.maximum(-content.min(initial=0.0), content.max(initial=0.0)))
        _MAGNITUDES[tensor] = found
        del content
        release(tensor)
    return found


def has_infinite_weight(op: Op) -> bool:
    """True if a weight or bias of a product or convolution holds NaN or Inf."""
    return weight_layout(op) is not None and any(
        v.tensor is not None and v.is_floating_point and not math.isfinite(magnitude_of(v.tensor)) for v in op.operands
    )


def behind_infinite_weights(graph: Graph) -> frozenset[Value]:
    """Values of the top graph that products and convolutions with such weights lead to.

    Which of them hold NaN or Inf depends on signs in the inputs: a sample that shows none says nothing of the next.
    """
    found = dict.fromkeys(result for op in graph.ops if has_infinite_weight(op) for result in op.results)
    todo = list(found)
    while todo:
        for user in todo.pop().users:
            top = user
            while top.graph is not graph and top.graph is not None and top.graph.parent is not None:
                top = top.graph.parent
            todo += [result for result in top.results if result not in found]
            found |= dict.fromkeys(top.results)
    return frozenset(found)
