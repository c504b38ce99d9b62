"""A rule: patterns, the function that replaces what they fit, and what the driver guarantees about it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite.pattern import EMPTY, Match, OpPattern, match_op


class NoMatch(Exception):
    """Raised by a rule to decline a match; the reason is counted and shown on request.

    Args:
        why: A few words, the same for the same reason.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Rule:
    """A rewrite rule; made by the decorator `rewrite`.

    Args:
        roots: One pattern per value that is replaced.
        replace: Builds the replacement.
        name: Name in statistics, kebab case.
    """

    def __init__(self, roots: tuple[OpPattern, ...], replace: Callable[..., Any], name: str) -> None:
        self.roots = roots
        self.replace = replace
        self.name = name
        self.captures: dict[str, str] = {}
        for root in roots:
            self.captures |= root.captures()
        self.parameters = [] if not _has_signature(replace) else _check_signature(self, replace)

    def matches(self, op: Op) -> Iterator[Match]:
        """Every way in which the rule fits with `op` as its first root."""
        for match in match_op(self.roots[0], op):
            yield from self._other_roots(self.roots[1:], match)

    def _other_roots(self, roots: tuple[OpPattern, ...], match: Match) -> Iterator[Match]:
        if not roots:
            yield match
            return
        values = [v for v in match.captures.values() if isinstance(v, Value)]
        values += [r for o in match.ops.values() for r in o.results]
        candidates = dict.fromkeys(user for v in values for user in v.users)
        for candidate in candidates:
            for found in match_op(roots[0], candidate, match):
                yield from self._other_roots(roots[1:], found)

    def apply(self, match: Match) -> list[Op]:
        """Put the replacement in; give the ops it made.

        Raises:
            NoMatch: the rule, or a guarantee, declines; nothing has changed.
            InternalError: the rule returned something of another type than what it replaces.
        """
        roots = [match.ops[r.base] for r in self.roots]
        graph = _check_shape(match, roots, {match.ops[p] for p in match.ops if p.keep})
        place = _place(graph, roots)
        loc = roots[0].loc.union(*(o.loc for o in match.ops.values()), rule=self.name)
        builder = Builder(graph, before=place, loc=loc)
        imports = dict(graph.info.opset_imports) if graph.root.model is not None else {}
        try:
            given = self.replace(builder, **{p: match.captures[p] for p in self.parameters})
            new = self._checked(given, roots)
        except NoMatch:
            _undo(builder.made)
            if graph.root.model is not None:
                graph.info.opset_imports.clear()
                graph.info.opset_imports.update(imports)
            raise
        made = {r for o in builder.made for r in o.results}
        for root_pattern, value in zip(self.roots, new, strict=True):
            old = match.ops[root_pattern.base].results[root_pattern.index]
            if value.type is None or (isinstance(value.type, TensorType) and value.type.shape is None):
                value.type = old.type
            old.replace_by(value)
            if value in made:
                value.name, old.name = old.name, value.name
        _erase_unused(list(match.ops.values()))
        return [o for o in builder.made if o.graph is not None]

    def _checked(self, given: Any, roots: list[Op]) -> tuple[Value, ...]:
        new = given if isinstance(given, tuple) else (given,)
        if len(new) != len(roots) or not all(isinstance(v, Value) for v in new):
            raise InternalError(f"rule {self.name} must return {len(roots)} value(s), it returned {given!r}")
        for pattern, root, value in zip(self.roots, roots, new, strict=True):
            if not _compatible(root.results[pattern.index], value):
                raise InternalError(
                    f"rule {self.name} replaces %{root.results[pattern.index].name}, of type "
                    f"{root.results[pattern.index].type}, by one of type {value.type}"
                )
        return new

    def __repr__(self) -> str:
        return f"<Rule {self.name}>"


def rewrite(*roots: OpPattern, name: str = "") -> Callable[[Callable[..., Any]], Rule]:
    """Make a rule of the function below; see `memoptc.rewrite` for an example.

    Args:
        roots: The pattern whose result the function's value replaces; several patterns, that may share
            parts, when it gives a tuple of values.
        name: Name in statistics; the function's when not given.
    """

    def decorate(function: Callable[..., Any]) -> Rule:
        return Rule(roots, function, name or function.__name__.replace("_", "-"))

    return decorate


