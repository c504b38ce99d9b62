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

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import Footprint, footprint, is_resident, used_values
from memoptc.runtime.memory.heuristics import heuristic_orders
from memoptc.runtime.memory.liveness import inner_bytes
from memoptc.runtime.memory.tally import Tally
from memoptc.runtime.memory.workspace import Workspace, kernel_workspace

EFFORT = 1_000_000
"""Steps from one set of executed ops to another that `best_order` may look at, by default: about a second."""

_EXACT, _BEAM = 600, 3000
"""Most ops of a segment that is searched exactly, and by beam."""

_WIDTH = 32
"""Sets that a beam search keeps per step."""


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
        """Whether no order is better."""
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
    given = problem.peak(range(problem.count))
    best, peak, how = list(range(problem.count)), given, "given"
    if problem.count:
        for name, tried in heuristic_orders(graph, problem.dims):
            numbers = [problem.number[op] for op in tried if op in problem.number]
            if (found := problem.peak(numbers)) < peak:
                best, peak, how = numbers, found, name
    search = _Search(problem, effort)
    bound, improved = search.improve(best, peak)
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
        self.inner = [inner_bytes(op, self.dims, self.workspace) for op in self.ops]
        self.before = self._dependences()
        self.after: list[list[int]] = [[] for _ in self.ops]
        for index, needs in enumerate(self.before):
            for need in needs:
                self.after[need].append(index)
        self.users: list[list[int]] = [[] for _ in self.layout.groups]
        for index, groups in enumerate(self.layout.needs):
            for group in groups:
                self.users[group].append(index)
        empty = Tally(graph, self.dims, workspace=self.workspace)
        self.at_start = empty.live
        self.at_the_end = empty.end_bytes

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
        tally = Tally(self.graph, self.dims, workspace=self.workspace)
        for index in order:
            tally.run(index)
        return tally.peak

    def waists(self) -> list[int]:
        """Ops that every other op comes before or after: as many must run before one as cannot run after it."""
        forwards = _positions(self.before, self.after)
        backwards = _positions(self.after, self.before)
        return [i for i in range(self.count) if forwards[i] + backwards[i] == self.count - 1]


