"""States of a graph between tilings. A tiling is made in a copy, so that a state, with all that was worked out of it,
serves every round of the search that comes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from memoptc.ir.core import Graph, Op, Value
from memoptc.passes.memory._tile.choose import Offer, offers
from memoptc.passes.memory._tile.costs import Costs
from memoptc.passes.memory._tile.iteration_spaces import IterationSpaces
from memoptc.passes.memory._tile.memory_profile import MemoryProfile
from memoptc.passes.memory._tile.region import Region
from memoptc.runtime.memory.extents import keep_extents

MOST_KEPT = 20_000
"""Ops of all states that are kept, some 50 MB; more are made anew when another round comes by."""


@dataclass(eq=False)
class State:
    """A graph that is not changed any more.

    Args:
        graph: The graph.
        profile: Its live bytes.
        spaces: Iteration spaces of its ops.
    """

    graph: Graph
    profile: MemoryProfile
    spaces: IterationSpaces = field(default_factory=IterationSpaces)

    @cached_property
    def offers(self) -> list[Offer]:
        """Regions around its peak."""
        return offers(self.profile, self.spaces)

    def copy(self, names_of: Graph | None = None) -> Copy:
        """Copy the graph, to be changed.

        Args:
            names_of: Another version of the graph, whose names are not given again.
        """
        values: dict[Value, Value] = {}
        graph = self.graph.clone(values, names_of)
        keep_extents(graph, self.graph)
        return Copy(graph, values, dict(zip(self.graph.ops, graph.ops, strict=True)))


@dataclass(frozen=True)
class Copy:
    """A copy of a state's graph.

    Args:
        graph: The copy.
        values: Value of the state -> that of the copy.
        ops: Op of the state -> that of the copy.
    """

    graph: Graph
    values: dict[Value, Value]
    ops: dict[Op, Op]

    def region(self, region: Region) -> Region:
        """Give the same region of the copy."""
        return Region(
            [self.ops[op] for op in region.ops],
            {self.ops[op]: axis for op, axis in region.axes.items()},
            {self.values[v]: axis for v, axis in region.cut.items()},
            [self.values[v] for v in region.outputs],
        )

    def state(self, costs: Costs, spaces: IterationSpaces) -> State:
        """Give the state once the copy is changed; what is known of ops that are still there is kept."""
        return State(self.graph, MemoryProfile(self.graph, costs), spaces.of_copy(self.ops))


class States:
    """States that were made, by the state before and what was tried in it since: the names of new values depend on
    both."""

    def __init__(self) -> None:
        self._known: dict[tuple[State, tuple[object, ...]], tuple[object, State | None, Graph]] = {}
        self._kept = 0

    def after(
        self,
        state: State,
        tried: tuple[object, ...],
        make: Callable[[], tuple[object, State | None, Graph]],
    ) -> tuple[object, State | None, Graph]:
        """Give what was made of a state.

        Args:
            state: The state before.
            tried: Keys of the tilings that were tried in it, the one to make last.
            make: Makes it; gives what became of it, the state after it if there is one, and the copy that was changed.
        """
        found = self._known.get((state, tried))
        if found is None:
            found = make()
            size = len(state.profile.ops)
            if self._kept + size <= MOST_KEPT:
                self._kept += size
                self._known[state, tried] = found
        return found
