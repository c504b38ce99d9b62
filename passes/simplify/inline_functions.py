"""inline-functions: put the bodies of local functions where they are called, so that other passes see into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx.inliner

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.pass_base import Context, Pass


class InlineFunctions(Pass):
    """Replace calls of the model's own functions by their bodies, with ONNX's own inliner.

    onnxruntime does the same when it loads a model, so no number changes. Functions that cannot be inlined
    (of another opset than the model, say) stay, and passes leave calls of them alone.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Inline all functions at once."""
        info = graph.model
        if info is None or not info.functions:
            return
        before = len(info.functions)
        try:
            inlined = read_onnx(onnx.inliner.inline_local_functions(_with_defaults(to_proto(graph))))
        except MemoptcError as e:
            context.warnings.append(f"Local functions stay as they are: {e.message}")
            return
        graph.become(inlined)
        info.functions = dict(inlined.info.functions)
        for domain, version in inlined.info.opset_imports.items():
            info.opset_imports.setdefault(domain, version)
        context.shapes(graph)
        context.stats["functions inlined"] += before - len(info.functions)


def _with_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name, in every call of a function, the attributes that it leaves to their defaults: the inliner forgets those."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        _name_defaults(nodes, functions)
    return model


def _name_defaults(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
) -> None:
    for node in nodes:
        called = functions.get((node.domain, node.op_type, node.overload))
        if called is not None:
            stated = {attr.name for attr in node.attribute}
            node.attribute.extend(attr for attr in called.attribute_proto if attr.name not in stated)
        for attr in node.attribute:
            for inner in (attr.g, *attr.graphs):
                _name_defaults(inner.node, functions)
