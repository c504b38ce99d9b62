"""Which values are worth computing once more: large ones that wait long, are cheap, and leave something to gain."""

from __future__ import annotations

import pytest

from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.passes.memory._tile.costs import Costs
from memoptc.passes.memory._tile.memory_profile import MemoryProfile
from memoptc.passes.memory._tile.remat import Remat, remat_candidates

MB = 1 << 20
SKIP = """
  %s = const() {value=[1,64,64,64]} : i64[4]
  %a = Expand(%x, %s)
  %b = Neg(%a)
  %c = Concat(%b, %b, %b, %b) {axis=1}
  %d = GlobalAveragePool(%c)
  %m = ReduceMax(%d)
  %e = Add(%a, %m)
"""
"""%a, a megabyte, waits for %e while four more are alive."""


def candidates(body: str, outputs: str = "%e", allowance: float = 1.0) -> list[Remat]:
    types = ", ".join(["f32[*]"] * len(outputs.split(", ")))
    graph = parse(f"graph @g(%x: f32[1,1,64,64]) -> ({types}) {{{body} return {outputs}\n}}")
    infer_shapes(graph)
    return remat_candidates(MemoryProfile(graph, Costs(graph, {})), allowance)


def named(found: list[Remat]) -> list[tuple[str, list[str], list[str], int]]:
    return [(r.value.name, [u.result.name for u in r.users], [o.result.name for o in r.ops], r.gain) for r in found]


def test_a_value_that_waits_is_computed_again_for_its_late_use_alone() -> None:
    assert named(candidates(SKIP)) == [("a", ["e"], ["a"], MB)]
    two = SKIP + "%f = Mul(%e, %a)\n"
    assert named(candidates(two, "%f")) == [("a", ["e", "f"], ["a"], MB)]


def test_it_may_take_no_more_time_than_is_allowed() -> None:
    (found,) = candidates(SKIP)
    assert candidates(SKIP, allowance=found.seconds)
    assert not candidates(SKIP, allowance=found.seconds * 0.99)


@pytest.mark.parametrize(
    ("old", "new", "outputs"),
    [
        ("Add(%a, %m)", "Add(%x, %m)", "%e"),  # used early only
        ("Concat(%b, %b, %b, %b)", f"Concat({', '.join(['%b'] * 64)})", "%e"),  # small beside the peak
        ("%e = Add(%a, %m)", "%e = Add(%a, %m)", "%e, %a"),  # alive to the end in any case
        ("%e = Add(%a, %m)", "%v = Identity(%a)\n %e = Add(%v, %m)", "%e"),  # its bytes are also another value's
    ],
)
def test_what_gains_nothing_stays(old: str, new: str, outputs: str) -> None:
    assert old in SKIP
    assert not candidates(SKIP.replace(old, new), outputs)


def test_a_wait_during_which_little_is_alive_stays() -> None:
    """The peak lies behind both uses, four times as high as what is alive between them."""
    low = SKIP.replace("Concat(%b, %b, %b, %b)", "Concat(%b)")
    assert named(candidates(low)) == [("a", ["e"], ["a"], MB)]
    behind = f"%f = Concat({', '.join(['%e'] * 12)}) {{axis=1}}\n%g = GlobalAveragePool(%f)\n"
    assert not candidates(low + behind, "%g")


def test_operands_that_are_kept_alive_for_the_copy_count() -> None:
    halves = SKIP.replace("%a = Expand(%x, %s)", "%h = Expand(%x, %s)\n%a = Concat(%h, %h) {axis=1}")
    halves = halves.replace("value=[1,64,64,64]", "value=[1,32,64,64]")
    assert named(candidates(halves)) == [("a", ["e"], ["a"], MB // 2)]
