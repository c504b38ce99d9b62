"""The order of ops with the smallest peak: exact where a graph is small or narrow, good where it is not.

The bytes alive after a set of ops has run depend on that set alone, not on the order within it: a buffer is alive
when its maker has run and a user has not, and computing in place exchanges two buffers of one size. So an op that every
other op comes before or after (a *waist*) splits the problem in two, and within a segment the best order is a path
through the sets of executed ops whose highest step is lowest (Sethi, "Complete register allocation problems", 1975; as
dynamic programming over such sets: Ahn et al., "Ordering chaos: memory-aware scheduling of irregularly wired neural
networks for edge devices", 2020). A search that always takes up the set with the lowest peak so far meets the full set
with the lowest peak there is, and until then every set it takes up bounds that from below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op
from memoptc.runtime.memory.downsets import LARGEST, Piece, Segment
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import Footprint, footprint, is_resident, used_values
from memoptc.runtime.memory.heuristics import heuristic_orders
from memoptc.runtime.memory.running_liveness import RunningLiveness
from memoptc.runtime.memory.workspace import Workspace, kernel_workspace

EFFORT = 1_000_000
"""Steps from one set of executed ops to another that `best_order` may look at, by default: about a second."""


@dataclass(frozen=True)
class Ordered:
    """An order and what is known of it.

    Args:
        order: Every op of the graph, weights first.
        peak_bytes: Its peak.
        given_bytes: The peak of the graph's own order.
        bound_bytes: No order has a smaller peak than this.
        how: What found it: `given`, a heuristic, `exact` or `beam`.
        looked: Steps that were looked at.
    """

    order: tuple[Op, ...]
    peak_bytes: int
    given_bytes: int
    bound_bytes: int
    how: str
    looked: int

    @property
    def proven(self) -> bool:
        """True if no order is better."""
        return self.peak_bytes <= self.bound_bytes


def best_order(
    graph: Graph,
    dims: Mapping[str, int],
    *,
    effort: int = EFFORT,
    workspace: Workspace | None = None,
) -> Ordered:
    """Find an order with a small peak, and a bound that no order can beat.

    Effort is counted in steps of the search, so the answer is the same everywhere. Ops that are no functions of
    their operands keep their order among themselves. O(n log n) beside the search.

    Args:
        graph: A graph or region.
        dims: Extents of symbolic dimensions.
        effort: How many steps may be looked at.
        workspace: Bytes that an op's kernel needs besides; onnxruntime's when not given.
    """
    problem = _Problem(graph, dims, workspace)
    best: list[int] = list(range(problem.count))
    given = peak = problem.peak(best)
    how = "given"
    if peak > _Search(problem, 0).improve(best)[0]:
        for name, tried in heuristic_orders(graph, problem.dims):
            numbers = [problem.number[op] for op in tried if op in problem.number]
            if (found := problem.peak(numbers)) < peak:
                best, peak, how = numbers, found, name
    search = _Search(problem, effort)
    bound, improved = search.improve(best)
    if improved is not None and (found := problem.peak(improved)) < peak:
        best, peak, how = improved, found, search.how
    resident = [op for op in graph.ops if is_resident(op)]
    order = list(graph.ops) if how == "given" else [*resident, *(problem.ops[i] for i in best)]
    return Ordered(tuple(order), peak, given, min(max(bound, problem.at_the_end), peak), how, search.looked)


class _Problem:
    """A graph's ops as numbers: what each needs, makes and frees, in bytes."""

    def __init__(self, graph: Graph, dims: Mapping[str, int], workspace: Workspace | None) -> None:
        self.graph, self.dims = graph, extents(graph, dims)
        self.workspace = workspace or kernel_workspace(self.dims)
        self.layout: Footprint = footprint(graph)
        self.ops: Sequence[Op] = self.layout.ops
        self.count = len(self.ops)
        self.number = {op: i for i, op in enumerate(self.ops)}
        self.sizes = [size or 0 for size in self.layout.bind(self.dims)]
        self.before = self._dependences()
        self.after: list[list[int]] = [[] for _ in self.ops]
        for index, needs in enumerate(self.before):
            for need in needs:
                self.after[need].append(index)
        self.users: list[list[int]] = [[] for _ in self.layout.groups]
        for index, groups in enumerate(self.layout.needs):
            for group in groups:
                self.users[group].append(index)
        self.running = RunningLiveness(graph, self.dims, workspace=self.workspace)
        self.at_the_end = self.running.end_bytes

    def _dependences(self) -> list[list[int]]:
        found = []
        previous: int | None = None
        for index, op in enumerate(self.ops):
            needs = {self.number[v.op] for v in used_values(op) if v.op is not None and v.op in self.number}
            if not ops.is_pure(op):
                needs |= {previous} if previous is not None else set()
                previous = index
            found.append(sorted(needs))
        return found

    def peak(self, order: Sequence[int]) -> int:
        """The peak of an order, as the memory model sees it."""
        self.running.reset()
        for index in order:
            self.running.run(index)
        return self.running.peak

    def waists(self) -> list[int]:
        """Ops that every other op comes before or after: as many must run before one as cannot run after it."""
        forwards = _positions(self.before, self.after)
        backwards = _positions(self.after, self.before)
        return [i for i in range(self.count) if forwards[i] + backwards[i] == self.count - 1]


