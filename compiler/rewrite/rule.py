"""A rule: patterns, and the function that replaces what they fit."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.ops import weight_layout
from memoptc.rewrite.guard import Snapshot, check_outside_users, find_place, fits_type, refine_type
from memoptc.rewrite.pattern import Match, NoMatch, Operand, OpPattern, match_op

_HINTS = {"op": Op, "value": Value}


class Rule:
    """A rewrite rule; made by the decorator `rewrite`.

    Args:
        roots: One pattern per value that is replaced.
        replace: Builds the replacement.
        name: Name in statistics, kebab case.
        parameters: Captures that `replace` is called with; those it has parameters for when `None`.

    Raises:
        TypeError: names or annotations of `replace` do not agree with the patterns, or the patterns share nothing.
    """

    def __init__(
        self,
        roots: tuple[OpPattern, ...],
        replace: Callable[..., Any],
        name: str,
        parameters: Iterable[str] | None = None,
    ) -> None:
        self.roots = roots
        self.replace = replace
        self.name = name
        self.captures: dict[str, str] = {}
        for root in roots:
            self.captures |= root.captures()
        self.depth = max(root.depth for root in roots)
        self._paths = [_path_to_known(root, roots[:i]) for i, root in enumerate(roots)]
        for path, root in zip(self._paths[1:], roots[1:], strict=True):
            if path is None:
                raise TypeError(f"rule {name}: its pattern {root} shares nothing with the others")
        self.parameters = _check_signature(self, replace) if parameters is None else list(parameters)

    def matches(self, op: Op) -> Iterator[Match]:
        """Every way in which the rule fits with `op` as its first root."""
        for match in match_op(self.roots[0], op):
            yield from self._other_roots(1, match)

    def _other_roots(self, index: int, match: Match) -> Iterator[Match]:
        if index == len(self.roots):
            yield match
            return
        for candidate in _climb(self.roots[index], self._paths[index] or (), match):
            for found in match_op(self.roots[index], candidate, match):
                yield from self._other_roots(index + 1, found)

    def apply(self, match: Match) -> list[Op]:
        """Put the replacement in; give the ops it made.

        Raises:
            NoMatch: the rule, or a guarantee, declines; nothing has changed.
            InternalError: the rule broke its promise (another element type, a change before a decline).
        """
        old = [match.ops[p.base].results[p.index] for p in self.roots]
        graph = check_outside_users(match, old)
        place = find_place(graph, match, old)
        before = Snapshot(graph, match)
        matched = list(match.ops.values())
        builder = Builder(graph, before=place, loc=matched[0].loc.union(*(o.loc for o in matched), rule=self.name))
        try:
            new = self._checked(self.replace(builder, **{p: match.captures[p] for p in self.parameters}), old)
            fits_type(self.name, old, new)
        except NoMatch as e:
            before.restore(builder.made, f"rule {self.name} declined ({e.why})")
            raise
        made = {r for o in builder.made for r in o.results}
        for was, value in zip(old, new, strict=True):
            if any(u in builder.made for u in was.users if u.graph is not None):
                raise InternalError(f"rule {self.name} builds on %{was.name}, which it is to replace")
            refine_type(value, was, fresh=value in made)
            was.replace_by(value)
            if value in made:
                value.name, was.name = was.name, value.name
        weighted = [o for o in matched if o.name and weight_layout(o) is not None]
        _erase_unused(matched)
        left = [o for o in builder.made if o.graph is not None]
        _keep_name(weighted, left)
        return left

    def _checked(self, given: Any, old: list[Value]) -> tuple[Value, ...]:
        new = given if isinstance(given, tuple) else (given,)
        if len(new) != len(old) or not all(isinstance(v, Value) for v in new):
            raise InternalError(f"rule {self.name} must return {len(old)} value(s), it returned {given!r}")
        return new

    def __repr__(self) -> str:
        return f"<Rule {self.name}>"


def _keep_name(before: list[Op], after: list[Op]) -> None:
    """Call a product or convolution as the one whose place it takes: users exclude it by that name, reports have it."""
    made = [o for o in after if weight_layout(o) is not None]
    if len(before) == len(made) == 1 and before[0].graph is None and not made[0].name:
        made[0].name = before[0].name


def rewrite(*roots: OpPattern, name: str = "") -> Callable[[Callable[..., Any]], Rule]:
    """Make a rule of the function below; see `memoptc.rewrite` for an example.

    Args:
        roots: The pattern whose result the function's value replaces; several patterns, that share parts, when it
            gives a tuple of values.
        name: Name in statistics; the function's when not given.
    """

    def decorate(function: Callable[..., Any]) -> Rule:
        return Rule(roots, function, name or function.__name__.replace("_", "-"))

    return decorate


def _check_signature(rule: Rule, function: Callable[..., Any]) -> list[str]:
    """Check parameter names and annotations against what the patterns capture."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    names = [p.name for p in parameters]
    for parameter in parameters:
        name = parameter.name
        if name not in rule.captures:
            known = ", ".join(rule.captures) or "nothing"
            raise TypeError(f"rule {rule.name}: its pattern captures no {name!r}; it captures {known}")
        _check_hint(rule, name, _evaluated(parameter.annotation, function))
    for name in rule.captures:
        if name not in names and not name.startswith("_"):
            raise TypeError(f"rule {rule.name}: capture {name!r} is not used; call it '_{name}' if that is meant")
    return names


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    """Evaluate an annotation; `None` when there is none, or names are not known where it stands."""
    if annotation is inspect.Parameter.empty:
        return None
    if isinstance(annotation, str):
        try:
            return eval(annotation, {**function.__globals__, "Value": Value, "Op": Op})
        except NameError:
            return None
    return annotation


