"""The scores that a classifier gives."""

from __future__ import annotations

from memoptc.ir.core import Graph, Value


def class_scores(graph: Graph) -> Value:
    """Give the scores `[batch, classes]`: the only output, or what a final Softmax makes probabilities of."""
    (output,) = graph.outputs
    return output.op.operands[0] if gives_probabilities(graph) and output.op is not None else output


def gives_probabilities(graph: Graph) -> bool:
    """True if the only output, `[batch, classes]`, is a Softmax over the classes."""
    op = graph.outputs[0].op
    return op is not None and op.is_a("Softmax") and op.attrs.get("axis", -1) in (-1, 1)