def _positions(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[int]:
    """How many ops have run when an op is the only one that is ready; more than there are for all others.

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

    def improve(self, order: Sequence[int], peak: int) -> tuple[int, list[int] | None]:
        """Improve segments, the highest first, until one that cannot be.

        Returns:
            A bound on the peak of every order, and a better order if one was found.
        """
        pieces = list(self._split(order))
        bound, changed = 0, False
        for piece in sorted(pieces, key=lambda s: -s.peak):
            if piece.peak <= bound:
                break
            low, better, exact = piece.solve(self.left)
            self.left -= piece.looked
            self.looked += piece.looked
            bound = max(bound, low)
            if better is not None:
                piece.order, changed = better, True
                self.how = self.how if exact else "beam"
        return bound, [i for piece in pieces for i in piece.order] if changed else None

    def _split(self, order: Sequence[int]) -> Iterator[_Segment]:
        """Cut an order behind each waist."""
        ends = set(self.problem.waists())
        rank = {index: i for i, index in enumerate(order)}
        tally = Tally(self.problem.graph, self.problem.dims, workspace=self.problem.workspace)
        start, live = 0, tally.live
        for position, index in enumerate(order):
            tally.run(index)
            if index in ends or position == len(order) - 1:
                yield _Segment(self.problem, list(order[start : position + 1]), live, rank, position + 1)
                start, live = position + 1, tally.live


class _Segment:
    """Ops between two waists. Sets of executed ops are bit masks over them.

    Args:
        problem: The whole.
        order: The ops, in an order to begin with.
        live: Bytes alive before the first.
        rank: Position of each op in the whole order.
        end: Position after the last op here.
    """

    def __init__(self, problem: _Problem, order: list[int], live: int, rank: Mapping[int, int], end: int) -> None:
        self.order, self.live = order, live
        self.looked = 0
        place = {index: i for i, index in enumerate(order)}
        layout, groups = problem.layout, problem.layout.groups
        dies: dict[int, int] = {}
        maker = {g: place[index] for index in order for g in layout.makes[index]}
        self.buffers: list[tuple[int, int | None, int, bool]] = []
        """Size, maker here, users here, and whether it lives on behind the end."""
        for group in {g for index in order for g in (*layout.needs[index], *layout.makes[index])}:
            users = sum(1 << place[u] for u in problem.users[group] if u in place)
            lives_on = groups[group].pinned or any(rank[u] >= end for u in problem.users[group])
            self.buffers.append((problem.sizes[group], maker.get(group), users, lives_on))
            if not lives_on:
                dies[group] = users
        self.count = len(order)
        self.full = (1 << self.count) - 1
        self.needs = [sum(1 << place[n] for n in problem.before[i] if n in place) for i in order]
        self.after = [[place[u] for u in problem.after[i] if u in place] for i in order]
        self.frees = [[(dies[g], problem.sizes[g]) for g in layout.needs[i] if g in dies] for i in order]
        self.takes = [[dies[g] for g in layout.takes[i] if g in dies] for i in order]
        self.made = [sum(problem.sizes[g] for g in layout.makes[i]) for i in order]
        self.first = [problem.sizes[layout.makes[i][0]] if layout.makes[i] else 0 for i in order]
        self.unused = [bool(layout.makes[i]) and not groups[layout.makes[i][0]].users for i in order]
        self.inner = [problem.inner[i] for i in order]
        # A result that nobody uses goes at once where it could overwrite an operand, and stays where it could not:
        # then what is alive does depend on the order.
        self.is_exact = not any(unused and takes for unused, takes in zip(self.unused, self.takes, strict=True))
        self.looked = 0
        self.peak = self._peak()
        self.looked = 0

    def _effect(self, executed: int, op: int) -> tuple[int, int]:
        """Bytes more alive during an op, and after it, when a set has been executed."""
        self.looked += 1
        after = executed | 1 << op
        made = self.made[op]
        taken = any(users & after == users for users in self.takes[op])
        freed = sum(size for users, size in self.frees[op] if users & after == users)
        if taken:
            made -= self.first[op]
            # The operand's bytes live on in the result, unless nobody uses that.
            freed -= 0 if self.unused[op] else self.first[op]
        return made + self.inner[op], made - freed

    def _peak(self) -> int:
        executed, live, peak = 0, self.live, self.live
        for op in range(self.count):
            during, change = self._effect(executed, op)
            peak = max(peak, live + during)
            live += change
            executed |= 1 << op
        return peak

    def solve(self, effort: int) -> tuple[int, list[int] | None, bool]:
        """Find a better order.

        Returns:
            A bound on this segment's peak, a better order of its ops or `None`, and whether the bound is reached.
        """
        floor = self._floor()
        if self.peak <= floor or effort <= 0:
            return floor, None, self.peak <= floor
        bound = floor
        if self.count <= _EXACT:
            bound, order = self._exact(floor, effort)
            if order is not None or bound >= self.peak:
                return bound if self.is_exact else floor, order, True
            bound = bound if self.is_exact else floor
        return bound, self._beam(2 * effort) if self.count <= _BEAM else None, False

    def _floor(self) -> int:
        """A bound on the peak of every order: what must be alive at some op.

        Whatever the order, at an op its results are alive, its workspace, and every buffer whose maker comes before it
        and that the op itself or something after it uses.
        """
        before = [0] * self.count
        for op in range(self.count):
            rest = self.needs[op]
            while rest:
                bit = rest & -rest
                rest ^= bit
                before[op] |= bit | before[bit.bit_length() - 1]
        behind = [0] * self.count
        for op in reversed(range(self.count)):
            for user in self.after[op]:
                behind[op] |= 1 << user | behind[user]
        least = [m + i - (f if t else 0) for m, i, f, t in self._facts()]
        always = self.live
        for size, maker, users, lives_on in self.buffers:
            if maker is None and lives_on:
                continue  # alive all along
            always -= size if maker is None else 0
            needed = self.full if lives_on else users
            rest = 0 if lives_on else users
            while rest:
                bit = rest & -rest
                rest ^= bit
                needed |= before[bit.bit_length() - 1]
            needed &= self.full if maker is None else behind[maker]
            while needed:
                bit = needed & -needed
                needed ^= bit
                least[bit.bit_length() - 1] += size
        return max(self.live, always + max(least))

    def _facts(self) -> Iterator[tuple[int, int, int, list[int]]]:
        return zip(self.made, self.inner, self.first, self.takes, strict=True)

    def _settle(self, executed: int, ready: int, live: int, peak: int) -> tuple[int, int, int, list[int]]:
        """Run every ready op that takes nothing: none of them can be wrong.

        Let an op fit under the peak so far and leave no more alive than before. In any order that goes on from here,
        move it to the front. What an op adds never grows as others run before it (more of its operands die with
        it), so between its new and its old place no more is alive than before, and others find as many operands to
        overwrite or more: no step of the order gets higher.
        """
        ran: list[int] = []
        again = True
        while again:
            again = False
            rest = ready
            while rest:
                bit = rest & -rest
                rest ^= bit
                op = bit.bit_length() - 1
                during, change = self._effect(executed, op)
                if change <= 0 and live + during <= peak:
                    executed |= bit
                    live += change
                    ready = self._advance(executed, ready, op)
                    ran.append(op)
                    again = True
        return executed, ready, live, ran

    def _advance(self, executed: int, ready: int, op: int) -> int:
        ready &= ~(1 << op)
        for user in self.after[op]:
            if self.needs[user] & ~executed == 0 and not executed >> user & 1:
                ready |= 1 << user
        return ready

    def _exact(self, floor: int, effort: int) -> tuple[int, list[int] | None]:
        """Take up sets of executed ops, the one with the lowest peak first, the fullest of these first."""
        ready = sum(1 << i for i in range(self.count) if not self.needs[i])
        base = max(self.live, floor)
        executed, ready, live, ran = self._settle(0, ready, self.live, base)
        lowest = {executed: base}
        heap = [(base, -executed.bit_count(), executed, ready, live, _Trail(None, tuple(ran)))]
        while heap:
            peak, _, executed, ready, live, trail = heapq.heappop(heap)
            if peak > lowest[executed]:
                continue
            if executed == self.full:
                return peak, [self.order[i] for i in trail.ops()]
            if self.looked >= effort:
                return peak, None
            rest = ready
            while rest:
                bit = rest & -rest
                rest ^= bit
                op = bit.bit_length() - 1
                during, change = self._effect(executed, op)
                reached = max(peak, live + during)
                if reached >= self.peak:
                    continue
                then = executed | bit
                then, open_, now, ran = self._settle(then, self._advance(then, ready, op), live + change, reached)
                if reached < lowest.get(then, self.peak):
                    lowest[then] = reached
                    entry = (reached, -then.bit_count(), then, open_, now, _Trail(trail, (op, *ran)))
                    heapq.heappush(heap, entry)
        return self.peak, None

    def _beam(self, effort: int) -> list[int] | None:
        """Keep the sets with the lowest peaks, of equals those with the fewest bytes alive, level by level."""
        ready = sum(1 << i for i in range(self.count) if not self.needs[i])
        executed, ready, live, ran = self._settle(0, ready, self.live, self.live)
        level = [(self.live, live, executed, ready, _Trail(None, tuple(ran)))]
        while level and self.looked < effort:
            following: dict[int, tuple[int, int, int, int, _Trail]] = {}
            for peak, live, executed, ready, trail in level:
                if self.looked >= effort:
                    return None
                if executed == self.full:
                    return [self.order[i] for i in trail.ops()] if peak < self.peak else None
                rest = ready
                while rest:
                    bit = rest & -rest
                    rest ^= bit
                    op = bit.bit_length() - 1
                    during, change = self._effect(executed, op)
                    reached = max(peak, live + during)
                    if reached >= self.peak:
                        continue
                    then = executed | bit
                    then, open_, now, ran = self._settle(then, self._advance(then, ready, op), live + change, reached)
                    if then not in following or reached < following[then][0]:
                        following[then] = (reached, now, then, open_, _Trail(trail, (op, *ran)))
            level = heapq.nsmallest(_WIDTH, following.values(), key=lambda t: (t[0], t[1], -t[2].bit_count(), t[2]))
        return None


@dataclass(frozen=True)
class _Trail:
    """Ops run on the way to a set, shared between ways that part later."""

    before: _Trail | None
    ran: tuple[int, ...]

    def ops(self) -> list[int]:
        """All of them, in order."""
        parts: list[tuple[int, ...]] = []
        here: _Trail | None = self
        while here is not None:
            parts.append(here.ran)
            here = here.before
        return [op for part in reversed(parts) for op in part]
