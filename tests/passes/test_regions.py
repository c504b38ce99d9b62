"""From which ops regions to tile are grown: the one at the peak, and the nearest beside it that can be cut."""

from __future__ import annotations

import pytest

from memoptc.ir.infer import infer_shapes
from memoptc.ir.parser import parse
from memoptc.passes.memory._tile.choose import regions
from memoptc.passes.memory._tile.costs import Costs
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.memory_profile import MemoryProfile


def seeds(*lines: str) -> tuple[str, set[str]]:
    """The result of the op at the peak, and those of the ops that regions are grown from."""
    body = "\n  ".join((*lines, "%o = ReduceMax(%z)", "return %o"))
    graph = parse(f"graph @g(%x: f32[4,8,64], %i: i64[4,8,64], %n: i64[3]) -> (f32[*]) {{\n  {body}\n}}")
    infer_shapes(graph)
    profile = MemoryProfile(graph, Costs(graph, {}))
    peak = profile.ops[profile.curve.index(max(profile.curve))]
    return peak.result.name, {op.result.name for (op, _), _ in regions(profile, IterationSpaces())}


def repeated(data: str, times: str, *after: str) -> tuple[str, ...]:
    """The peak: a value repeated often, which nothing cuts; and what comes before and after it."""
    return (*CHAINS, f"%a = {data}", f"%b = {times}", "%p = Tile(%a, %b) : f32[4,64,64]", *after)


CHAINS = ("%c = Exp(%x)", "%d = Neg(%n)")
UNCUT_DATA, UNCUT_TIMES = "GatherElements(%x, %i)", "GatherElements(%n, %n)"
SMALL = "%z = ReduceMax(%p) {axes=[0,1]}"
USED = ("%u = ReduceMax(%p) {axes=[1]} : f32[4,1,64]", "%z = Exp(%u) : f32[4,1,64]")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (repeated("Sin(%c)", "Abs(%d)", SMALL), {"a"}),  # the first maker, not the second one
        (repeated(UNCUT_DATA, "Abs(%d)", SMALL), {"b"}),  # of which the first cannot be cut
        (repeated("Sin(%c)", "Abs(%d)", *USED), {"a"}),  # users come last
        (repeated(UNCUT_DATA, UNCUT_TIMES, *USED), {"u"}),
        (repeated(UNCUT_DATA, UNCUT_TIMES, "%z = NonZero(%p)"), set()),
    ],
)
def test_where_the_peak_stays_whole_its_nearest_neighbour_is_cut(lines: tuple[str, ...], expected: set[str]) -> None:
    assert seeds(*lines) == ("p", expected)


def test_regions_are_grown_from_the_peak_and_from_its_first_maker() -> None:
    lines = ("%c = Exp(%x)", "%a = Sin(%c)", "%d = Cos(%x)", "%b = Sin(%d)", "%p = Concat(%a, %b) {axis=0}")
    assert seeds(*lines, SMALL) == ("p", {"p", "a"})
