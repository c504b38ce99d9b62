"""lower: make the graph ready to be written: what onnxruntime does not survive kept apart, every new node named."""

from __future__ import annotations

from typing import ClassVar

from memoptc.ir.core import Graph
from memoptc.ir.names import unique
from memoptc.pass_base import Context, Pass
from memoptc.passes.lower._bodies import enter_bodies

BORDERS = ("QuantizeLinear", "DequantizeLinear")
"""Between codes and floats: there may be more of them than of all others, and their results' names serve as names."""

MOST_NODES = 16
"""Nodes of the original named in one node's metadata: where most of a model ends in one node, a file of small weights
would hold more names than numbers."""

MARKERS = ("const", "absent", "sparse_const")


class Lower(Pass):
    """Name what passes made, and write the provenance of each such node into its metadata.

    A node that a rule made carries `memoptc.rules` (which rules, oldest first) and `memoptc.nodes` (which
    nodes of the original it stands for, or codes numbers of), so that any node of the output can say why it is there.
    Of more nodes than `MOST_NODES` the first are named, and `memoptc.further_nodes` counts the others.
    """

    kept: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        """Name and annotate nodes; their order stays."""
        context.stats["moved into bodies"] += enter_bodies(graph)
        taken = {op.name for op in graph.walk() if op.name}
        for op in graph.walk():
            if not op.domain and op.op_type in MARKERS:
                continue
            if op.loc.rules:
                op.metadata["memoptc.rules"] = ",".join(op.loc.rules)
                if op.loc.nodes:
                    op.metadata["memoptc.nodes"] = ",".join(op.loc.nodes[:MOST_NODES])
                if len(op.loc.nodes) > MOST_NODES:
                    op.metadata["memoptc.further_nodes"] = str(len(op.loc.nodes) - MOST_NODES)
                context.stats["annotated"] += 1
                if not op.name and op.op_type not in BORDERS:
                    op.name = unique(f"{op.op_type}_{op.results[0].name}" if op.results else op.op_type, taken)
                    context.stats["named"] += 1