def _has_signature(function: Callable[..., Any]) -> bool:
    return not getattr(function, "takes_all_captures", False)


def _check_signature(rule: Rule, function: Callable[..., Any]) -> list[str]:
    """Check parameter names and annotations against what the pattern captures."""
    parameters = list(inspect.signature(function).parameters.values())
    hints: dict[str, Any] = {}
    try:
        hints = typing.get_type_hints(function, {**function.__globals__, "Value": Value, "Op": Op, "Builder": Builder})
    except NameError:
        hints = {}
    names = [p.name for p in parameters[1:]]
    for name in names:
        if name not in rule.captures:
            known = ", ".join(rule.captures) or "nothing"
            raise TypeError(f"rule {rule.name}: its pattern captures no {name!r}; it captures {known}")
        hint = hints.get(name)
        kind = rule.captures[name]
        wanted = {"op": Op, "value": Value}.get(kind)
        if hint is not None and wanted is not None and hint is not wanted:
            raise TypeError(f"rule {rule.name}: {name!r} is bound to a {wanted.__name__}, not {hint}")
    for name in rule.captures:
        if name not in names and not name.startswith("_"):
            raise TypeError(f"rule {rule.name}: capture {name!r} is not used; call it '_{name}' if that is meant")
    return names


def _check_shape(match: Match, roots: list[Op], kept: set[Op]) -> Graph:
    """The matched ops lie in one graph, and nothing outside uses what goes away."""
    graph = roots[0].graph
    if graph is None:
        raise NoMatch("no longer in the graph")
    inside = set(match.ops.values())
    for op in inside:
        if op.graph is not graph:
            raise NoMatch("crosses a subgraph")
        if op in kept:
            continue
        for result in op.results:
            outside = [u for u in result.users if u not in inside]
            if outside and op not in roots:
                raise NoMatch("an inner result has other users")
            if outside and op in roots and not _is_root_result(match, op, result.index):
                raise NoMatch("another result of the root has users")
    return graph


def _is_root_result(match: Match, op: Op, index: int) -> bool:
    return index == 0 or any(p.index == index and match.ops.get(p.base) is op for p in match.ops)


def _place(graph: Graph, roots: list[Op]) -> Op:
    """The last root in order, provided that nothing between the roots uses what they give."""
    if len(roots) == 1:
        return roots[0]
    waiting = set(roots)
    first = None
    for op in graph.ops:
        if op in waiting:
            waiting.remove(op)
            first = first or op
            if not waiting:
                return op
        elif first is not None:
            uses = {v.op for v in op.operands} | {v.op for r in op.regions.values() for v in r.captures()}
            if any(r in uses for r in roots):
                raise NoMatch("a result is used between the roots")
    raise NoMatch("no place for the replacement")


def _undo(made: list[Op]) -> None:
    for op in reversed(made):
        if op.graph is not None and not any(r.has_uses for r in op.results):
            op.erase()


def _erase_unused(matched: list[Op]) -> None:
    """Roots come first in a match, what they use later, so one sweep is enough for chains."""
    pending = list(matched)
    progress = True
    while progress:
        progress = False
        for op in list(pending):
            if not any(r.has_uses for r in op.results):
                op.erase()
                pending.remove(op)
                progress = True


def _compatible(old: Value, new: Value) -> bool:
    if old.type is None or new.type is None:
        return True
    if not isinstance(old.type, TensorType) or not isinstance(new.type, TensorType):
        return type(old.type) is type(new.type)
    if DType.UNDEFINED not in (old.type.dtype, new.type.dtype) and old.type.dtype != new.type.dtype:
        return False
    if old.type.shape is None or new.type.shape is None:
        return True
    if len(old.type.shape) != len(new.type.shape):
        return False
    pairs = zip(old.type.shape, new.type.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


__all__ = ["EMPTY", "NoMatch", "Rule", "rewrite"]
