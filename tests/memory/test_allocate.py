from __future__ import annotations

import csv
import io
import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory_problems import problems

from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.overlap import FewOverlaps, Overlaps
from memoptc.runtime.memory.placement import by_time, first_fit, lowest_first
from memoptc.runtime.memory.plan import Plan, check
from memoptc.runtime.memory.problem import Buffer, Problem


def overlapping(plan: Plan) -> set[tuple[str, str]]:
    """Every pair that lives together and shares a byte, found the slow way."""
    placed = list(zip(plan.problem.buffers, plan.offsets, strict=True))
    return {
        (a.name, b.name)
        for (a, x), (b, y) in itertools.combinations(placed, 2)
        if a.first <= b.last and b.first <= a.last and x < y + b.size and y < x + a.size
    }


@given(problems(alignments=(1, 3, 4, 64)))
def test_floor_arena_sum(problem: Problem) -> None:
    plan = allocate(problem, effort=50_000)
    assert not overlapping(plan)
    assert all(o % b.alignment == 0 for o, b in zip(plan.offsets, problem.buffers, strict=True))
    assert plan.floor <= plan.arena_bytes <= plan.naive_sum


@given(problems(most=60, steps=30))
def test_the_same_problem_gives_the_same_plan(problem: Problem) -> None:
    assert allocate(problem, effort=20_000) == allocate(problem, effort=20_000)


@given(problems(alignments=(1, 3, 4, 64)))
def test_the_floor_is_the_same_for_few_and_many_buffers(problem: Problem) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memoptc.runtime.memory.problem.FEW_BUFFERS", 0)
        many = Problem(problem.buffers).floor
    assert many == problem.floor


@settings(max_examples=60)
@given(problems(most=6, steps=5, largest=6))
def test_few_buffers_are_placed_as_well_as_can_be(problem: Problem) -> None:
    """The best of all orders under first fit is the optimum: sort the best placement by offset."""
    assume(problem.buffers)
    overlaps = Overlaps(problem)
    every = itertools.permutations(range(len(problem.buffers)))
    best = min(Plan(problem, tuple(first_fit(problem.buffers, overlaps, o)), "").arena_bytes for o in every)
    assert problem.floor <= best <= allocate(problem).arena_bytes


@given(problems(alignments=(1, 64)))
def test_every_way_to_place_is_valid(problem: Problem) -> None:
    assume(problem.buffers)
    order = list(range(len(problem.buffers)))
    random.Random(len(order)).shuffle(order)
    many, few = Overlaps(problem), FewOverlaps(problem)
    ways = [
        (first_fit(problem.buffers, overlaps, order), first_fit(problem.buffers, overlaps, order, tightest=True),
         lowest_first(problem.buffers, overlaps, order))
        for overlaps in (many, few)
    ]  # fmt: skip
    assert ways[0] == ways[1]
    for offsets in (
        *ways[0],
        by_time(problem.buffers),
        by_time(problem.buffers, backwards=True),
    ):
        check(Plan(problem, tuple(offsets), ""))


@given(problems())
def test_first_fit_by_offset_never_needs_more(problem: Problem) -> None:
    """What the local search rests on."""
    assume(problem.buffers)
    offsets = by_time(problem.buffers)
    order = sorted(range(len(offsets)), key=offsets.__getitem__)
    again = first_fit(problem.buffers, Overlaps(problem), order)
    assert all(new <= old for new, old in zip(again, offsets, strict=True))


@given(problems(most=40, steps=20), st.sampled_from([Overlaps, FewOverlaps]))
def test_overlaps_and_loads(problem: Problem, way: type[Overlaps | FewOverlaps]) -> None:
    overlaps = way(problem)
    buffers = problem.buffers
    pairs = {
        (i, j)
        for i, a in enumerate(buffers)
        for j, b in enumerate(buffers)
        if i != j and a.first <= b.last and b.first <= a.last
    }
    assert {(i, int(j)) for i in range(len(buffers)) for j in overlaps.neighbours(i)} == pairs
    assert overlaps.pairs * 2 == len(pairs)
    if buffers:
        load = [sum(b.size for b in buffers if b.first <= t <= b.last) for t in range(20)]
        assert overlaps.busiest() == [max(load[b.first : b.last + 1]) for b in buffers]


