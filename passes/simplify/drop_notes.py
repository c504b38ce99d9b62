"""drop-notes: leave out the exporter's notes on nodes and values, such as stack traces; names stay."""

from __future__ import annotations

from memoptc.ir.core import Graph, Op, Value
from memoptc.pass_base import Context, Pass
from memoptc.report.model import Decision

_OURS = "memoptc."
_ANNOTATION = "quantization_annotation."


class DropNotes(Pass):
    """Drop doc strings and metadata of nodes and values, in bodies and local functions, too.

    Nothing that runs a model reads them, but onnxruntime holds them for as long as a session lives, and exporters write
    hundreds of bytes per node: 0.16 MB of each session of a small encoder (MiniLM-L6 from torch, onnxruntime 1.32), and
    a tenth of the file where weights were made small. What the model says about itself (its own doc string and
    metadata) and about its inputs and outputs, names, and quantization annotations stay.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Drop them, and say how many bytes that was."""
        total = 0
        functions = graph.model.functions.values() if graph.model is not None else ()
        for body in (graph, *(f.body for f in functions)):
            total += sum(_drop(v) for v in body.inputs if body is not graph)
            for op in body.walk():
                total += _drop(op) + sum(_drop(r) for r in op.results)
                total += sum(_drop(v) for region in op.regions.values() for v in region.inputs)
        context.stats["bytes of notes"] += total
        if total:
            what = f"{total} bytes of notes on nodes and values left out"
            context.decisions.append(
                Decision(self.name, what, "nothing that runs the model reads them", gain_bytes=total)
            )


def _drop(owner: Op | Value) -> int:
    dropped = {k: v for k, v in owner.metadata.items() if not k.startswith((_OURS, _ANNOTATION))}
    total = len(owner.doc.encode()) + sum(len(k.encode()) + len(v.encode()) for k, v in dropped.items())
    owner.doc = ""
    for key in dropped:
        del owner.metadata[key]
    return total
