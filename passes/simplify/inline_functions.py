"""inline-functions: put the bodies of local functions where they are called, so that other passes see into them."""

from __future__ import annotations

from typing import ClassVar

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.functions import inlined
from memoptc.pass_base import Context, Pass


class InlineFunctions(Pass):
    """Replace calls of the model's own functions by their bodies, with ONNX's own inliner.

    onnxruntime does the same when it loads a model, so no number changes. Functions that cannot be inlined
    (of another opset than the model, say) stay, and passes leave calls of them alone.
    """

    kept: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        """Inline all functions at once."""
        info = graph.model
        if info is None or not info.functions:
            return
        before = len(info.functions)
        try:
            bodies = inlined(graph)
        except MemoptcError as e:
            context.warnings.append(f"Local functions stay as they are: {e.message}")
            return
        graph.become(bodies)
        info.functions = dict(bodies.info.functions)
        for domain, version in bodies.info.opset_imports.items():
            info.opset_imports.setdefault(domain, version)
        context.shapes(graph)
        context.stats["functions inlined"] += before - len(info.functions)
