"""The driver: applies a set of rules until none fits, with a work list, in near-linear time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from memoptc.exception_origin import defined_at, described, file_of
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.pass_base import Context, Pass
from memoptc.rewrite.limit import counted, exhausted
from memoptc.rewrite.pattern import Match, NoMatch
from memoptc.rewrite.rule import Rule
from memoptc.rewrite.trace import Trace

FAN_OUT = 64
"""Users of a value with more uses than this are not looked at again one by one, only in the next sweep."""

GROWTH = 100
"""The graph may become this many times as long (and 100,000 ops longer) before rules count as growing it for ever."""


class RulesWithoutEnd(InternalError):
    """Rules that undo each other, or go on making ops."""


class RuleFailed(InternalError):
    """The function of a rule raised, or broke a promise; the message names the rule, the node, and the line."""


class RulePass(Pass):
    """A pass made of rules: set `rules` in the subclass, and it applies them until none fits."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    examples: ClassVar[tuple[Any, ...]] = ()
    """Examples of a file of rules (`memoptc.rewrite.language.RuleExample`)."""

    def run(self, graph: Graph, context: Context) -> None:
        """Apply the rules; reasons why they declined go to `context.artefacts.declined`.

        A `Trace` in `context.artefacts.trace` learns why each rule does not fit where it might.
        """
        found = context.artefacts
        apply_rules(graph, self.rules, context.stats, found.declined, found.trace)


def apply_rules(
    graph: Graph,
    rules: Sequence[Rule],
    stats: Counter[str],
    declined: Counter[str] | None = None,
    trace: Trace | None = None,
) -> None:
    """Apply rules to a graph and everything inside it until none fits.

    After a rewrite, the ops around it are looked at again, as far up as patterns are deep. When nothing is left to
    look at, the whole graph is swept once more, until a sweep finds nothing: so the result is a fixed point.

    Args:
        graph: The graph.
        rules: Tried in this order at each op.
        stats: Counts rewrites by rule name.
        declined: Counts `rule: reason` for each match that was declined at the end.
        trace: Learns why rules do not fit at the end, op by op.

    Raises:
        RuleFailed: the function of a rule raised.
        RulesWithoutEnd: the rules go on for ever; the message names those that chase each other.
    """
    _Driver(graph, rules, stats, trace).run(declined)


class _Driver:
    """Work list and counters of one application of rules to a graph.

    Rules that go on for ever are recognised by generations: what a rewrite makes is one generation younger than
    the youngest op it took, unless it made fewer ops than it took. Moving an op past all others takes as many
    generations as there are ops, undoing each other takes any number. (Every endless sequence of rewrites reaches
    any generation: those that do not make younger ops shrink the finite number of ops as old.)
    """

    def __init__(self, graph: Graph, rules: Sequence[Rule], stats: Counter[str], trace: Trace | None) -> None:
        self.graph, self.stats = graph, stats
        self.trace = trace.of(rules) if trace is not None else None
        self.by_key: dict[str, list[Rule]] = {}
        anywhere = [r for r in rules if not r.roots[0].base.keys]
        for key in {k for r in rules for k in r.roots[0].base.keys}:
            self.by_key[key] = [r for r in rules if key in r.roots[0].base.keys or r in anywhere]
        self.anywhere = anywhere
        self.reach = max((r.depth for r in rules), default=1)
        self.work: deque[Op] = deque()
        self.queued: set[Op] = set()
        self.generation: dict[Op, int] = {}
        self.recent: deque[str] = deque(maxlen=20)
        self.declined: Counter[str] = Counter()
        self.size = sum(1 for _ in graph.walk())
        self.grown = 0

    def run(self, declined: Counter[str] | None) -> None:
        changed = True
        while changed:
            self.declined.clear()
            if self.trace is not None:
                self.trace.restart()
            self.queue(self.graph.walk())
            changed = self.drain()
        if declined is not None:
            declined.update(self.declined)

    def queue(self, ops: Iterable[Op]) -> None:
        for op in ops:
            if op not in self.queued and (self.anywhere or op.key in self.by_key) and not op.is_return:
                self.queued.add(op)
                self.work.append(op)

    def drain(self) -> bool:
        changed = False
        while self.work:
            op = self.work.popleft()
            self.queued.discard(op)
            if op.graph is None:
                continue
            for rule in self.by_key.get(op.key, self.anywhere):
                if self.try_rule(rule, op):
                    changed = True
                    break
        return changed

    def try_rule(self, rule: Rule, op: Op) -> bool:
        fits = False
        for match in rule.matches(op):
            if exhausted():
                return False
            fits = True
            place = f"{rule.name} at {op.key} %{op.results[0].name if op.results else ''}"
            around = _values_around(rule, match)
            try:
                made = rule.apply(match)
            except NoMatch as e:
                self.declined[f"{rule.name}: {e.why}"] += 1
                if self.trace is not None:
                    self.trace.declined(rule, op, e.why)
                continue
            except InternalError as e:
                raise RuleFailed(f"{e.message}{defined_at(rule.replace)}", e.hint) from e
            except Exception as e:
                raise RuleFailed(f"rule {place} failed: {described(e, file_of(rule.replace))}") from e
            counted(place)
            self.stats[rule.name] += 1
            self.watch(rule, match, made)
            self.queue(o for o in dict.fromkeys(self.near(around, made)) if o.graph is not None)
            return True
        if self.trace is not None and not fits:
            self.trace.mismatched(rule, op)
        return False

    def near(self, values: list[Value], made: list[Op]) -> Iterator[Op]:
        """The ops at which a rule may fit that did not before, in a fixed order."""
        yield from made
        values = values + [r for o in made for r in o.results]
        values += [r for o in made for v in o.operands if v.op is not None for r in v.op.results]
        yield from (v.op for v in values if v.op is not None and v.op.graph is not None)
        for _ in range(self.reach):
            users = dict.fromkeys(u for v in values if v.use_count <= FAN_OUT and not _is_weight(v) for u in v.users)
            yield from users
            values = [r for u in users for r in u.results]

    def watch(self, rule: Rule, match: Match, made: list[Op]) -> None:
        """Notice rules that go on for ever."""
        matched = list(match.ops.values())
        left = [o for o in matched if o.graph is not None]
        self.recent.append(rule.name)
        growth = len(made) - (len(matched) - len(left))
        self.grown += growth
        youngest = max(self.generation.get(o, 0) for o in matched) + (growth >= 0)
        for op in made or left:
            self.generation[op] = youngest
        for op in matched:
            if op.graph is None:
                self.generation.pop(op, None)
        if youngest > 2 * self.size + 200 or self.grown > GROWTH * self.size + 100_000:
            chasing = ", ".join(sorted(set(self.recent)))
            raise RulesWithoutEnd(f"these rules undo each other without end: {chasing}")


def _values_around(rule: Rule, match: Match) -> list[Value]:
    """The values a rewrite touches that outlive it: what the match uses, and what takes the place of its roots."""
    found = [v for o in match.ops.values() for v in o.operands]
    roots = [match.ops[p.base].results[p.index] for p in rule.roots]
    found += [r for v in roots for u in v.users for r in u.results]
    return [v for v in dict.fromkeys(found) if not _is_weight(v)]


def _is_weight(value: Value) -> bool:
    return value.op is not None and (value.op.is_const or value.is_absent)
