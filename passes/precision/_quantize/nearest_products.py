"""Products that outputs follow at once: where single outputs err more than the others, they owe it to these."""

from __future__ import annotations

from collections.abc import Collection

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.decoder_caches import steps_behind
from memoptc.passes.precision._quantize.weight_operands import PRODUCTS


def nearest_products(graph: Graph, outputs: Collection[str]) -> list[Op]:
    """Give the products with constant weights that lie nearest before some outputs, on every way to them.

    What an output inherits from afar it shares with the others. The product before keys or values of a decoder's cache
    is small, and its result goes nowhere else than into attention.

    Args:
        graph: The top graph.
        outputs: Names of outputs.
    """
    named = zip(graph.outputs, graph.outputs_info, strict=True)
    found: dict[Op, None] = {}
    todo = [value for value, info in named if info.name in outputs]
    seen: set[Value] = set()
    while todo:
        value = todo.pop()
        steps, op = steps_behind(value), value.op
        if steps is not None:
            todo.append(steps)
        elif op is not None and value not in seen:
            seen.add(value)
            if op.op_type in PRODUCTS and any(v.tensor is not None for v in op.operands[:2]):
                found[op] = None
            elif op.regions:  # one of an If's branches makes it
                at = op.results.index(value)
                todo += [region.outputs[at] for region in op.regions.values() if len(region.outputs) > at]
            else:
                todo += [v for v in op.operands if v.is_floating_point]
    return list(found)
