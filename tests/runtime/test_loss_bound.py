"""Bounds on lost accuracy: what so many rows show, held against scipy and against counts drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.loss_bound import DOUBT, PairedHits, disagreements, samples_for, share_for
from memoptc.runtime.quality import Quality


@pytest.mark.parametrize(
    ("share", "samples", "allowed"),
    [
        (0.02, 114, 0),
        (0.02, 113, None),
        (0.5, 10, 2),
        (0.0, 99, None),
        (1.0, 9, 8),
        # Powers that underflow: all samples were allowed to disagree.
        (0.5, 2000, 970),
        (0.02, 60000, 1155),
    ],
)
def test_what_samples_show(share: float, samples: int, allowed: int | None) -> None:
    assert disagreements(share, samples) == allowed


@given(st.integers(1, 3000), st.floats(1e-4, 0.9999))
def test_the_largest_number_that_shows_a_share_is_the_binomial_one(samples: int, share: float) -> None:
    allowed = disagreements(share, samples)
    assert binom.cdf(0 if allowed is None else allowed + 1, samples, share) > DOUBT - 1e-9
    if allowed is None:
        assert samples < samples_for(share) + 1
    else:
        assert binom.cdf(allowed, samples, share) <= DOUBT + 1e-9
        assert share_for(allowed, samples) <= share + 1e-9


@pytest.mark.parametrize(("share", "disagreeing"), [(0.005, 3), (0.02, 1), (0.3, 2), (0.9, 5)])
def test_so_many_samples_allow_so_many_disagreements(share: float, disagreeing: int) -> None:
    samples = samples_for(share, disagreeing)
    assert disagreements(share, samples) == disagreeing
    assert (disagreements(share, samples - max(1, samples // 32)) or 0) <= disagreeing


@pytest.mark.parametrize("rows", [128, 460, 1000])
@pytest.mark.parametrize(("lost", "won"), [(0.005, 0.0), (0.02, 0.0), (0.01, 0.005), (0.02, 0.01), (0.05, 0.03)])
def test_the_bound_holds_nine_times_out_of_ten(rows: int, lost: float, won: float) -> None:
    drawn = np.random.default_rng(0).multinomial(rows, [lost, won, 1 - lost - won], 500)
    seen, often = np.unique(drawn, axis=0, return_counts=True)
    holds = np.array([PairedHits(int(a), int(b), rows).bound >= lost - won for a, b, _ in seen])
    spread = np.sqrt(DOUBT * (1 - DOUBT) / len(drawn))
    assert (holds * often).sum() / len(drawn) >= 1 - DOUBT - 3 * spread


def test_rows_that_differ_both_ways_widen_the_bound() -> None:
    bounds = [PairedHits(flips, flips, 1000).bound for flips in (0, 5, 50)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[1] < bounds[2] < 0.02


@pytest.mark.parametrize(
    ("hits", "max_loss", "enough", "allowed"),
    [
        ((0, 0, 460), 0.005, True, True),
        ((1, 0, 460), 0.005, True, False),  # 0.2 % seen, 0.8 % possible
        ((1, 0, 800), 0.005, True, True),
        ((0, 0, 128), 0.005, False, True),  # nothing is lost, which is all that so few can say
        ((1, 1, 128), 0.005, False, True),
        ((1, 0, 400), 0.005, False, False),  # 0.25 % seen
        ((0, 0, 10), 0.0, False, True),
        ((1, 0, 10), 0.0, False, False),
    ],
)
def test_what_is_taken_for_allowed(hits: tuple[int, int, int], max_loss: float, enough: bool, allowed: bool) -> None:
    found = PairedHits(*hits)
    assert found.are_enough(max_loss) is enough
    assert (found.doubt(max_loss) == "") is (enough or max_loss == 0)
    target, quality = AccuracyTarget(max_loss=max_loss), Quality({}, hits[2], 0.9, found)
    assert target.met_by(quality, 0.9 + found.loss) is allowed


def test_a_metric_of_ones_own_is_taken_as_measured() -> None:
    assert AccuracyTarget(max_loss=0.1).met_by(Quality({}, 4, 0.75), 0.8)
    assert not AccuracyTarget(max_loss=0.01).met_by(Quality({}, 4, 0.75), 0.8)


def test_a_candidate_that_answers_other_rows_has_none_right() -> None:
    assert PairedHits.of(np.array([True, False]), np.zeros(0, np.bool_)) == (1, 0, 2)
