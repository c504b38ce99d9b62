"""Names of values in an ONNX file, where every name of a graph and of those around it is taken once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memoptc.ir import ops
from memoptc.ir.core import Graph, Value


class _Taken:
    """Names that a graph cannot take: its own, and those of the graphs around it."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._next: dict[str, int] = {}
        """Hint -> the number to try next: all before it are taken."""
        self._log: list[tuple[str, int | None]] = []

    def add(self, name: str) -> None:
        if name not in self.names:
            self.names.add(name)
            self._log.append((name, None))

    def unique(self, hint: str) -> str:
        """Take a name: the hint where it is free, else with a number."""
        name = hint
        if hint in self.names:
            before = n = self._next.get(hint, 1)
            while (name := f"{hint}_{n}") in self.names:
                n += 1
            self._next[hint] = n + 1
            self._log.append((hint, before))
        self.add(name)
        return name

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Take names that are free again behind it: those of a region, which only it and its regions see."""
        outer, self._log = self._log, []
        try:
            yield
        finally:
            for name, before in reversed(self._log):
                if before is None:
                    self.names.discard(name)
                else:
                    self._next[name] = before
            self._log = outer


class Names:
    """Names of values in the file: the value's own where that is free in its scope, else made unique."""

    def __init__(self) -> None:
        self.of: dict[Value, str] = {}
        self.identities: dict[Graph, list[tuple[str, str]]] = {}
        """Per graph, (source, output name) where an output needs an Identity to get its name."""

    def assign(self, graph: Graph) -> None:
        """Name every value of `graph` and its regions."""
        self._assign(graph, _Taken(), top=graph.parent is None)

    def _assign(self, graph: Graph, taken: _Taken, *, top: bool = False) -> None:
        for value in graph.inputs:
            self.of[value] = taken.unique(value.name or "input")
        if top:
            for info in graph.outputs_info:
                taken.add(info.name)
        self._outputs(graph, taken, keep=top)
        for op in graph.ops:
            for result in op.results:
                if not result.omitted and result not in self.of and op.op_type != "absent":
                    self.of[result] = taken.unique(result.name or op.op_type)
        for op in graph.ops:
            for region in op.regions.values():
                with taken.inside():
                    self._assign(region, taken)
        self._missing_outputs(graph, taken)

    def _outputs(self, graph: Graph, taken: _Taken, *, keep: bool) -> None:
        """Give each output's name to the value it returns, where one value can carry it."""
        for value, info in zip(graph.outputs, graph.outputs_info, strict=True):
            local = value.op is not None and value.op.graph is graph
            name = info.name if keep else (info.name or value.name)
            if local and value not in self.of and (keep or name not in taken.names):
                self.of[value] = name
                taken.add(name)

    def _missing_outputs(self, graph: Graph, taken: _Taken) -> None:
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
                fresh = taken.unique(info.name or name)
                todo.append((name, fresh))
                name = fresh
            seen.add(name)
            final.append(name)
        self.identities[graph] = todo
        self.outputs[graph] = final
