from __future__ import annotations

import pytest
from hypothesis import given
from memory_problems import problems

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.memory.problem import Buffer, Problem, read_csv, write_csv


def naive_floor(problem: Problem) -> int:
    """Most bytes alive at once, step by step."""
    steps = {b.first for b in problem.buffers}
    return max((sum(b.size for b in problem.buffers if b.first <= t <= b.last) for t in steps), default=0)


@given(problems())
def test_the_floor_is_the_busiest_step(problem: Problem) -> None:
    assert problem.floor == naive_floor(problem)


@given(problems(alignments=(1, 4, 64)))
def test_alignment_only_raises_the_floor(problem: Problem) -> None:
    assert problem.floor >= naive_floor(problem)


def test_alignment_counts_for_all_but_one() -> None:
    """Two buffers of 1 byte at multiples of 64 need 65 bytes."""
    problem = Problem((Buffer("a", 1, 0, 0, 64), Buffer("b", 1, 0, 0, 64)))
    assert problem.floor == 65
    assert problem.naive_sum == 65


def test_ranges_are_closed() -> None:
    a, b = Buffer("a", 8, 0, 1), Buffer("b", 8, 1, 2)
    assert Problem((a, b)).floor == 16
    assert Problem((a, Buffer("b", 8, 2, 2))).floor == 8


@given(problems(alignments=(1, 64)))
def test_csv_round_trip(problem: Problem) -> None:
    assert read_csv(write_csv(problem)) == problem


def test_csv_ranges_are_half_open() -> None:
    """In minimalloc's files `upper` is excluded: these two never meet."""
    problem = read_csv("size,id,lower,upper\n8,a,0,4\n16,b,4,9\n", capacity=16)
    assert problem.buffers == (Buffer("a", 8, 0, 3), Buffer("b", 16, 4, 8))
    assert (problem.floor, problem.naive_sum, problem.capacity) == (16, 24, 16)


def test_csv_keeps_fixed_offsets() -> None:
    problem = Problem((Buffer("a", 8, 0, 3, 4, 12), Buffer("b", 8, 0, 3, 4)))
    assert read_csv(write_csv(problem)) == problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,lower,upper\na,0,1\n", "Line 2 is no buffer: there is no column 'size'."),
        ("id,lower,upper,size\na,0,1,4503599627370497\n", "Line 2: Buffer 'a' has a number of more than 52 bits."),
        ("id,lower,upper,size\na,0,1,4\nb,0,1,many\n", "Line 3 is no buffer: invalid literal"),
        ("id,lower,upper,size\na,5,5,4\n", "Line 2: Buffer 'a' has size 4, live range 5..4"),
        ("id,lower,upper,size\na,0,1,0\n", "Line 2: Buffer 'a' has size 0"),
    ],
)
def test_bad_csv(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_csv(text)
    assert error.value.message.startswith(message)


def test_a_fixed_offset_is_aligned() -> None:
    with pytest.raises(InputError, match="cannot lie at 7"):
        Buffer("a", 8, 0, 1, 4, 7)
