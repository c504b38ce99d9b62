"""plan-memory: place every activation in one arena, and check the placement."""

from __future__ import annotations

import json
from typing import ClassVar

from memoptc.ir.core import Graph
from memoptc.pass_base import Context, Pass
from memoptc.report.model import Decision
from memoptc.runtime.configuration import planned
from memoptc.runtime.memory.allocate import allocate


class PlanMemory(Pass):
    """Plan the arena for the graph's own order, under the sizes at hand.

    The plan goes to `context.artefacts.plan`, its summary into the model's metadata (`memoptc.plan`). The
    graph itself does not change.
    """

    kept: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        """Find live ranges, allocate, check, note."""
        found = planned(graph, context.dims)
        plan = allocate(found.problem)
        context.artefacts.plan = plan
        context.stats["buffers"] = len(found.storages)
        context.stats["arena bytes"] = plan.arena_bytes
        context.stats["floor bytes"] = plan.floor
        if found.unknown:
            context.stats["sizes unknown"] = len(found.unknown)
        summary = {
            "arena_bytes": plan.arena_bytes,
            "floor_bytes": plan.floor,
            "dims": dict(sorted(context.dims.items())),
            "digest": plan.digest,
        }
        if graph.model is not None:
            graph.model.metadata["memoptc.plan"] = json.dumps(summary, sort_keys=True)
        gap = plan.arena_bytes - plan.floor
        context.decisions.append(
            Decision(
                step=self.name,
                what=f"{len(found.storages)} buffers in {plan.arena_bytes} bytes ({plan.algorithm})",
                why="the smallest of the portfolio" if gap else "no placement needs less",
                gain_bytes=plan.problem.naive_sum - plan.arena_bytes,
            )
        )
