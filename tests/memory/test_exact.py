from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory_problems import cut_up, problems

from memoptc.runtime.memory import exact
from memoptc.runtime.memory.allocate import allocate
from memoptc.runtime.memory.exact import Answer, Exact, decide
from memoptc.runtime.memory.plan import Plan, check
from memoptc.runtime.memory.problem import Buffer, Problem

PLENTY = 10_000_000


def optimum(problem: Problem) -> int:
    """Fewest bytes, by trying every order: sorted by offset, the best placement is a first fit."""
    buffers = problem.buffers
    best = problem.naive_sum

    def place(placed: list[tuple[int, Buffer]], left: frozenset[int]) -> None:
        nonlocal best
        if not left:
            best = min(best, max(o + b.size for o, b in placed))
        for i in left:
            b = buffers[i]
            near = [(o, x) for o, x in placed if x.first <= b.last and b.first <= x.last]
            starts = sorted({0, *(-(-(o + x.size) // b.alignment) * b.alignment for o, x in near)})
            offset = next(s for s in starts if all(s + b.size <= o or o + x.size <= s for o, x in near))
            if offset + b.size < best:
                place([*placed, (offset, b)], left - {i})

    fixed = [(b.offset, b) for b in buffers if b.offset is not None]
    place(fixed, frozenset(i for i, b in enumerate(buffers) if b.offset is None))
    return best


@st.composite
def small(draw: st.DrawFn) -> Problem:
    """Few buffers, the first perhaps fixed."""
    problem = draw(problems(most=6, steps=5, largest=draw(st.sampled_from((3, 8, 20))), alignments=(1, 2, 3, 4)))
    assume(problem.buffers)
    if not draw(st.booleans()):
        return problem
    b = problem.buffers[0]
    fixed = Buffer(b.name, b.size, b.first, b.last, b.alignment, draw(st.integers(0, 3)) * b.alignment)
    return Problem((fixed, *problem.buffers[1:]))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled code."""
    monkeypatch.setattr(exact, "compiled", functools.cache(lambda: None))


@given(small())
def test_yes_and_no_as_trying_every_order_says(problem: Problem) -> None:
    best = optimum(problem)
    search = Exact(problem)
    for capacity in range(best + 2, max(problem.floor - 2, 0), -1):
        for answer in (decide(problem, capacity, effort=PLENTY), search.decide(capacity, PLENTY)):
            assert answer.fits is (capacity >= best)
            if answer.offsets is not None:
                check(Plan(Problem(problem.buffers, capacity), answer.offsets, ""))


@given(small())
def test_nothing_is_smaller_than_what_improve_finds(problem: Problem) -> None:
    answer = Exact(problem).improve(problem.disjoint_offsets, PLENTY)
    assert answer.fits
    plan = Plan(problem, answer.offsets or (), "")
    check(plan)
    assert plan.arena_bytes == optimum(problem)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from((1, 64)))
def test_a_block_that_was_cut_up_is_put_together_again(seed: int, unit: int) -> None:
    """Not a byte is free at any step, and something is placed in every one: no order finds that by luck."""
    problem = cut_up(24, seed, unit=unit)
    answer = decide(problem, problem.floor, effort=PLENTY)
    assert answer.fits
    check(Plan(Problem(problem.buffers, problem.floor), answer.offsets or (), ""))


def test_dead_ends_of_one_part_do_not_mislead_another(plain: None) -> None:
    """Searches that are broken off and begun again agree with one that is not."""
    for seed in range(30):
        problem = cut_up(14, seed, width=8)
        # One byte more here and there: some fit and some do not.
        rng = random.Random(seed)
        buffers = tuple(Buffer(b.name, b.size + (rng.random() < 0.1), b.first, b.last) for b in problem.buffers)
        problem = Problem(buffers)
        answers = set()
        for first_budget in (0.05, 1.0, 1e6):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(exact, "_FIRST_BUDGET", first_budget)
                answers.add(decide(problem, problem.floor, effort=PLENTY).fits)
        assert answers in ({True}, {False})


def test_what_fits_nowhere_is_known_at_once() -> None:
    problem = Problem((Buffer("a", 8, 0, 1), Buffer("b", 8, 1, 2)))
    assert decide(problem, 15, effort=0) == Answer(False, None, 0)


def test_without_effort_nothing_is_known() -> None:
    assert decide(cut_up(24, 1), 1 << 20, effort=0).fits is None


def test_the_capacity_is_met_first(plain: None) -> None:
    problem = cut_up(200, 0)
    found = allocate(Problem(problem.buffers, problem.floor), effort=20_000)
    assert found.arena_bytes == problem.floor
    assert found.algorithm == "exact search"
    assert allocate(problem, effort=20_000).arena_bytes > problem.floor


def test_the_same_question_has_the_same_answer(plain: None) -> None:
    problem = cut_up(40, 4)
    assert decide(problem, problem.floor, effort=300_000) == decide(problem, problem.floor, effort=300_000)


def test_too_many_buffers_are_left_alone() -> None:
    row = tuple(Buffer(str(i), 8, i, i + 1) for i in range(exact.MOST_BUFFERS + 1))
    assert decide(Problem(row), 16, effort=PLENTY) == Answer(None, None, 0)


def test_compiled_code_takes_the_same_steps() -> None:
    pytest.importorskip("numba")
    questions = [(cut_up(100, seed), effort) for seed in range(4) for effort in (5_000, 400_000)]
    answers: list[list[Any]] = []
    for code in (None, exact.compiled()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exact, "compiled", functools.cache(lambda code=code: code))
            exact.compiled()
            answers.append([decide(p, p.floor, effort=effort) for p, effort in questions])
            answers[-1] += [Exact(p).improve(p.disjoint_offsets, effort) for p, effort in questions]
    assert answers[0] == answers[1]
    assert {a.fits for a in answers[0]} == {True, None}


@pytest.fixture
def fresh() -> Iterator[None]:
    exact.compiled.cache_clear()
    yield
    exact.compiled.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_numba_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert exact.compiled() is None


@pytest.mark.usefixtures("fresh")
def test_compiled_code_that_cannot_be_kept_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder can be written, numba refuses to keep what it compiles."""
    asked = []

    def njit(function: Any = None, cache: bool = False) -> Any:
        asked.append(cache)
        if cache:
            return njit_refused
        return function

    def njit_refused(function: Any) -> Any:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(njit=njit))
    search = exact.compiled()
    assert search is not None
    assert asked.count(True) == asked.count(False) > 1
