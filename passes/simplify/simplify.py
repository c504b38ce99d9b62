"""simplify: take out what does nothing and merge what goes together; no output bit changes."""

from __future__ import annotations

from collections import Counter

from memoptc.ir.core import Graph
from memoptc.pass_base import Context
from memoptc.passes.simplify._simplify import control, joins, layout, noops, scatter, shapes, states
from memoptc.rewrite import RulePass, apply_rules


class Simplify(RulePass):
    """Take out operations that do nothing, merge chains, and fold shape computations.

    Every rule keeps every bit of every output, for NaN, infinities, -0.0 and empty tensors too. What depends
    on an extent is done only where that extent is known, or known to be the same symbol.
    """

    rules = (*noops.RULES, *layout.RULES)

    def run(self, graph: Graph, context: Context) -> None:
        """Rules to a fixed point, constant conditions, shape computations; all again until nothing changes.

        Behind the rules, whose driver sees to it that they end, each step takes away an If, a Loop, an initial state,
        a ScatterND (which becomes a Concat), operands of a Concat that is taken apart, a Split of which parts are
        unused, or a computed target of a Reshape; no rule makes one of these, so rounds that change something end.
        """
        declined: Counter[str] = context.artefacts.declined
        version = -1
        while version != graph.version:
            version = graph.version
            apply_rules(graph, self.rules, context.stats, declined, context.artefacts.trace)
            control.simplify_control(graph, context.stats)
            states.drop_zero_states(graph, context.stats)
            scatter.simplify_scatter(graph, context.stats)
            joins.simplify_joins(graph, context.stats)
            shapes.simplify_shapes(graph, context)
