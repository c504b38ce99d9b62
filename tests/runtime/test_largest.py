"""The largest sizes under a limit: found with few runs, and every stated edge was run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_models import normal, parse

from memoptc.ir.onnx_io import read_onnx
from memoptc.runtime.container import Trial
from memoptc.runtime.inputs import InputMaker
from memoptc.runtime.largest import CLOSE, STEP, TRIALS, AxisLimit, largest_extents

TABLE = parse(
    "g (int64[N, S] ids) => (float[N, S, 8] y) {"
    " zero = Constant<value_ints = [0]> () end = Shape<start = 1> (ids)"
    " place = Slice(table, zero, end) word = Gather(words, ids) y = Add(word, place) }",
    table=normal(512, 8),
    words=normal(100, 8),
)
"""The first rows of a table of 512 are added."""


def search(
    kinds: Mapping[str, str], fits: int, predicted: float = 1.0, seconds: float = math.inf
) -> tuple[list[AxisLimit], list[dict[str, int]]]:
    """Search with a model of one byte per element of `ids`, and predictions that are off by a factor."""
    tried: list[dict[str, int]] = []

    def attempt(extents: Mapping[str, int]) -> Trial:
        tried.append(dict(extents))
        size = extents["N"] * extents["S"]
        return Trial(size <= fits, "" if size <= fits else "killed", 1.0, size)

    def bytes_of(extents: Mapping[str, int]) -> int:
        return int(predicted * extents["N"] * extents["S"])

    maker = InputMaker(read_onnx(TABLE))
    return largest_extents(maker, kinds, {"N": 1, "S": 16}, attempt, bytes_of, fits, seconds=seconds), tried


@given(fits=st.integers(20, 10**6), predicted=st.sampled_from([0.6, 0.95, 1.0, 1.2, 1.8]))
def test_the_edge_was_run_and_what_is_beyond_does_not_fit(fits: int, predicted: float) -> None:
    (edge,), tried = search({"N": "batch"}, fits, predicted)
    assert edge.largest is not None
    assert edge.beyond is not None
    assert edge.extents in tried
    assert edge.largest * 16 <= fits < edge.beyond * 16
    assert edge.beyond <= max(edge.largest + STEP["batch"], edge.largest * CLOSE)
    assert len(tried) <= TRIALS


def test_a_table_bounds_what_is_tried() -> None:
    (edge,), tried = search({"S": "sequence"}, 10**6)
    assert (edge.largest, edge.beyond, edge.why) == (512, None, "the model allows no more")
    assert all(extents["S"] <= 512 for extents in tried)


@pytest.mark.parametrize(
    ("predicted", "largest", "beyond", "why"),
    [(1.0, 248, 311, "killed"), (0.1, 1, 2496, "killed"), (2.0, 156, None, "no time to try more")],
)
def test_a_search_whose_time_is_over_looks_once_for_the_side_that_is_missing(
    predicted: float, largest: int, beyond: int | None, why: str
) -> None:
    (edge,), tried = search({"N": "batch"}, 4000, predicted, seconds=0.0)
    assert (edge.largest, edge.beyond, edge.why) == (largest, beyond, why)
    assert edge.extents in tried
    assert len(tried) == 2


def test_a_search_whose_time_is_over_at_the_models_own_bound_says_so() -> None:
    (edge,), tried = search({"S": "sequence"}, 10**6, seconds=0.0)
    assert (edge.largest, edge.why, len(tried)) == (512, "the model allows no more", 2)


def test_not_even_the_smallest_fits() -> None:
    (edge,), _ = search({"N": "batch"}, 3)
    assert (edge.largest, edge.beyond, edge.why) == (None, 1, "killed")


@pytest.mark.parametrize("fits", [300, 4000])
def test_each_kind_of_axis_grows_by_itself(fits: int) -> None:
    batch, sequence = search({"N": "batch", "S": "sequence"}, fits)[0]
    assert (batch.axes, sequence.axes) == (("N",), ("S",))
    assert batch.extents["S"] == 16
    assert sequence.extents["N"] == 1
    assert sequence.largest == (512 if fits == 4000 else pytest.approx(300, rel=CLOSE - 1))
