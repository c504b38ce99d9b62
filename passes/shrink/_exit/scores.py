"""The scores that a classifier gives."""

from __future__ import annotations

from memoptc.ir.core import Graph, Value


def class_scores(graph: Graph) -> Value:
    """Give the scores `[batch, classes]`: the only output, or what a final Softmax makes probabilities of."""
    (output,) = graph.outputs
    return output.op.operands[0] if output.op is not None and output.op.is_a("Softmax") else output
