"""Distances of outputs: what is measured, what cannot be compared, sums over pieces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoptc.runtime.compare import Totals, difference, flatten


def test_difference_of_known_values() -> None:
    a = np.array([[1.0, 2.0, -4.0], [0.0, 0.5, 1.0]], np.float32)
    b = a + np.array([[0.0, 0.1, 0.0], [0.001, 0.0, -0.2]], np.float32)
    found = difference(a, b)
    assert found.max_abs == pytest.approx(0.2, rel=1e-5)
    assert found.scale == 4.0
    assert found.max_rel == pytest.approx(0.25, rel=1e-4)  # 0.001 counts against 4 / 1000
    assert found.top1 == (2, 2)
    totals = Totals("y")
    totals.add(found)
    error = float(((a - b).astype(np.float64) ** 2).sum())
    assert totals.sqnr_db == pytest.approx(10 * math.log10(float((a.astype(np.float64) ** 2).sum()) / error), rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "fault"),
    [
        (np.zeros(3), np.zeros(4), "shape"),
        (np.zeros(3), np.zeros(3, np.float32), "element type"),
        (None, np.zeros(3), "none"),
        (np.array([1, np.inf]), np.array([1, -np.inf]), "-inf instead of inf"),
        (np.array([1, np.nan]), np.array([1, np.inf]), "inf instead of nan"),
        (np.array([1.0, 2.0]), np.array([1, np.nan]), "nan instead of 2.0"),
    ],
)
def test_what_cannot_be_compared(a: Any, b: Any, fault: str) -> None:
    assert fault in difference(a, b).fault


def test_equal_bits_of_every_kind() -> None:
    for value in (
        np.array([np.nan, -0.0, np.inf]), np.array(["a", "b"], object), np.array([True]), None,
        np.zeros((0, 3), np.float32), np.array(3, np.int64), np.array([1 + 2j], np.complex64),
    ):  # fmt: skip
        assert difference(value, value).exact
    assert not difference(np.array([0.0]), np.array([-0.0])).exact
    assert dict(flatten("m", {1: [np.zeros(1)]})).keys() == {"m{1}[]", "m{1}[0]"}


@settings(max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0.5, 2.0), st.integers(1, 3))
def test_sums_over_pieces_are_those_of_the_whole(values: list[float], factor: float, pieces: int) -> None:
    a = np.asarray(values)
    b = a * factor
    whole, parts = Totals("y"), Totals("y")
    whole.add(difference(a, b))
    for x, y in zip(np.array_split(a, pieces), np.array_split(b, pieces), strict=True):
        parts.add(difference(x, y))
    assert parts.max_abs == whole.max_abs
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-12)
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-6)
