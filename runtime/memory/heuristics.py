"""Orders that are often good: depth first from the outputs, and list scheduling."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.runtime.memory.liveness import value_bytes


def heuristic_orders(graph: Graph, dims: Mapping[str, int]) -> Iterator[tuple[str, list[Op]]]:
    """Give orders by name: depth first from the outputs, the branch that needs most memory first (as Sethi and Ullman
    number registers, 1970); and list scheduling by the bytes that a step adds less those it frees.

    Args:
        graph: A graph or region.
        dims: Extents of symbolic dimensions.
    """
    problem = _Dependences(graph, dims)
    yield "depth first", problem.depth_first()
    yield "list scheduling", problem.list_schedule(eager=False)
    yield "list scheduling, eager", problem.list_schedule(eager=True)


@dataclass
class _Node:
    op: Op
    index: int
    needs: list[int]
    users: list[int]
    made: int
    operands: list[Value]


class _Dependences:
    """A graph's ops as numbers, with what each needs and the bytes it makes."""

    def __init__(self, graph: Graph, dims: Mapping[str, int]) -> None:
        self.nodes = [_Node(op, i, [], [], 0, []) for i, op in enumerate(graph.ops)]
        number = {node.op: node.index for node in self.nodes}
        self.bytes: dict[Value, int] = {}
        self.uses: dict[Value, set[int]] = {}
        previous: int | None = None
        for node in self.nodes:
            op = node.op
            used = list(dict.fromkeys((*op.operands, *_captured(op))))
            needs = {number[v.op] for v in used if v.op is not None and v.op in number}
            if not ops.is_pure(op):
                needs |= {previous} if previous is not None else set()
                previous = node.index
            node.needs = sorted(needs)
            node.operands = [v for v in used if v.op is not None and v.op in number and not _is_free(v.op)]
            for value in node.operands:
                self.uses.setdefault(value, set()).add(node.index)
            if not _is_free(op):
                for result in op.results:
                    self.bytes[result] = value_bytes(result, dims) or 0
                    node.made += self.bytes[result]
        for node in self.nodes:
            for need in node.needs:
                self.nodes[need].users.append(node.index)
        self.outputs = [number[v.op] for v in graph.outputs if v.op is not None and v.op in number]
        self.kept = set(graph.outputs)

    def depth_first(self) -> list[Op]:
        """From the outputs, what needs most memory first."""
        weight = self._weights()
        done = [False] * len(self.nodes)
        order: list[int] = []
        roots = [*self.outputs, *(n.index for n in self.nodes if not n.users), *range(len(self.nodes))]
        for root in roots:
            stack = [(root, False)]
            while stack:
                index, expanded = stack.pop()
                if done[index]:
                    continue
                if expanded:
                    done[index] = True
                    order.append(index)
                    continue
                stack.append((index, True))
                for need in sorted(self.nodes[index].needs, key=lambda n: (weight[n], -n)):
                    if not done[need]:
                        stack.append((need, False))
        return [self.nodes[i].op for i in order]

    def _weights(self) -> list[int]:
        """About how many bytes computing a node takes at most: its own, or those of its hungriest operand."""
        weight = [0] * len(self.nodes)
        for node in self.nodes:
            below = sorted((weight[n] for n in node.needs), reverse=True)
            held = 0
            most = node.made + sum(self.bytes.get(v, 0) for v in node.operands)
            for need, w in zip(sorted(node.needs, key=lambda n: -weight[n]), below, strict=True):
                most = max(most, held + w)
                held += self.nodes[need].made
            weight[node.index] = most
        return weight

    def list_schedule(self, *, eager: bool) -> list[Op]:
        """Always run the ready op that adds the fewest bytes; `eager` prefers what was made ready last."""
        waiting = [len(n.needs) for n in self.nodes]
        left = {v: set(users) for v, users in self.uses.items()}
        ready = [(self._score(n, left, eager, 0), n.index) for n in self.nodes if not n.needs]
        heapq.heapify(ready)
        done = [False] * len(self.nodes)
        order: list[int] = []
        while ready:
            score, index = heapq.heappop(ready)
            if done[index]:
                continue
            now = self._score(self.nodes[index], left, eager, -score[1] if eager else 0)
            if now > score:
                heapq.heappush(ready, (now, index))
                continue
            done[index] = True
            order.append(index)
            node = self.nodes[index]
            for value in node.operands:
                left[value].discard(index)
                if len(left[value]) == 1:
                    # Its last user now frees it, so that user's score has fallen: offer it again.
                    (last,) = left[value]
                    if waiting[last] == 0 and last != index:
                        heapq.heappush(ready, (self._score(self.nodes[last], left, eager, len(order)), last))
            for user in node.users:
                waiting[user] -= 1
                if waiting[user] == 0:
                    heapq.heappush(ready, (self._score(self.nodes[user], left, eager, len(order)), user))
        return [self.nodes[i].op for i in order]

    def _score(self, node: _Node, left: Mapping[Value, set[int]], eager: bool, step: int) -> tuple[int, int]:
        freed = sum(self.bytes.get(v, 0) for v in node.operands if left[v] <= {node.index} and v not in self.kept)
        return (node.made - freed, -step if eager else 0)


def _captured(op: Op) -> Iterable[Value]:
    for region in op.regions.values():
        yield from region.captures()


def _is_free(op: Op) -> bool:
    """Weights and markers take no activation memory."""
    return not op.domain and op.op_type in ("const", "absent", "sparse_const")
