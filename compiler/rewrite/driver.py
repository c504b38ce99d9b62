"""The driver: applies a set of rules until none fits, with a work list, in near-linear time."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import ClassVar

from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import InternalError
from memoptc.pass_base import Context, Pass
from memoptc.rewrite.rule import NoMatch, Rule

REWRITES_PER_OP = 30

_limit: ContextVar[tuple[int, list[str]] | None] = ContextVar("memoptc_rewrite_limit", default=None)


@contextlib.contextmanager
def limit_rewrites(limit: int) -> Iterator[list[str]]:
    """Apply only the first `limit` rewrites inside; gives the list that describes each one as it happens."""
    applied: list[str] = []
    token = _limit.set((limit, applied))
    try:
        yield applied
    finally:
        _limit.reset(token)


class RulePass(Pass):
    """A pass made of rules: set `rules` in the subclass, and it applies them until none fits."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    def apply(self, graph: Graph, stats: Counter[str], context: Context) -> None:
        """Apply the rules; reasons why they declined go to `context.results["declined"]`."""
        declined: Counter[str] = context.results.setdefault("declined", Counter())
        apply_rules(graph, self.rules, stats, declined)

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        """Apply the rules."""
        apply_rules(graph, self.rules, stats)


def apply_rules(graph: Graph, rules: Sequence[Rule], stats: Counter[str], declined: Counter[str] | None = None) -> None:
    """Apply rules to a graph and everything inside it until none fits.

    Args:
        graph: The graph.
        rules: Tried in this order at each op.
        stats: Counts rewrites by rule name.
        declined: Counts `rule: reason` for each match that was declined.

    Raises:
        InternalError: the rules go on for ever; the message names those that chase each other.
    """
    by_key: dict[str, list[Rule]] = {}
    every: list[Rule] = []
    for rule in rules:
        keys = rule.roots[0].base.keys
        for key in keys:
            by_key.setdefault(key, []).append(rule)
        if not keys:
            every.append(rule)
    work = deque(op for op in graph.walk() if op.key in by_key or every)
    queued = set(work)
    budget = REWRITES_PER_OP * (len(work) + 100)
    recent: deque[str] = deque(maxlen=20)
    while work:
        op = work.popleft()
        queued.discard(op)
        if op.graph is None:
            continue
        for rule in (*by_key.get(op.key, ()), *every):
            touched = _try(rule, op, stats, declined)
            if touched is None:
                continue
            recent.append(rule.name)
            budget -= 1
            if budget < 0:
                chasing = ", ".join(sorted(set(recent)))
                raise InternalError(f"these rules undo each other without end: {chasing}")
            for other in touched:
                if other.graph is not None and other not in queued and not other.is_return:
                    queued.add(other)
                    work.append(other)
            break


def _try(rule: Rule, op: Op, stats: Counter[str], declined: Counter[str] | None) -> list[Op] | None:
    """Apply a rule at an op; give the ops whose surroundings changed, or `None`."""
    limit = _limit.get()
    if limit is not None and len(limit[1]) >= limit[0]:
        return None
    for match in rule.matches(op):
        around = {u for o in match.ops.values() for r in o.results for u in r.users}
        around |= {v.op for o in match.ops.values() for v in o.operands if v.op is not None}
        try:
            made = rule.apply(match)
        except NoMatch as e:
            if declined is not None:
                declined[f"{rule.name}: {e.why}"] += 1
            continue
        stats[rule.name] += 1
        if limit is not None:
            limit[1].append(f"{rule.name} at {op.key} {op.name or op.loc.nodes[:1]}")
        around |= set(made) | {u for o in made for r in o.results for u in r.users}
        return sorted((o for o in around if o.graph is not None), key=lambda o: o.results[0].name if o.results else "")
    return None
