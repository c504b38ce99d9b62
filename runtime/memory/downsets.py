"""Sets of executed ops: the states through which an order of ops goes, and the path whose highest step is lowest."""

from __future__ import annotations

import functools
import heapq
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from memoptc.runtime.memory.footprint import Footprint
from memoptc.runtime.memory.running_liveness import RunningLiveness

LARGEST = 3000
"""Most ops of a piece that is searched at all."""

_EXACT = 600
"""Most ops of a piece that is searched exactly; larger ones by beam alone."""

_WIDTH = 32
"""Sets that a beam search keeps per step."""


class Tables(Protocol):
    """Tables that a search needs of a graph; ops and groups are numbered as in the footprint."""

    layout: Footprint
    sizes: list[int]
    before: list[list[int]]
    after: list[list[int]]
    users: list[list[int]]
    running: RunningLiveness


@dataclass
class Piece:
    """Ops between two waists.

    Args:
        order: The ops, in an order to begin with.
        live: Bytes alive before the first.
        peak: The highest step of that order.
        rank: Position of each op of the graph in its whole order.
        end: Position after the last op here.
    """

    order: list[int]
    live: int
    peak: int
    rank: Mapping[int, int]
    end: int


class Segment:
    """The sets of executed ops of a piece, as bit masks, and the search through them.

    Args:
        problem: The whole.
        piece: Ops between two waists, in an order to begin with.
    """

    def __init__(self, problem: Tables, piece: Piece) -> None:
        order, rank, end = piece.order, piece.rank, piece.end
        self.order, self.live, self.peak = order, piece.live, piece.peak
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
        self.inner = [problem.running.inner_bytes(i) for i in order]
        # A result that nobody uses goes at once where it could overwrite an operand, and stays where it could not:
        # then what is alive does depend on the order.
        self.is_exact = not any(unused and takes for unused, takes in zip(self.unused, self.takes, strict=True))

        self._reads = [_union([*(users for users, _ in self.frees[op]), *self.takes[op]]) for op in range(self.count)]
        """For each op, those whose having run or not decides what it adds."""
        self._known: list[dict[int, tuple[int, int]]] = [{} for _ in range(self.count)]
        self._may_settle = sum(1 << op for op in range(self.count) if self._least_change(op) <= 0)

    def _least_change(self, op: int) -> int:
        """Bytes that an op adds at least: all its operands die with it, and one is overwritten."""
        return self.made[op] - sum(size for _, size in self.frees[op]) - (self.first[op] if self.takes[op] else 0)

    def _effect(self, executed: int, op: int) -> tuple[int, int]:
        """Bytes more alive during an op, and after it, when a set has been executed."""
        self.looked += 1
        key = executed & self._reads[op]
        found = self._known[op].get(key)
        if found is None:
            found = self._known[op][key] = self._computed(executed, op)
        return found

    def _computed(self, executed: int, op: int) -> tuple[int, int]:
        after = executed | 1 << op
        made = self.made[op]
        taken = any(users & after == users for users in self.takes[op])
        freed = sum(size for users, size in self.frees[op] if users & after == users)
        if taken:
            made -= self.first[op]
            # The operand's bytes live on in the result, unless nobody uses that.
            freed -= 0 if self.unused[op] else self.first[op]
        return made + self.inner[op], made - freed

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
        return bound, self._beam(2 * effort), False

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

    def _settle(self, executed: int, ready: int, live: int, peak: int) -> tuple[int, int, int, tuple[int, ...]]:
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
            rest = ready & self._may_settle
            self.looked += (ready ^ rest).bit_count()
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
        return executed, ready, live, tuple(ran)

    def _advance(self, executed: int, ready: int, op: int) -> int:
        ready &= ~(1 << op)
        for user in self.after[op]:
            if self.needs[user] & ~executed == 0 and not executed >> user & 1:
                ready |= 1 << user
        return ready

    def _steps(
        self, executed: int, ready: int, live: int, peak: int
    ) -> Iterator[tuple[int, int, int, int, tuple[int, ...]]]:
        """Ways to go on from a set that stay below the peak to beat.

        Yields:
            The peak then, bytes alive, the set, what is ready, and the ops that were run.
        """
        rest = ready
        while rest:
            bit = rest & -rest
            rest ^= bit
            op = bit.bit_length() - 1
            during, change = self._effect(executed, op)
            reached = max(peak, live + during)
            if reached < self.peak:
                then = executed | bit
                then, open_, now, ran = self._settle(then, self._advance(then, ready, op), live + change, reached)
                yield reached, now, then, open_, (op, *ran)

    def _exact(self, floor: int, effort: int) -> tuple[int, list[int] | None]:
        """Take up sets of executed ops, the one with the lowest peak first, the fullest of these first."""
        ready = sum(1 << i for i in range(self.count) if not self.needs[i])
        base = max(self.live, floor)
        executed, ready, live, ran = self._settle(0, ready, self.live, base)
        lowest = {executed: base}
        heap = [(base, -executed.bit_count(), executed, ready, live, _Trail(None, ran))]
        while heap:
            peak, _, executed, ready, live, trail = heapq.heappop(heap)
            if peak > lowest[executed]:
                continue
            if executed == self.full:
                return peak, [self.order[i] for i in trail.ops()]
            if self.looked >= effort:
                return peak, None
            for reached, now, then, open_, ran in self._steps(executed, ready, live, peak):
                if reached < lowest.get(then, self.peak):
                    lowest[then] = reached
                    heapq.heappush(heap, (reached, -then.bit_count(), then, open_, now, _Trail(trail, ran)))
        return self.peak, None

    def _beam(self, effort: int) -> list[int] | None:
        """Keep the sets with the lowest peaks, of equals those with the fewest bytes alive, level by level."""
        ready = sum(1 << i for i in range(self.count) if not self.needs[i])
        executed, ready, live, ran = self._settle(0, ready, self.live, self.live)
        level = [(self.live, live, executed, ready, _Trail(None, ran))]
        while level and self.looked < effort:
            following: dict[int, tuple[int, int, int, int, _Trail]] = {}
            for peak, live, executed, ready, trail in level:
                if self.looked >= effort:
                    return None
                if executed == self.full:
                    return [self.order[i] for i in trail.ops()] if peak < self.peak else None
                for reached, now, then, open_, ran in self._steps(executed, ready, live, peak):
                    if then not in following or reached < following[then][0]:
                        following[then] = (reached, now, then, open_, _Trail(trail, ran))
            level = heapq.nsmallest(_WIDTH, following.values(), key=lambda t: (t[0], t[1], -t[2].bit_count(), t[2]))
        return None


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)


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