def _check_hint(rule: Rule, name: str, hint: Any) -> None:
    kind = rule.captures[name]
    if hint is None or hint is Any:
        return
    if kind == "optional":
        fits = isinstance(hint, types.UnionType) and set(typing.get_args(hint)) == {Value, type(None)}
        wanted = "Value | None"
    elif kind == "rest":
        fits, wanted = typing.get_origin(hint) is tuple, "tuple[Value, ...]"
    else:
        fits, wanted = hint is _HINTS[kind], _HINTS[kind].__name__
    if not fits:
        raise TypeError(f"rule {rule.name}: {name!r} is bound to {wanted}, not {getattr(hint, '__name__', hint)}")


def _path_to_known(root: OpPattern, others: tuple[OpPattern, ...]) -> tuple[Operand, ...] | None:
    """The shortest way from a root down to something that the other roots bind, the root itself left out."""
    known_ops = {p for other in others for p in other.parts()}
    names = {n for other in others for n in other.captures()}
    level: list[tuple[Operand, ...]] = [(root,)]
    while level:
        for path in level:
            last = path[-1]
            if (last.base in known_ops) if isinstance(last, OpPattern) else getattr(last, "name", "") in names:
                return path[1:]
        level = [
            (*path, operand) for path in level if isinstance(path[-1], OpPattern) for operand in path[-1].base.operands
        ]
    return None


def _climb(root: OpPattern, path: tuple[Operand, ...], match: Match) -> list[Op]:
    """The ops that may be the root, found by going up from the known end of the path through the users."""
    if not path:
        return [match.ops[root.base]]
    end = path[-1]
    known = match.ops[end.base].results[end.index] if isinstance(end, OpPattern) else match.captures[end.name]
    values: list[Value] = [known] if isinstance(known, Value) else []
    for _ in path[1:]:
        values = [r for v in values for u in v.users for r in u.results]
    return list(dict.fromkeys(u for v in values for u in v.users))


def _erase_unused(matched: list[Op]) -> None:
    """Erase what nothing uses any more; users before what they use."""
    pending = matched
    while True:
        left = [o for o in pending if any(r.has_uses for r in o.results)]
        for op in pending:
            if op not in left:
                op.erase()
        if len(left) == len(pending):
            return
        pending = left
