from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoptc.ir.diagnostics import BudgetError, InputError, InternalError
from memoptc.ir.parser import parse
from memoptc.runtime.memory.accesses import spaced_problem
from memoptc.runtime.memory.exact import decide
from memoptc.runtime.memory.liveness import liveness
from memoptc.runtime.memory.problem import Buffer, Problem
from memoptc.runtime.memory.space_allocation import allocate_spaces
from memoptc.runtime.memory.spaces import (
    Access,
    Space,
    SpacedPlan,
    SpacedProblem,
    Stay,
    check_spaces,
    moves_between,
    pieces,
)


@st.composite
def spaced(
    draw: st.DrawFn, *, most: int = 12, steps: int = 8, largest: int = 12
) -> tuple[SpacedProblem, tuple[Space, ...]]:
    """Random buffers, accessed at birth, death and between; two or three spaces, the last without an end."""
    buffers, accesses = [], []
    for index in range(draw(st.integers(1, most))):
        first = draw(st.integers(0, steps - 1))
        last = draw(st.integers(first, steps - 1))
        size, alignment = draw(st.integers(1, largest)), draw(st.sampled_from((1, 1, 4)))
        buffers.append(Buffer(f"b{index}", size, first, last, alignment))
        at = sorted({first, last, *draw(st.lists(st.integers(first, last), max_size=2))})
        accesses.append(tuple(Access(step, size * draw(st.integers(0, 3))) for step in at))
    spaces = [Space("slow", None, draw(st.sampled_from((2.0, 5.0, 10.0))))]
    if draw(st.booleans()):
        spaces.insert(0, Space("middle", draw(st.integers(0, 3 * largest)), 2.0))
    spaces.insert(0, Space("fast", draw(st.integers(0, 3 * largest)), 1.0))
    return SpacedProblem(tuple(buffers), tuple(accesses)), tuple(spaces)


def execute(plan: SpacedPlan, rng: random.Random) -> None:
    """Run a plan on real bytes: whoever lives must find its own bytes where the plan says, at every step."""
    problem = plan.problem
    memory = [np.zeros(max(arena, 1), np.int64) for arena in plan.arena_bytes]
    for space, bytes_of in zip(plan.spaces, memory, strict=True):
        assert space.size is None or len(bytes_of) <= max(space.size, 1)
    for step in range(max(b.last for b in problem.buffers) + 1):
        moves = [m for m in plan.moves if m.step == step]
        rng.shuffle(moves)
        for m in moves:
            source = memory[m.source][m.source_offset : m.source_offset + m.bytes]
            assert (source == m.buffer + 1).all()
            memory[m.target][m.target_offset : m.target_offset + m.bytes] = source
        alive = [(i, b) for i, b in enumerate(problem.buffers) if b.first <= step <= b.last]
        for fresh in (True, False):
            for index, b in alive:
                (stay,) = [s for s in plan.stays[index] if s.first <= step <= s.last]
                place = memory[stay.space][stay.offset : stay.offset + b.size]
                if fresh and b.first == step:
                    place[:] = index + 1
                assert fresh or (place == index + 1).all()


@settings(max_examples=60)
@given(spaced())
def test_plans_run(asked: tuple[SpacedProblem, tuple[Space, ...]]) -> None:
    problem, spaces = asked
    plan = allocate_spaces(problem, spaces, effort=500)
    check_spaces(plan)
    execute(plan, random.Random(1))
    # No worse than leaving everything in the slow space, no better than all in the fast one.
    total = sum(a.bytes for row in problem.accesses for a in row)
    assert total * spaces[0].cost_per_byte <= plan.cost <= total * spaces[-1].cost_per_byte


@given(spaced())
def test_the_same_problem_gives_the_same_plan(asked: tuple[SpacedProblem, tuple[Space, ...]]) -> None:
    assert allocate_spaces(*asked, effort=200) == allocate_spaces(*asked, effort=200)


def cheapest(problem: SpacedProblem, spaces: tuple[Space, ...]) -> float:
    """The least cost, from every way of every buffer through the spaces."""
    options: list[list[tuple[float, tuple[Stay, ...]]]] = []
    for b, accesses in zip(problem.buffers, problem.accesses, strict=True):
        alone = SpacedProblem((b,), (accesses,))
        found = []
        for way in itertools.product(range(len(spaces)), repeat=b.last - b.first + 1):
            row: list[Stay] = []
            for step, space in enumerate(way, b.first):
                if row and row[-1].space == space:
                    row[-1] = replace(row[-1], last=step)
                else:
                    row.append(Stay(space, 0, step, step))
            stays = (tuple(row),)
            found.append((SpacedPlan(alone, spaces, stays, moves_between(alone, stays)).cost, stays[0]))
        options.append(sorted(found, key=lambda option: option[0]))
    rest = [sum(o[0][0] for o in options[i:]) for i in range(len(options) + 1)]
    best = float("inf")

    def fits(rows: Sequence[Sequence[Stay]]) -> bool:
        part = SpacedProblem(problem.buffers[: len(rows)], problem.accesses[: len(rows)])
        asked = [(s.size, Problem(tuple(b for *_, b in pieces(part, rows, k)))) for k, s in enumerate(spaces)]
        return all(size is None or decide(p, size, effort=1_000_000).fits for size, p in asked)

    def choose(cost: float, rows: list[tuple[Stay, ...]]) -> None:
        nonlocal best
        if len(rows) == len(options):
            best = min(best, cost)
            return
        for more, row in options[len(rows)]:
            if cost + more + rest[len(rows) + 1] >= best:
                break
            if fits([*rows, row]):
                choose(cost + more, [*rows, row])

    choose(0.0, [])
    return best


