"""Small valid models of which compilers get something wrong keep their numbers: every bit at levels 0 and 1."""

from __future__ import annotations

from collections import Counter

import pytest
from fuzzing import Way, try_ways
from odd_models import MODELS

WAYS: tuple[Way, ...] = (
    {"level": 0},
    {"level": 3},
    *({"level": 2, "target": target} for target in ("int8", "int4", "float16")),
    {"level": 1, "external": "always"},
    {"level": 2, "freeze_runtime": True, "pack_weights": True, "external": "always"},
)


@pytest.mark.parametrize("name", MODELS)
def test_levels_keep_numbers(name: str) -> None:
    _try(name, ({"level": 1}, {"level": 2}))


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
def test_every_way_keeps_numbers(name: str) -> None:
    _try(name, WAYS)


def _try(name: str, ways: tuple[Way, ...]) -> None:
    model, feeds = MODELS[name]()
    counts: Counter[str] = Counter()
    assert try_ways(model, feeds, ways, counts) == ""
    assert counts["models"] == 1
