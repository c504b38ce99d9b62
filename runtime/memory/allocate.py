"""Offsets for buffers: a portfolio of placements, a local search, an exact search; the smallest arena is kept.

Constraints are expressed in the buffers themselves. What must lie at a certain place has a fixed offset. Tensors that
share their bytes, a view and its base or the operand and the result of an operator in place, are one buffer whose life
spans theirs (`memoptc.runtime.memory.liveness` merges them): two buffers at the same offset would say the same with
more to search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.runtime.memory.overlap import FewOverlaps, Overlaps, overlaps_of
from memoptc.runtime.memory.placement import Failed, by_time, first_fit, lowest_first
from memoptc.runtime.memory.plan import Plan, check
from memoptc.runtime.memory.problem import Buffer, Problem

if TYPE_CHECKING:
    import random

    from memoptc.runtime.memory.exact import Answer

EFFORT = 3_000_000
"""Looks at a neighbour that `allocate` may spend on every kind of search, by default: about a second of Python."""

PERSISTENCE = 100
"""How many times that effort it is worth to meet a capacity: two minutes of Python, two seconds of compiled code."""

MOST_PAIRS = 8_000_000
"""With more overlapping pairs only placements that need no table of them are tried."""


def allocate(problem: Problem, *, effort: int = EFFORT, seed: int = 0, enough: float = 1.0) -> Plan:
    """Place all buffers in as few bytes as the portfolio and the searches find; stop at the floor.

    The portfolio combines three ways to place (first fit, best fit, lowest first) with orders known to do well:
    by size, as TensorFlow Lite does (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
    2020); by the load of the busiest step that a buffer crosses, then by length or area (Moffitt, "MiniMalloc",
    2023); by time, as a heap would at run time.

    If the problem has a capacity and nothing fits it yet, the exact search (`memoptc.runtime.memory.exact`) is asked
    for just that, with PERSISTENCE times the effort. Else a local search starts from the best placement's offsets as
    order, demands one byte less, and moves whatever then does not fit to an earlier place. First fit in order of
    offsets never needs more than the placement the offsets come from: by induction every buffer finds its old place
    free or a lower one. So each accepted step is an improvement. Last, the exact search asks for the floor, and for
    capacities between it and the best placement.

    Effort is counted in neighbours looked at, not in seconds: the same problem gives the same plan anywhere.

    Args:
        problem: Buffers, with their fixed offsets, if any. Its capacity is not enforced here, only aimed at: what
            fits it is still made smaller as far as the effort goes.
        effort: How many neighbours each of the searches may look at.
        seed: Of the local search.
        enough: Share of the floor that is small enough to stop at; where planning itself must stay small and quick.

    Returns:
        A checked plan: floor <= arena <= naive sum.

    Raises:
        InputError: two fixed buffers overlap.
    """
    if not problem.buffers:
        return Plan(problem, (), "empty")
    _check_fixed(problem)
    portfolio = _Portfolio(problem, effort, enough)
    for name, place in portfolio.members():
        if portfolio.done:
            break
        portfolio.offer(name, place())
    if not portfolio.done and portfolio.overlaps.pairs <= MOST_PAIRS:
        import random  # as what it searches with, loaded only where placements alone do not reach the floor

        portfolio.search(effort, random.Random(seed))
    plan = Plan(Problem(problem.buffers), tuple(portfolio.offsets), portfolio.algorithm)
    check(plan)
    return plan


class _Portfolio:
    """The best placement so far, and what effort is left."""

    def __init__(self, problem: Problem, effort: int, enough: float) -> None:
        self.problem = problem
        self.enough = enough
        self.buffers = problem.buffers
        self.floor = problem.floor
        self.overlaps = overlaps_of(problem)
        self.cost = 2 * self.overlaps.pairs + len(self.buffers)
        self.left = effort
        self.offsets: Sequence[int] = problem.disjoint_offsets
        self.arena = problem.naive_sum
        self.algorithm = "apart"

    @property
    def done(self) -> bool:
        return self.arena <= self.floor * self.enough

    def offer(self, name: str, offsets: Sequence[int]) -> None:
        arena = max(o + b.size for o, b in zip(offsets, self.buffers, strict=True))
        if arena < self.arena:
            self.offsets, self.arena, self.algorithm = offsets, arena, name

    def members(self) -> Iterator[tuple[str, Callable[[], Sequence[int]]]]:
        """Placements to try, the most promising first, as long as there is effort for them."""
        movable = all(b.offset is None for b in self.buffers)
        everyone = range(len(self.buffers))
        if self.overlaps.pairs <= MOST_PAIRS:
            orders = {name: sorted(everyone, key=key) for name, key in _orders(self.buffers, self.overlaps)}
            for name, order in orders.items():
                # The first three are tried whatever they cost; MOST_PAIRS bounds that.
                if self.left < self.cost and name not in ("size", "load and length", "load and size"):
                    continue
                self.left -= self.cost
                yield f"first fit by {name}", partial(first_fit, self.buffers, self.overlaps, order)
                if movable and self.left >= self.cost:
                    self.left -= self.cost
                    yield f"lowest first by {name}", partial(lowest_first, self.buffers, self.overlaps, order)
            if self.left >= self.cost:
                self.left -= self.cost
                yield "best fit by size", partial(first_fit, self.buffers, self.overlaps, orders["size"], tightest=True)
        if movable:
            yield "heap", partial(by_time, self.buffers)
            yield "heap backwards", partial(by_time, self.buffers, backwards=True)

    def search(self, effort: int, rng: random.Random) -> None:
        """Meet the capacity, if there is one; then come as near to the floor as the effort allows."""
        from memoptc.runtime.memory.exact import Exact

        effort = min(effort, _LONGEST * self.cost)
        exact = Exact(self.problem)
        capacity = self.problem.capacity
        if capacity is not None and self.floor <= capacity < self.arena:
            self.accept("exact search", exact.decide(capacity, effort * PERSISTENCE))
        if self.algorithm != "exact search":
            self.local_search(rng)
        if not self.done:
            self.accept("exact search", exact.improve(self.offsets, effort))

    def accept(self, name: str, answer: Answer) -> None:
        """Take the offsets of an answer that has some."""
        if answer.offsets is not None:
            self.offer(name, answer.offsets)

    def local_search(self, rng: random.Random) -> None:
        """Ask for one byte less; what does not fit moves to an earlier place in the order."""
        order = self._by_offset()
        failures = 0
        while not self.done and self.left > 0 and failures < _SURRENDER:
            try:
                offsets = first_fit(self.buffers, self.overlaps, order, cap=self.arena - 1)
            except Failed as failure:
                self.left -= max(1, self.cost * (failure.reached + 1) // len(order))
                failures += 1
                order.pop(failure.reached)
                order.insert(rng.choice((failure.reached // 2, rng.randint(0, failure.reached))), failure.index)
                if failures % _PATIENCE == 0:
                    order = self._by_offset()
                continue
            self.left -= self.cost
            self.offer("local search", offsets)
            order, failures = self._by_offset(), 0

    def _by_offset(self) -> list[int]:
        offsets = self.offsets
        return sorted(range(len(offsets)), key=lambda i: (offsets[i], i))


_PATIENCE = 40
"""Failed steps of the search after which it starts again from the best order."""

_LONGEST = 1_000
"""The exact search looks at most as often as placing everything so many times would: few buffers need less effort."""

_SURRENDER = 800
"""Failed steps in a row after which the search ends."""


def _orders(
    buffers: Sequence[Buffer], overlaps: Overlaps | FewOverlaps
) -> Iterator[tuple[str, Callable[[int], tuple[int, ...]]]]:
    load = overlaps.busiest()
    length = [b.last - b.first + 1 for b in buffers]
    size = [b.size for b in buffers]
    yield "size", lambda i: (-size[i], -length[i], i)
    yield "load and length", lambda i: (-load[i], -length[i], i)
    yield "load and size", lambda i: (-load[i], -size[i], i)
    yield "start", lambda i: (buffers[i].first, -size[i], i)
    yield "load and area", lambda i: (-load[i], -size[i] * length[i], i)
    yield "end", lambda i: (-buffers[i].last, -size[i], i)
    yield "length", lambda i: (-length[i], -size[i], i)
    yield "area", lambda i: (-size[i] * length[i], i)


def _check_fixed(problem: Problem) -> None:
    fixed = tuple(b for b in problem.buffers if b.offset is not None)
    try:
        check(Plan(Problem(fixed), tuple(b.offset or 0 for b in fixed), "fixed"))
    except InternalError as e:
        raise InputError(
            f"The fixed offsets cannot be: {e.message}.", hint="Buffers that live together must lie apart."
        ) from None