@settings(max_examples=40)
@given(spaced(most=4, steps=4))
def test_nothing_is_cheaper_than_the_cheapest(asked: tuple[SpacedProblem, tuple[Space, ...]]) -> None:
    best = cheapest(*asked)
    cost = allocate_spaces(*asked, effort=2_000).cost
    assert best <= cost <= 1.25 * best


def test_small_problems_are_mostly_solved_as_well_as_can_be() -> None:
    rng, met = random.Random(5), 0
    for _ in range(30):
        buffers, accesses = [], []
        for index in range(4):
            first, last = sorted((rng.randrange(4), rng.randrange(4)))
            size = rng.randint(1, 8)
            buffers.append(Buffer(str(index), size, first, last))
            accesses.append(tuple(Access(s, size * rng.randint(1, 3)) for s in sorted({first, last})))
        problem = SpacedProblem(tuple(buffers), tuple(accesses))
        spaces = (Space("fast", rng.randint(4, 12), 1.0), Space("slow", None, 5.0))
        met += allocate_spaces(problem, spaces, effort=2_000).cost == cheapest(problem, spaces)
    assert met >= 28


def skip_connection() -> tuple[SpacedProblem, tuple[Space, Space]]:
    """One buffer waits while a large one needs the fast space: it must give way and come back."""
    buffers = (Buffer("skip", 6, 0, 9), Buffer("large", 9, 4, 5))
    accesses = (
        (Access(0, 60), Access(1, 60), Access(8, 60), Access(9, 60)),
        (Access(4, 900), Access(5, 900)),
    )
    return SpacedProblem(buffers, accesses), (Space("SRAM", 10, 1.0), Space("DRAM", 100, 10.0))


def test_spill_and_prefetch() -> None:
    problem, spaces = skip_connection()
    plan = allocate_spaces(problem, spaces)
    assert [(m.step, m.buffer, m.source, m.target, m.bytes) for m in plan.moves] == [(2, 0, 0, 1, 6), (8, 0, 1, 0, 6)]
    assert plan.stays[1] == (Stay(0, 0, 4, 5),)
    assert plan.access_cost == 240 + 1800
    assert plan.move_cost == 2 * 6 * 11
    assert plan.arena_bytes == (9, 6)
    assert plan.to_json()["moves"][0] == {
        "step": 2, "buffer": "skip", "source": "SRAM", "source_offset": plan.stays[0][0].offset,
        "target": "DRAM", "target_offset": 0, "bytes": 6,
    }  # fmt: skip


def tampered() -> list[tuple[str, SpacedPlan, str]]:
    plan = allocate_spaces(*skip_connection())
    out, back = plan.moves
    fast, slow, again = plan.stays[0]
    late = (fast, replace(slow, last=8), replace(again, first=9))

    def stays(*row: Stay) -> SpacedPlan:
        return replace(plan, stays=(row, plan.stays[1]))

    def rebuilt(*row: Stay) -> SpacedPlan:
        return replace(stays(*row), moves=moves_between(plan.problem, (row, plan.stays[1])))

    return [
        ("no spill", replace(plan, moves=(back,)), "moves"),
        ("one move twice", replace(plan, moves=(out, out, back)), "moves"),
        ("after its use", replace(plan, moves=(out, replace(back, step=9))), "moves"),
        ("from the wrong place", replace(plan, moves=(out, replace(back, source_offset=1))), "moves"),
        ("moves in the wrong order", replace(plan, moves=(back, out)), "order"),
        ("too few bytes", replace(plan, moves=(replace(out, bytes=5), back)), "moves"),
        ("stays moved on, moves not", stays(*late), "moves"),
        ("it never leaves", rebuilt(replace(fast, last=9)), "overlap"),
        ("it leaves while the other is born", rebuilt(replace(fast, last=4), replace(slow, first=5), again), "overlap"),
        ("it comes back too early", rebuilt(fast, replace(slow, last=4), replace(again, first=5)), "overlap"),
        ("beyond the end", rebuilt(replace(fast, offset=5), slow, again), "needs 11 of 10"),
        ("nowhere for a while", rebuilt(fast, replace(slow, first=3), again), "are not its life"),
        ("twice at once", rebuilt(fast, replace(slow, first=1), again), "are not its life"),
        ("nowhere at all", rebuilt(), "are not its life"),
        ("no such space", rebuilt(replace(fast, space=2), slow, again), "a space that there is not"),
        ("one buffer forgotten", replace(plan, stays=plan.stays[:1]), "1 of 2"),
    ]


