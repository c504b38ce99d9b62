"""Every pass takes about three times the steps for three times the ops, whatever the shape of the graph."""

from __future__ import annotations

import growing
import pytest

from memoptc.ir.core import Graph
from memoptc.pass_base import Context
from memoptc.registry import find, names
from memoptc.testing import run_pass

DATA = frozenset(
    (
        "cascade cluster-weights early-exit equalize factorize feature-statistics mix-weights prune "
        "quantize-io quantize-search smooth split-outliers"
    ).split()
)
"""Passes that want samples, or codes that come from them."""
SEARCHES = frozenset({"fit", "freeze-runtime", "order", "quantize"})
"""Searches with bounds of their own, and what mostly runs onnxruntime; benchmarks/pass_growth.py has their figures."""
PASSES = [n for n in names() if n not in DATA | SEARCHES]
FACTOR = 3
GROWTH = {"flat": 1.35, "nested": 1.7}
"""Largest exponents. An op on level k of nesting is renamed, moved or looked up k times by some passes: levels are few,
since files hold about 30."""


def cost(name: str, graph: Graph, most: int) -> int:
    """Count the steps of a pass on a graph; gives up beyond `most`."""
    context = Context(dims={"N": 8})
    context.shapes(graph)
    pass_ = find(name)()
    return growing.steps(lambda: run_pass(pass_, graph, context), most)


@pytest.mark.parametrize("shape", growing.SHAPES)
def test_steps_grow_with_the_graph(shape: str) -> None:
    kind = "flat" if shape in growing.FLAT else "nested"
    small = 30 if kind == "flat" else 5
    slow = {}
    for name in PASSES:
        first = cost(name, growing.SHAPES[shape](small), 10**6)
        allowed = int(FACTOR ** GROWTH[kind] * first) + 100
        if cost(name, growing.SHAPES[shape](FACTOR * small), allowed) > allowed:
            slow[name] = (first, allowed)
    assert not slow, f"more than (steps at {small}, allowed at {FACTOR * small}): {slow}"
