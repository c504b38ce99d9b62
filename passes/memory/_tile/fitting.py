"""Rounds of the search for tilings: the graph that they start from, what each gave, and how far the search may go."""

from __future__ import annotations

from dataclasses import dataclass, field

from memoptc.ir.core import Graph, Op
from memoptc.pass_base import Context
from memoptc.passes.memory._tile.estimate import KnownTilings, TilingEstimate
from memoptc.passes.memory._tile.grid import DynamicGrid, StaticGrid, TileGrid
from memoptc.passes.memory._tile.memory_profile import MemoryProfile
from memoptc.passes.memory._tile.region import Region
from memoptc.passes.memory._tile.remat import Remat
from memoptc.passes.memory._tile.states import State, States
from memoptc.runtime.memory.liveness import label

EFFORT, EFFORT_PER_OP = 1_000_000, 1_000
"""Ops that a search may look at, as such and for each op of the graph; a million take about half a minute. The number,
not the clock, so that the same model always gives the same result."""


def key_of(choice: TilingEstimate) -> object:
    """Key that tells a tiling from others, whatever objects it is made of."""
    region = choice.region
    places = tuple((op.results[0].name, region.axes[op].cuts) for op in region.ops)
    return choice.count, choice.overcompute, places


@dataclass(frozen=True)
class Start:
    """The graph that every round starts from, and what rounds tell each other."""

    graph: Graph
    context: Context
    profile: MemoryProfile
    """Live bytes of the graph that the pass was given: what comes out is compared with them."""
    known: KnownTilings = field(default_factory=KnownTilings)
    states: States = field(default_factory=lambda: States())
    begun: dict[tuple[int, float], Beginning] = field(default_factory=dict)
    """Where rounds begin, by the number of values to rematerialise and the seconds allowed for that."""

    @property
    def is_spent(self) -> bool:
        """True if the search is to end with the best that is known."""
        most = EFFORT + EFFORT_PER_OP * len(self.profile.ops)
        return self.known.effort > most or self.context.is_late("further tilings of fit")


@dataclass(frozen=True)
class Beginning:
    """Where a round begins.

    Args:
        state: The graph, with some values rematerialised.
        remats: Those values; fewer than were asked for where no others are worth it.
    """

    state: State
    remats: tuple[Remat, ...] = ()

    @property
    def seconds(self) -> float:
        """Time that it takes to compute them again."""
        return sum(remat.seconds for remat in self.remats)


@dataclass
class MadeTiling:
    """A tiling that a round made: peaks before and after it, and the time that it takes."""

    name: str
    ops: int
    tiles: int
    before: int
    after: int
    seconds: float


@dataclass
class Round:
    """A graph that one round of the search gave, and what it did."""

    graph: Graph
    remats: list[Remat] = field(default_factory=list)
    moves: list[MadeTiling] = field(default_factory=list)
    course: list[tuple[int, int]] = field(default_factory=list)
    """The peak, and the bytes that nodes take with the weights they pack, before each tiling and at the end."""
    seconds: float = 0.0
    measured: float | None = None
    peak: int = 0
    holder: str = ""
    sums: int = 0
    ended_early: bool = False


def grid_for(region: Region, count: int, profile: MemoryProfile) -> TileGrid:
    """Give the grid in which a region is cut: in numbers where all its extents are known."""
    return DynamicGrid(region, count) if region.is_symbolic else StaticGrid(region, count, profile.costs.extent)


def peaks_of(profile: MemoryProfile) -> int:
    """Number of separate stretches of the run that need more than half of the peak."""
    high = [count > profile.peak / 2 for count in profile.curve]
    return sum(now and not before for before, now in zip([False, *high], high, strict=False))


def holder_of(profile: MemoryProfile) -> str:
    """Name the op that runs at the peak."""
    if not profile.curve:
        return "the end"
    step = max(range(len(profile.curve)), key=profile.curve.__getitem__)
    op: Op = profile.ops[step]
    return label(op)