def _positions(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[int]:
    """Position at which an op is the only one ready; more than there are ops for all others.

    When nothing else is ready, all that has not run follows from the op. If exactly its ancestors have run by then, the
    op is a waist; counted from both ends, the two numbers then add up to all other ops, and only then.
    """
    waiting = [len(b) for b in before]
    ready = [i for i, w in enumerate(waiting) if not w]
    found = [len(before)] * len(before)
    ran = 0
    while ready:
        index = ready.pop()
        if not ready:
            found[index] = ran
        ran += 1
        for user in after[index]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    return found


class _Search:
    """Better orders of the segments whose peak is the graph's."""

    def __init__(self, problem: _Problem, effort: int) -> None:
        self.problem = problem
        self.left = effort
        self.looked = 0
        self.how = "exact"

    def improve(self, order: Sequence[int]) -> tuple[int, list[int] | None]:
        """Improve segments, the highest first, until one that cannot be.

        Returns:
            A bound on the peak of every order, and a better order if one was found.
        """
        pieces = list(self._split(order))
        bound, changed = 0, False
        for piece in sorted(pieces, key=lambda s: -s.peak):
            if piece.peak <= bound:
                break
            if len(piece.order) > LARGEST:
                bound = max(bound, piece.live, max(self._least(i) for i in piece.order))
                continue
            segment = Segment(self.problem, piece)
            low, better, exact = segment.solve(self.left)
            self.left -= segment.looked
            self.looked += segment.looked
            bound = max(bound, low)
            if better is not None:
                piece.order, changed = better, True
                self.how = self.how if exact else "beam"
        return bound, [i for piece in pieces for i in piece.order] if changed else None

    def _least(self, op: int) -> int:
        """Bytes that an op makes whenever it runs, less an operand that it may overwrite."""
        made = self.problem.layout.makes[op]
        sizes = [self.problem.sizes[g] for g in made]
        return sum(sizes) - (sizes[0] if made and self.problem.layout.takes[op] else 0)

    def _split(self, order: Sequence[int]) -> Iterator[Piece]:
        """Cut an order behind each waist."""
        ends = set(self.problem.waists())
        rank = {index: i for i, index in enumerate(order)}
        running = self.problem.running
        running.reset()
        start = 0
        live = peak = running.live
        for position, index in enumerate(order):
            peak = max(peak, running.live + running.effect(index)[0])
            running.run(index)
            if index in ends or position == len(order) - 1:
                yield Piece(list(order[start : position + 1]), live, peak, rank, position + 1)
                start, live = position + 1, running.live
                peak = live
