"""onnxruntime's own arena on paper: what capacity a sequence of allocations needs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoptc.runtime.memory.bfc import UNIT, arena_capacity


@pytest.mark.parametrize(
    ("events", "units"),
    [
        ((), 0),
        ((1,), 1),
        ((256, 257), 3),
        ((256, -1, 256), 1),
        # A hole that is too small is left; one that fits best is taken, not the first.
        ((256, 256, -1, 512), 4),
        ((1024, 256, 512, 256, -1, -3, 512), 8),
        # Neighbours that are free are joined.
        ((256, 256, 256, -1, -2, 512), 3),
        # What is free at the end is part of the rest.
        ((256, 256, -2, 1024), 5),
    ],
)
def test_what_a_sequence_needs(events: tuple[int, ...], units: int) -> None:
    assert arena_capacity(events) == units * UNIT


@given(st.integers(0, 2**32 - 1))
def test_never_less_than_what_is_alive_and_never_more_than_all(seed: int) -> None:
    rng = random.Random(seed)
    events: list[int] = []
    sizes: list[int] = []
    alive: list[int] = []
    most = 0
    for _ in range(rng.randint(1, 60)):
        if alive and rng.random() < 0.45:
            events.append(-alive.pop(rng.randrange(len(alive))) - 1)
        else:
            events.append(rng.randint(1, 5000))
            alive.append(len(sizes))
            sizes.append(-(-events[-1] // UNIT) * UNIT)
        most = max(most, sum(sizes[i] for i in alive))
    assert most <= arena_capacity(events) <= sum(sizes)
