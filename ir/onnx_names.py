"""Names of values in an ONNX file, where every name of a graph and of those around it is taken once."""

from __future__ import annotations

from memoptc.ir import ops
from memoptc.ir.core import Graph, Value


class Names:
    """Names of values in the file: the value's own where that is free in its scope, else made unique."""

    def __init__(self) -> None:
        self.of: dict[Value, str] = {}
        self.identities: dict[Graph, list[tuple[str, str]]] = {}
        """Per graph, (source, output name) where an output needs an Identity to get its name."""

    def assign(self, graph: Graph, outer: frozenset[str] | set[str] = frozenset()) -> None:
        """Name every value of `graph` and its regions; `outer` holds names visible from outside."""
        taken = set(outer)
        top = not outer and graph.parent is None
        for value in graph.inputs:
            self._take(value, value.name or "input", taken)
        if top:
            taken.update(o.name for o in graph.outputs_info)
        self._outputs(graph, taken, keep=top)
        for op in graph.ops:
            for result in op.results:
                if not result.omitted and result not in self.of and op.op_type != "absent":
                    self._take(result, result.name or op.op_type, taken)
        for op in graph.ops:
            for region in op.regions.values():
                self.assign(region, taken)
        self._missing_outputs(graph, taken)

    def _outputs(self, graph: Graph, taken: set[str], *, keep: bool) -> None:
        """Give each output's name to the value it returns, where one value can carry it."""
        for value, info in zip(graph.outputs, graph.outputs_info, strict=True):
            local = value.op is not None and value.op.graph is graph
            name = info.name if keep else (info.name or value.name)
            if local and value not in self.of and (keep or name not in taken):
                self.of[value] = name
                taken.add(name)

    def _missing_outputs(self, graph: Graph, taken: set[str]) -> None:
        todo: list[tuple[str, str]] = []
        seen: set[str] = set()
        self.outputs = getattr(self, "outputs", {})
        final: list[str] = []
        top = graph.parent is None
        for value, info in zip(graph.outputs, graph.outputs_info, strict=True):
            name = self.of[value]
            if top and name != info.name:
                todo.append((name, info.name))
                name = info.name
            elif not top and (name in seen or value.graph is not graph or ops.leaves_unwritten(value, graph)):
                fresh = _unique(info.name or name, taken)
                taken.add(fresh)
                todo.append((name, fresh))
                name = fresh
            seen.add(name)
            final.append(name)
        self.identities[graph] = todo
        self.outputs[graph] = final

    def _take(self, value: Value, hint: str, taken: set[str]) -> None:
        name = _unique(hint, taken)
        self.of[value] = name
        taken.add(name)


def _unique(hint: str, taken: set[str]) -> str:
    name, n = hint, 1
    while name in taken:
        name, n = f"{hint}_{n}", n + 1
    return name
