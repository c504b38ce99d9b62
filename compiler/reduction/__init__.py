"""Delta debugging: the smallest model that still shows a failure.

`reduce_model` takes a model and a `Check`, and removes nodes, subgraphs, extents, weights and attributes as long as the
check says that what is left still fails. Every trial runs in a process of its own.
"""

from memoptc.reduction.check import Check, CommandCheck, CompileCheck
from memoptc.reduction.search import Reduction, reduce_file, reduce_model

__all__ = ["Check", "CommandCheck", "CompileCheck", "Reduction", "reduce_file", "reduce_model"]
