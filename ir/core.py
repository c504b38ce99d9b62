"""Values, ops and graphs: a program, with use-def chains that cannot go wrong.

Everything that uses a value is an operand: a graph's outputs are the operands of its final `return` op,
weights are results of `const`, and an optional input that is not given is the result of `absent`. Ops live
in a linked list that may be changed while one walks it; its order is the schedule.

`Value`, `Op` and `Graph` are one data structure in three files: each refers to the other two, an edge is stored at both
its ends, and every change of one of them raises the version of the graphs around it. So each reads and writes private
fields of the others, which nothing else does but the verifier.
"""

from memoptc.ir.facts import NOWHERE, AttrRef, AttrValue, EmptyList, Loc, Output, Tensor
from memoptc.ir.graph import Graph
from memoptc.ir.model import Function, ModelInfo
from memoptc.ir.operation import Op, clone_op
from memoptc.ir.value import Value

__all__ = [
    "NOWHERE", "AttrRef", "AttrValue", "EmptyList", "Function", "Graph", "Loc", "ModelInfo", "Op", "Output",
    "Tensor", "Value", "clone_op",
]  # fmt: skip
