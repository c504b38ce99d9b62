"""Order of the nodes of an ONNX graph, and the names that they see."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import onnx

from memoptc.ir.core import Value
from memoptc.ir.diagnostics import InputError


class Scope(dict[str, Value]):
    """Names visible in a graph; an inner one looks in the outer one, too."""

    def __init__(self, outer: Scope | None = None) -> None:
        super().__init__()
        self.outer = outer

    def find(self, name: str) -> Value | None:
        """Give the value of this name; `None` where nothing visible has it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope:
                return scope[name]
            scope = scope.outer
        return None


def broken_rule(label: str, what: str) -> InputError:
    """Say which rule of ONNX a model breaks."""
    return InputError(f"{label}: {what}.", hint="The model breaks a rule of ONNX; export it again.")


def in_order(nodes: Sequence[onnx.NodeProto], scope: Scope, graph_name: str, label: str) -> Sequence[onnx.NodeProto]:
    """Give the nodes in an order in which each comes after what it uses: the file's, when that is one.

    Args:
        nodes: The nodes of one graph.
        scope: What is visible in it besides their results.
        graph_name: Its name, for messages.
        label: The model's name, for messages.

    Raises:
        InputError: a name is defined twice or never, or there is a cycle.
    """
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producer or name in scope:
                raise broken_rule(label, f"two nodes or weights define {name!r}, {called(node)} among them")
            producer[name] = index
    needs: list[set[int]] = []
    ordered = True
    for index, node in enumerate(nodes):
        before: set[int] = set()
        for name in used_names(node):
            if name in producer:
                before.add(producer[name])
            elif scope.find(name) is None:
                raise broken_rule(label, f"{called(node)} in graph {graph_name!r} uses {name!r}, which nothing defines")
        needs.append(before)
        ordered = ordered and all(b < index for b in before)
    return nodes if ordered else _sorted(nodes, needs, label)


def _sorted(nodes: Sequence[onnx.NodeProto], needs: list[set[int]], label: str) -> Sequence[onnx.NodeProto]:
    users: dict[int, list[int]] = {}
    waiting = [len(n) for n in needs]
    for index, before in enumerate(needs):
        for b in before:
            users.setdefault(b, []).append(index)
    ready = [i for i, n in enumerate(waiting) if n == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(nodes[index])
        for user in users.get(index, ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    if len(order) < len(nodes):
        stuck = [called(nodes[i]) for i, n in enumerate(waiting) if n > 0]
        raise broken_rule(label, f"there is a cycle through {', '.join(stuck[:5])}")
    return order


def called(node: onnx.NodeProto) -> str:
    """Name a node in a message, by what it gives where it has no name."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    return f"the {node.op_type} node that gives {node.output[0]!r}" if node.output else f"a {node.op_type} node"


def used_names(node: onnx.NodeProto) -> set[str]:
    """Names a node uses from its own graph or further out: its inputs, and what its subgraphs capture."""
    names = {n for n in node.input if n}
    for attr in node.attribute:
        for graph in (*((attr.g,) if attr.HasField("g") else ()), *attr.graphs):
            inner = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            inner |= {t.values.name for t in graph.sparse_initializer}
            used: set[str] = {o.name for o in graph.output}
            for n in graph.node:
                used |= used_names(n)
                inner.update(n.output)
            names |= used - inner
    return names
