"""Live bytes of a graph at each step of its order, and the time that one run takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from memoptc.ir.core import Graph, Op, Value
from memoptc.passes.memory._tile.costs import Costs
from memoptc.passes.memory._tile.region import Region
from memoptc.runtime.memory.footprint import footprint, is_resident
from memoptc.runtime.memory.liveness import liveness

Steps = NDArray[np.int64]

OVERHEAD = 1.5e-6
"""Seconds that running one node costs."""


def run_seconds(graph: Graph, dims: Mapping[str, int]) -> float:
    """Predicted time of one run of a graph at planned extents."""
    costs = Costs(graph, dims)
    return sum(costs.seconds(op) + OVERHEAD for op in graph.ops if not is_resident(op))


@dataclass
class MemoryProfile:
    """Live bytes of a graph at each step, at its planned extents.

    Args:
        graph: The graph.
        costs: Sizes and times.
    """

    graph: Graph
    costs: Costs

    def __post_init__(self) -> None:
        self.bounds: dict[int, tuple[Region, tuple[int, int, int]]] = {}
        self.ops: list[Op] = [op for op in self.graph.ops if not is_resident(op)]
        self.position = {op: i for i, op in enumerate(self.ops)}
        found = liveness(self.graph, self.costs.dims)
        self.curve = found.curve[: len(self.ops)]
        self.end = found.curve[-1] if found.curve else 0
        self.peak = max(found.curve, default=0)
        self.layout = footprint(self.graph)
        self.sizes = [size or 0 for size in self.layout.bind(self.costs.dims)]

    @cached_property
    def seconds(self) -> float:
        """Time of one run, on paper."""
        return sum(self.costs.seconds(op) + OVERHEAD for op in self.ops)

    @cached_property
    def peak_before(self) -> list[int]:
        """Per step the most bytes alive at any earlier one."""
        return [0, *accumulate(self.curve, max)]

    @cached_property
    def peak_after(self) -> list[int]:
        """Per step the most bytes alive at any later one."""
        return [*accumulate(reversed(self.curve), max, initial=self.end)][-2::-1]

    @cached_property
    def users(self) -> list[list[int]]:
        """Per group the ops that use it."""
        found: list[list[int]] = [[] for _ in self.layout.groups]
        for index, groups in enumerate(self.layout.needs):
            for group in groups:
                found[group].append(index)
        return found

    @cached_property
    def maker(self) -> dict[int, int]:
        """Per group the op that makes it."""
        return {group: index for index, groups in enumerate(self.layout.makes) for group in groups}

    def groups_alive(self, first: int, last: int) -> list[int]:
        """Groups of any size that are there by the step `last` and are used at the step `first` or later, or pinned."""
        sizes, makers, last_uses = self._spans
        found: list[int] = np.flatnonzero((makers <= last) & (last_uses >= first) & (sizes > 0)).tolist()
        return found

    @cached_property
    def _spans(self) -> tuple[Steps, Steps, Steps]:
        """Per group its bytes, the op that makes it (-1: none), and the last that uses it (none after: pinned)."""
        pinned = len(self.ops)
        uses = [
            pinned if group.pinned else max(users, default=-1)
            for group, users in zip(self.layout.groups, self.users, strict=True)
        ]
        makers = [self.maker.get(group, -1) for group in range(len(uses))]
        return np.asarray(self.sizes, np.int64), np.asarray(makers, np.int64), np.asarray(uses, np.int64)

    @cached_property
    def group_index(self) -> dict[Value, int]:
        """Per value its group."""
        return {value: i for i, group in enumerate(self.layout.groups) for value in group.values}
