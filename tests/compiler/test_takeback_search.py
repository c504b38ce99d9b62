"""The search for what to take back: which passes, which weaker forms, within an allowance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from memoptc.allowance import CUT, Allowance
from memoptc.attempts import Edit
from memoptc.edits import find_edit, weaker_forms
from memoptc.options import Options
from memoptc.pipeline import Pipeline
from memoptc.pipeline import parse as parse_pipeline
from memoptc.report.model import PassRecord
from memoptc.takeback import Keeper

MB = 1 << 20


def test_the_shortest_tail_is_found_and_the_rest_put_back() -> None:
    asked: list[frozenset[int]] = []

    def holds(edit: Edit) -> bool:
        asked.append(edit.dropped)
        return 7 in edit.dropped

    found = find_edit(list(range(20)), holds, iter(()))
    assert found == Edit(frozenset({7}))
    assert len(asked) == len(set(asked)) <= 12


def test_two_culprits_are_both_found() -> None:
    found = find_edit(list(range(10)), lambda e: {2, 8} <= e.dropped, iter(()), most=30)
    assert found == Edit(frozenset({2, 8}))


def test_with_few_attempts_left_the_known_tail_is_taken() -> None:
    found = find_edit(list(range(100)), lambda e: {3, 70, 90} <= e.dropped, iter(()), most=8)
    assert found is not None
    assert {3, 70, 90} <= found.dropped


def test_out_of_time_all_is_dropped_at_once_and_nothing_smaller_looked_for() -> None:
    asked: list[frozenset[int]] = []

    def holds(edit: Edit) -> bool:
        asked.append(edit.dropped)
        return 7 in edit.dropped

    found = find_edit(list(range(20)), holds, iter(()), late=lambda: True)
    assert found == Edit(frozenset(range(20)))
    assert len(asked) == 1
    assert find_edit([1, 2], lambda e: False, iter(()), late=lambda: True) is None


def test_nothing_helps() -> None:
    assert find_edit([1, 2, 3], lambda e: False, iter(())) is None


def test_of_a_slow_tiling_less_is_tried_before_it_is_dropped() -> None:
    """It stops at higher and higher peaks, between the one that it reached and the one that it found."""
    passes = list(parse_pipeline("fit{slowdown=1.05},lower").passes())
    record = PassRecord("fit", 1.0, 5, 9, planned_peak_bytes=10 * MB, stats={"bytes saved": 30 * MB})
    (ladder,) = weaker_forms(passes, [0], [record])
    goals = [edit.replaced[0].ignore for edit in ladder]  # type: ignore[attr-defined]
    assert goals == sorted(goals)
    assert goals[0] == 10 * MB
    assert 30 * MB < goals[-1] < 40 * MB
    assert not list(weaker_forms(passes, [1], [record]))


def test_the_last_run_of_a_pass_says_between_which_peaks_it_may_stop() -> None:
    passes = list(parse_pipeline("fit{slowdown=1.05},lower").passes())
    ran = [(10, 30), (20, 5), (7, 0), (0, 9)]  # the third saved nothing, the fourth knew no peak
    records = [PassRecord("fit", 1.0, 5, 9, planned_peak_bytes=p * MB, stats={"bytes saved": s * MB}) for p, s in ran]
    records.append(PassRecord("order", 1.0, 5, 9, planned_peak_bytes=MB, stats={"bytes saved": MB}))
    (ladder,) = weaker_forms(passes, [0], records)
    goals = [edit.replaced[0].ignore for edit in ladder]  # type: ignore[attr-defined]
    assert goals[0] == 20 * MB
    assert 20 * MB < goals[-1] < 25 * MB
    ((edit,),) = weaker_forms(passes, [0], records[2:])
    assert (edit.replaced[0].slowdown, edit.replaced[0].ignore) == (1.0, passes[0].ignore)  # type: ignore[attr-defined]


@pytest.mark.parametrize("least", range(9))
def test_of_a_ladder_the_least_that_holds_is_found(least: int) -> None:
    ladder = [Edit(frozenset({9}), {0: index}) for index in range(8)]  # type: ignore[dict-item]
    asked: list[Edit] = []

    def holds(edit: Edit) -> bool:
        asked.append(edit)
        return not edit.replaced or edit.replaced[0] >= least  # type: ignore[operator]

    found = find_edit([1], holds, iter([ladder]))
    assert found == (ladder[least] if least < 8 else Edit(frozenset({1})))
    assert sum(bool(edit.replaced) for edit in asked) <= 4


def test_a_weaker_form_is_tried_first() -> None:
    weak = Edit(replaced={1: object()})  # type: ignore[dict-item]
    assert find_edit([1, 2], lambda e: bool(e.replaced), iter([[weak]])) is weak


def attempts_that_hold(holds: Callable[[str, str], bool], seconds: float = 60.0) -> tuple[Any, list[str]]:
    """Stand-in for attempts of which only those hold of which that is true, by form and pipeline; and forms written.

    Of several passes named `simplify`, one does all that they do. There is an allowance of so many seconds.
    """
    built: list[str] = []

    def build(pipeline: Pipeline, *, form: str | None = None) -> Any:
        name = form or "shapeless"  # what is chosen where nobody says
        need = 10 * MB if holds(name, str(pipeline)) else 90 * MB
        changed = [i for i, p in enumerate(pipeline.passes()) if p.name == "simplify"]
        built.append(name)
        return SimpleNamespace(
            choice=SimpleNamespace(form=SimpleNamespace(name=name)), predicted=(need, need), needs=None, largest=None,
            times=None, recorded=False, edit=None,
            pipeline=pipeline, compiled=SimpleNamespace(changed=changed), decisions=[], warnings=[],
            taken_back=([], []), content=f"{name} {'simplify' in str(pipeline)}",
        )  # fmt: skip

    attempts = SimpleNamespace(
        build=build,
        compilation=SimpleNamespace(options=Options()),
        original=SimpleNamespace(sizes=(50 * MB, 50 * MB)),
        allowance=Allowance(seconds),
    )
    return attempts, built


@pytest.mark.parametrize(("holding", "tried"), [("branch", ["branch"]), ("plain", ["branch", "plain"])])
def test_a_form_gives_way_to_the_next_simpler_one(holding: str, tried: list[str]) -> None:
    attempts, built = attempts_that_hold(lambda form, _: form == holding)
    held = Keeper(attempts).hold_predictions(attempts.build(parse_pipeline("simplify")))
    assert built == ["shapeless", *tried]
    assert held.decisions[0].what == f"the form shapeless (now {holding})"


@pytest.mark.parametrize(
    ("forms", "taken_back"),
    [
        (("plain",), ["simplify", "the form shapeless (now plain)"]),
        (("plain", "branch", "shapeless"), ["simplify"]),  # the form is not to blame
    ],
)
def test_a_form_and_a_pass_may_both_be_to_blame(forms: Sequence[str], taken_back: list[str]) -> None:
    attempts, built = attempts_that_hold(lambda form, pipeline: form in forms and "simplify" not in pipeline)
    held = Keeper(attempts).hold_predictions(attempts.build(parse_pipeline("simplify,drop-dead")))
    assert [d.what for d in held.decisions] == taken_back
    assert built[-1] == forms[-1]


def test_what_is_written_alike_is_judged_once() -> None:
    attempts, built = attempts_that_hold(lambda _, pipeline: "simplify" not in pipeline)
    looks: list[Any] = []

    class Counting(Keeper):
        def _hold(self, first: Any, check: Any, weaker: Any) -> Any:
            return super()._hold(first, lambda a: looks.append(a) or check(a), weaker)

    first = attempts.build(parse_pipeline("simplify,simplify,simplify"), form="plain")
    held = Counting(attempts).hold_predictions(first)
    assert len(held.decisions) == 3
    # With two of the three left, and with one, what is written is what broke the promise already.
    broken = [a.content for a in looks if a.content.endswith("True")]
    assert broken == ["plain True", "shapeless True"]
    assert len(built) > len(looks)


def test_when_the_allowance_is_spent_all_is_taken_back_at_once() -> None:
    attempts, built = attempts_that_hold(lambda _, pipeline: "simplify" not in pipeline, seconds=-1.0)
    held = Keeper(attempts).hold_predictions(attempts.build(parse_pipeline("simplify,simplify,simplify"), form="plain"))
    assert len(built) == 2
    assert held.warnings[-1] == CUT


def test_searches_share_one_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("memoptc.allowance.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("memoptc.allowance.GATE_SECONDS", 20.0)
    allowance = Allowance(math.inf)
    for _ in range(2):
        with allowance.search(measured=True) as spent:
            assert not spent()
            now[0] += 12
    now[0] += 1000  # what other steps take counts for nothing
    with allowance.search(measured=True) as spent:
        assert spent()
        allowance.grant(1.0)
        assert not spent()
