"""What counts as noise where no float64 run of the original was possible."""

from __future__ import annotations

import numpy as np
import pytest

from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.compare import Totals, difference
from memoptc.runtime.judge import GATES, Evidence, Judge, judge_output, missing_decibels

SMALL = np.array([6e-5, 1e-5, 3e-5], np.float32)
"""Results of a Sigmoid far out, where kernels err by some 1e-7 in absolute terms."""


def judged(reference: np.ndarray, own: float, moved: float) -> str:
    """Why a candidate fails whose largest element moved, where the original itself moves by `own`."""
    evidence = Evidence(Totals("y"), "float32")
    pair = difference(reference, reference + np.array([moved, 0, 0], np.float32))
    evidence.totals.add(pair)
    evidence.pairs.append(pair)
    evidence.own.append(difference(reference, reference + np.array([own, 0, 0], np.float32)))
    return judge_output(evidence, Judge())[0]


@pytest.mark.parametrize("judge", [Judge(target="int8"), Judge(accuracy=AccuracyTarget(min_sqnr=20.0))])
def test_numbers_whose_squares_are_infinite_do_not_pass(judge: Judge) -> None:
    reference = np.array([1e200, 2e200, -3e200])
    evidence = Evidence(Totals("y"), "float64")
    evidence.totals.add(difference(reference, -reference))
    assert "SQNR" in judge_output(evidence, judge)[0]


def test_small_results_may_move_as_far_as_kernels_err() -> None:
    assert judged(SMALL, own=1.5e-7, moved=1.5e-7) == ""


@pytest.mark.parametrize(
    ("reference", "own", "moved"),
    [
        (SMALL, 0.0, 1.5e-7),  # the original does not move: nothing excuses it
        (SMALL, 1.5e-7, 1.8e-6),  # more than two percent of the largest
        (1000 * SMALL, 1.5e-4, 1.5e-4),  # no noise of a kernel: too chaotic to tell
    ],
)
def test_what_exceeds_the_noise_fails(reference: np.ndarray, own: float, moved: float) -> None:
    assert "of its largest magnitude" in judged(reference, own, moved)


def test_zeros_of_another_sign_are_within_any_error() -> None:
    zero = np.zeros(2, np.float32)
    evidence = Evidence(Totals("y"), "float32", [difference(zero, -zero)])
    evidence.totals.add(evidence.pairs[0])
    assert judge_output(evidence, Judge(max_error=1e-3)) == ("", "max_error")


def test_samples_without_a_float64_run_count_for_integers_too() -> None:
    """One flipped number of a hundred is the original's own noise; a sample that is all wrong is none."""
    one, all_ = np.zeros(100, np.int64), np.ones(100, np.int64)
    flipped = one.copy()
    flipped[0] = 1
    pairs = [difference(one, flipped), difference(one, all_)]
    evidence = Evidence(Totals("y"), "int64", pairs, [difference(one, flipped)], [difference(one, flipped)])
    for pair in pairs:
        evidence.totals.add(pair)
    fault, by = judge_output(evidence, Judge())
    assert (by, "101 of 200" in fault) == ("equality", True)
    evidence.totals = Totals("y")
    evidence.totals.add(pairs[0])
    assert judge_output(evidence, Judge())[0] == ""


@pytest.mark.parametrize(
    ("reached", "asked", "missing"),
    [
        ([12.0, 5.0], None, 1.3),  # of int4: 6 dB, and a cosine of 0.9, which noise of 6.3 dB has
        ([7.0, None], None, None),
        ([7.0], 9.0, 2.0),
        ([], None, None),
    ],
)
def test_what_is_missing_is_said_in_decibels(
    reached: list[float | None], asked: float | None, missing: float | None
) -> None:
    outputs = [{"sqnr_db": sqnr} for sqnr in reached]
    found = missing_decibels(outputs, GATES["int4"], asked)
    assert found == (missing if missing is None else pytest.approx(missing, abs=0.01))
    assert missing_decibels(outputs, None, None) is None
