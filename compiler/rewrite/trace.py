"""Explain near-misses of rules: for each op at which one might match, the part of the pattern that is not there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.rewrite.pattern import EMPTY, Any_, Const, Match, Operand, OpPattern, Optional_, Rest, match_op, same_plain
from memoptc.rewrite.rule import Rule


@dataclass(frozen=True)
class Mismatch:
    """The reason why one rule does not match at one op.

    Args:
        rule: Its name.
        op: The op that is of the operator that the pattern begins with.
        why: What is missing, with the node at which it is.
    """

    rule: str
    op: Op
    why: str

    @property
    def kind(self) -> str:
        """The reason without names of nodes: what two ops that lack the same have in common."""
        return re.sub(r" %\S+| \([^)]*\)", "", self.why)

    def __str__(self) -> str:
        return f"{self.rule} at {called(self.op)}: {self.why}"


class Trace:
    """Collects why rules do not fit.

    Args:
        rules: Names of the rules to look at; all when empty.
    """

    def __init__(self, rules: Collection[str] = ()) -> None:
        self._names = frozenset(rules)
        self._found: dict[tuple[str, Op], Mismatch] = {}
        self._kept: list[Mismatch] = []
        self.seen: set[str] = set()
        """Names of all rules that ran."""

    def of(self, rules: Sequence[Rule]) -> Trace:
        """Begin with the rules of a pass; of a rule that runs several times, the last time counts."""
        self._keep()
        names = {rule.name for rule in rules}
        self._kept = [m for m in self._kept if m.rule not in names]
        self.seen |= names
        return self

    def restart(self) -> None:
        """Forget what was found since `of`: the graph has changed."""
        self._found.clear()

    def declined(self, rule: Rule, op: Op, why: str) -> None:
        """Note that the pattern fits, and the rule, or what the driver guarantees, declined."""
        if self._wanted(rule):
            self._found[rule.name, op] = Mismatch(rule.name, op, f"declined: {why}")

    def mismatched(self, rule: Rule, op: Op) -> None:
        """Note that the pattern does not fit."""
        if self._wanted(rule) and (why := explain(rule, op)):
            self._found[rule.name, op] = Mismatch(rule.name, op, why)

    def mismatches(self) -> list[Mismatch]:
        """Give what held when each rule ran last, in order."""
        self._keep()
        return self._kept

    def _wanted(self, rule: Rule) -> bool:
        return not self._names or rule.name in self._names

    def _keep(self) -> None:
        # Ops may be gone or changed by the time that somebody reads this, but keep their names.
        self._kept += self._found.values()
        self._found.clear()


def explain(rule: Rule, op: Op) -> str:
    """Say why a rule's pattern does not fit at an op; `""` when it does, or the op is of another operator."""
    first = rule.roots[0].base
    if first.keys and op.key not in first.keys:
        return ""
    matches = list(match_op(first, op))
    if matches:
        return "" if len(rule.roots) == 1 else "the other results that it replaces are not there"
    return max(_reasons(first, op, EMPTY, 0), key=lambda r: r.depth, default=_Reason(0, "it does not fit")).why


@dataclass(frozen=True)
class _Reason:
    """Something that is missing, and how many parts of the pattern fit before it."""

    depth: int
    why: str