def test_many_neighbours_are_searched_the_same_way() -> None:
    """Above a number of neighbours numpy finds the gap; a long-lived buffer goes through both."""
    rng = random.Random(1)
    short = [Buffer(f"s{i}", rng.randint(1, 50), i, i + rng.randint(0, 3)) for i in range(200)]
    problem = Problem((*short, Buffer("long", 20, 0, 300, 8)))
    order = list(range(201))
    for tightest in (False, True):
        plan = Plan(problem, tuple(first_fit(problem.buffers, Overlaps(problem), order, tightest=tightest)), "")
        check(plan)
        place = plan.offsets[200]
        lower = [
            p for p in range(0, place, 8) if all(_apart(p, 20, o, b) for b, o in zip(short, plan.offsets, strict=False))
        ]
        assert tightest or not lower


def _apart(place: int, size: int, offset: int, other: Buffer) -> bool:
    return place + size <= offset or offset + other.size <= place


def test_fixed_offsets_stay() -> None:
    problem = Problem((Buffer("in", 64, 0, 3, 1, 128), Buffer("a", 100, 0, 2), Buffer("b", 64, 2, 3)))
    plan = allocate(problem)
    assert plan.offsets[0] == 128
    # `a` and `b` cannot both lie below `in`.
    assert plan.arena_bytes == 128 + 64 + 64
    assert plan.arena_bytes <= plan.naive_sum


def test_fixed_offsets_that_overlap_are_refused() -> None:
    with pytest.raises(InputError, match=r"'b'.*'a'.*overlap"):
        allocate(Problem((Buffer("a", 10, 0, 1, 1, 0), Buffer("b", 10, 1, 2, 1, 5))))


def test_nothing_to_place() -> None:
    plan = allocate(Problem(()))
    assert (plan.arena_bytes, plan.floor, plan.naive_sum, plan.offsets) == (0, 0, 0, ())


@given(problems(most=16))
def test_check_finds_exactly_the_overlaps(problem: Problem) -> None:
    offsets = tuple((7 * i) % 50 for i in range(len(problem.buffers)))
    plan = Plan(problem, offsets, "made up")
    bad = overlapping(plan)
    if not bad:
        check(plan)
        return
    with pytest.raises(InternalError) as error:
        check(plan)
    assert any(f"'{a}'" in error.value.message and f"'{b}'" in error.value.message for a, b in bad)


def test_check_refuses_misplaced_buffers() -> None:
    problem = Problem((Buffer("a", 8, 0, 1, 4, 8),), capacity=12)
    for offsets, message in [((0,), "'a' at 0"), ((-4,), "'a' at -4"), ((8,), "needs 16 of 12"), ((), "0 of 1")]:
        with pytest.raises(InternalError, match=message):
            check(Plan(problem, offsets, ""))


def test_exports() -> None:
    plan = allocate(Problem((Buffer("a", 8, 0, 1, 4), Buffer("b", 8, 1, 2, 4))))
    assert plan.to_json()["buffers"][1] == {
        "name": "b", "size": 8, "first": 1, "last": 2, "alignment": 4, "offset": plan.offsets[1],
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(plan.to_csv())))
    assert [(r["id"], r["upper"], int(r["offset"])) for r in rows] == [
        ("a", "2", plan.offsets[0]),
        ("b", "3", plan.offsets[1]),
    ]
    moved = replace(plan, offsets=plan.offsets[::-1])
    assert moved.digest != plan.digest


def network(count: int, longest: int, seed: int = 0) -> Problem:
    """Buffers as a network has them: most die at the next step, some live long."""
    rng = random.Random(seed)
    buffers = []
    for step in range(count):
        life = 1 if rng.random() < 0.7 else min(int(rng.paretovariate(1.1)), longest)
        size = 64 * rng.randint(1, 4096) * (1 if rng.random() < 0.9 else 8)
        buffers.append(Buffer(str(step), size, step, min(count - 1, step + life), 64))
    return Problem(tuple(buffers))


def test_fifty_thousand_buffers() -> None:
    """Takes about a second; anything quadratic would take minutes."""
    problem = network(50_000, 5_000)
    plan = allocate(problem)
    assert plan.arena_bytes <= 1.03 * plan.floor


def test_no_table_of_pairs_for_too_many_pairs() -> None:
    """Half of all pairs overlap here: hundreds of millions, which nobody may list."""
    rng = random.Random(1)
    spans = [sorted((rng.randint(0, 30_000), rng.randint(0, 30_000))) for _ in range(30_000)]
    problem = Problem(tuple(Buffer(str(i), 64 * rng.randint(1, 999), a, b, 64) for i, (a, b) in enumerate(spans)))
    plan = allocate(problem)
    assert plan.algorithm.startswith("heap")
    assert plan.arena_bytes <= 1.05 * plan.floor