@pytest.mark.parametrize(("plan", "message"), [pytest.param(p, m, id=name) for name, p, m in tampered()])
def test_check_finds_what_is_wrong(plan: SpacedPlan, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        check_spaces(plan)


def test_both_places_are_taken_while_bytes_move() -> None:
    """Two buffers cannot change places where there is no third place."""
    problem = SpacedProblem((Buffer("a", 8, 0, 1), Buffer("b", 8, 0, 1)), ((), ()))
    stays = ((Stay(0, 0, 0, 0), Stay(1, 0, 1, 1)), (Stay(1, 0, 0, 0), Stay(0, 0, 1, 1)))
    spaces = (Space("one", 8, 1.0), Space("other", 8, 1.0))
    with pytest.raises(InternalError, match="overlap"):
        check_spaces(SpacedPlan(problem, spaces, stays, moves_between(problem, stays)))


def test_all_fits_into_the_fast_space() -> None:
    problem, _ = skip_connection()
    plan = allocate_spaces(problem, (Space("slow", None, 5.0), Space("fast", 15, 1.0)))
    assert plan.moves == ()
    assert {s.space for row in plan.stays for s in row} == {1}


def test_holes_make_somebody_leave() -> None:
    """The fast space is full to the byte by count; where the bytes lie apart, plans must still run."""
    rng = random.Random(0)
    for _ in range(20):
        spans = [sorted((rng.randrange(12), rng.randrange(12))) for _ in range(30)]
        buffers = tuple(Buffer(str(i), rng.randint(3, 20), a, z) for i, (a, z) in enumerate(spans))
        accesses = tuple((Access(b.first, b.size), Access(b.last, b.size)) for b in buffers)
        plan = allocate_spaces(
            SpacedProblem(buffers, accesses), (Space("f", 50, 1.0), Space("s", None, 3.0)), effort=100
        )
        execute(plan, rng)
        assert any(s.space == 0 for row in plan.stays for s in row)


def test_too_small() -> None:
    problem, _ = skip_connection()
    with pytest.raises(BudgetError, match=r"'large'|'skip'"):
        allocate_spaces(problem, (Space("fast", 8, 1.0), Space("slow", 8, 2.0)))


@pytest.mark.parametrize(
    ("buffer", "access", "message"),
    [
        (Buffer("a", 4, 0, 1, 1, 0), Access(0, 4), "fixed offset"),
        (Buffer("a", 4, 0, 1), Access(2, 4), "cannot be accessed at 2"),
        (Buffer("a", 4, 0, 1), Access(1, -1), "-1 bytes"),
    ],
)
def test_what_cannot_be(buffer: Buffer, access: Access, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpacedProblem((buffer,), ((access,),))


def test_a_space_has_a_size_and_a_cost() -> None:
    with pytest.raises(InputError, match="'x'"):
        Space("x", -1, 1.0)
    with pytest.raises(InputError, match="'x'"):
        Space("x", None, float("inf"))


def test_without_buffers_or_spaces() -> None:
    assert allocate_spaces(SpacedProblem((), ()), (Space("x", 0, 1.0),)).cost == 0
    with pytest.raises(InputError, match="no space"):
        allocate_spaces(SpacedProblem((), ()), ())


def test_accesses_of_a_graph() -> None:
    """Who makes or reads a value touches it; views touch nothing, an op in place reads and writes."""
    graph = parse(
        """graph @g(%x: f32[256]) -> (f32[256]) {
          %a = Exp(%x) : f32[256]
          %v = Flatten(%a) {axis=0} : f32[1,256]
          %b = Exp(%v) : f32[1,256]
          %c = Relu(%b) : f32[1,256]
          %d = Mul(%a, %a) : f32[256]
          %e = Flatten(%c) {axis=1} : f32[1,256]
          %y = Add(%d, %e) : f32[1,256]
          %z = ReduceSum(%y) {keepdims=0} : f32[]
          %w = Add(%z, %x) : f32[256]
          return %w
        }"""
    )
    found = spaced_problem(liveness(graph, {}))
    touched = {
        b.name.partition(":")[2]: [(a.step, a.bytes) for a in row]
        for b, row in zip(found.buffers, found.accesses, strict=True)
    }
    assert touched["a"] == [(0, 1024), (2, 1024), (4, 2048)]
    assert touched["b"] == [(2, 1024), (3, 2048), (6, 1024)]