def _reasons(pattern: OpPattern, op: Op, match: Match, depth: int) -> Iterator[_Reason]:
    """Say what is missing for each order of operands; nothing where the pattern fits."""
    pattern = pattern.base
    if pattern in match.ops:
        if match.ops[pattern] is not op:
            yield _Reason(depth, f"{called(op)} is not the same op as {called(match.ops[pattern])}")
        return
    if pattern.keys and op.key not in pattern.keys:
        yield _Reason(depth, f"{called(op)} is no {' or '.join(pattern.keys)}")
        return
    for name, wanted in pattern.attrs.items():
        value = ops.default_of(op, name)
        value = tuple(value) if isinstance(value, list) else value
        if callable(wanted):
            if not wanted(value):
                yield _Reason(depth + 1, f"attribute {name} of {called(op)} is {value!r}, which its test refuses")
                return
        elif not same_plain(value, tuple(wanted) if isinstance(wanted, list) else wanted):
            yield _Reason(depth + 1, f"attribute {name} of {called(op)} is {value!r}, not {wanted!r}")
            return
    started = replace(match, ops={**match.ops, pattern: op})
    orders: list[tuple[Value, ...]] = [op.operands]
    if len(op.operands) >= 2 and ops.facts(op).commutative:
        orders.append((op.operands[1], op.operands[0], *op.operands[2:]))
    for values in orders:
        yield from _operand_reasons(pattern, op, values, started, depth + 1)


def _operand_reasons(
    pattern: OpPattern, op: Op, values: Sequence[Value], match: Match, depth: int
) -> Iterator[_Reason]:  # fmt: skip
    for index, operand in enumerate(pattern.operands):
        if isinstance(operand, Rest):
            return
        value = values[index] if index < len(values) and not values[index].is_absent else None
        if value is None:
            if isinstance(operand, Optional_):
                continue
            yield _Reason(depth, f"{called(op)} has no operand {index}")
            return
        why = list(_value_reasons(operand, value, f"operand {index} of {called(op)}", match, depth))
        if why:
            yield from why
            return
        # What fits counts, whichever way: this only tells people where to look.
        for found in match_op(operand, value.op, match) if isinstance(operand, OpPattern) and value.op else ():
            match = found
            break
        name = getattr(operand, "name", "")
        if name:
            match = replace(match, captures={**match.captures, name: value})
        depth += 1
    left = [v for v in values[len(pattern.operands) :] if not v.is_absent]
    if left:
        yield _Reason(depth, f"{called(op)} has {len(left)} more operands than the pattern; write `rest(...)` for them")


def _value_reasons(operand: Operand, value: Value, where: str, match: Match, depth: int) -> Iterator[_Reason]:
    match operand:
        case Any_(name) | Optional_(name):
            held: Any = match.captures.get(name, value)
            if held is not value:
                yield _Reason(depth, f"{where} is %{value.name}, not %{getattr(held, 'name', held)} again ({name})")
        case Const(_, content):
            if value.tensor is None:
                yield _Reason(depth, f"{where}, %{value.name}, is no constant")
            elif not operand.accepts(value):
                yield _Reason(depth, f"{where}, %{value.name}, is not {content:g} in every element")
        case OpPattern():
            wanted = " or ".join(operand.base.keys) or "the result of an operator"
            if value.op is None:
                yield _Reason(depth, f"{where} is the input %{value.name}, not {wanted}")
            elif operand.base.keys and value.op.key not in operand.base.keys:
                yield _Reason(depth, f"{where} comes from {called(value.op)}, not from {wanted}")
            elif value.index != operand.index:
                yield _Reason(depth, f"{where} is result {value.index} of {called(value.op)}, not {operand.index}")
            else:
                yield from _all_fail(operand, value.op, match, depth + 1)


def _all_fail(operand: OpPattern, op: Op, match: Match, depth: int) -> Iterator[_Reason]:
    """Say why an inner op does not fit; nothing where it does in one of the orders of its operands."""
    if next(match_op(operand, op, match), None) is None:
        yield max(_reasons(operand, op, match, depth), key=lambda r: r.depth, default=_Reason(depth, ""))


def called(op: Op) -> str:
    """Call an op by operator, first result, and the name of its node where it has one."""
    result = f" %{op.results[0].name}" if op.results else ""
    node = f" ({op.name})" if op.name and (not op.results or op.name != op.results[0].name) else ""
    return f"{op.key}{result}{node}"


__all__ = ["Mismatch", "Trace", "called", "explain"]
