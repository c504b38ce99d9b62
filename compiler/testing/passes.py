"""Run a pass on a graph, outside a pipeline."""

from __future__ import annotations

from collections import Counter

from memoptc.ir.core import Graph
from memoptc.pass_base import Context, Pass


def run_pass(pass_: Pass, graph: Graph, context: Context | None = None) -> Counter[str]:
    """Run a pass on a graph, in place, and give what it counted.

    Args:
        pass_: The pass, with its options.
        graph: The top graph.
        context: Facts about the compile; what earlier passes counted in it is forgotten. One without data by default.
    """
    context = Context() if context is None else context
    context.stats = Counter()
    pass_.run(graph, context)
    return context.stats
