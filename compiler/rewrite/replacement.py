"""Replacements of rule files: building the ops that take the place of a match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Sym
from memoptc.ir.types import DType
from memoptc.rewrite.pattern import NoMatch, OpPattern
from memoptc.rewrite.predicates import PREDICATES, calculate, compare
from memoptc.rewrite.syntax import (
    Arithmetic,
    Computed,
    Condition,
    Expression,
    Listed,
    Literal,
    Made,
    Ref,
    RuleText,
)

Bindings = dict[str, Any]
DTYPES = {d.short_name(): d for d in DType if d != DType.UNDEFINED}
"""Element types by the names that a rule file has for them."""


class Replacement:
    """The function of a rule: asks its conditions, then builds."""

    def __init__(self, rule: RuleText, results: Mapping[str, OpPattern], roots: Sequence[str]) -> None:
        self.source, self.roots = rule, list(roots)
        self.results = {name: (p.base.bind, p.index) for name, p in results.items()}

    def __call__(self, b: Builder, /, **captures: Any) -> tuple[Value, ...]:
        """Make what replaces the roots of a match.

        Raises:
            NoMatch: a condition does not hold.
        """
        bindings: Bindings = dict(captures)
        for name, (bind, index) in self.results.items():
            if index >= len(captures[bind].results):
                raise NoMatch("too few results")
            bindings[name] = captures[bind].results[index]
        matched = dict(bindings)
        for condition in self.source.where:
            if not _holds(condition, matched):
                raise NoMatch(f"not: {condition.text}")
        for replacement in self.source.replace:
            if isinstance(replacement.source, Made):
                values = self._build(b, replacement.source, len(replacement.results), bindings, matched)
            else:
                values = (bindings[Ref(replacement.source).name],)
            if any(v is None for v in values):
                raise NoMatch("an operand is not given")
            for token, value in zip(replacement.results, values, strict=False):
                bindings[Ref(token).name] = value
        return tuple(bindings[name] for name in self.roots)

    def _build(self, b: Builder, made: Made, outputs: int, bindings: Bindings, matched: Bindings) -> tuple[Value, ...]:
        operands: list[Any] = []
        for operand in made.operands:
            if isinstance(operand, Ref) and operand.kind == "rest":
                operands.extend(v if not v.is_absent else None for v in bindings[operand.name])
            else:
                operands.append(bindings[operand.name] if isinstance(operand, Ref) else operand)
        like = next((v for v in operands if isinstance(v, Value)), None)
        operands = [_made(b, o, like, bindings | matched) for o in operands]
        attrs: dict[str, Any] = {}
        for token in made.spreads:
            attrs |= matched[self.results[Ref(token).name][0]].attrs
        for key, expression in made.attributes:
            value = _evaluate(expression, bindings | matched)
            if not _is_written(value):
                raise NoMatch(f"attribute {key} is not known")
            attrs[key] = value
        domain, separator, op_type = made.operator.rpartition("::")
        return b.op(op_type, operands, attrs, domain=domain if separator else None, outputs=outputs).results


def _is_written(value: Any) -> bool:
    """True for what an attribute can hold; unknown values and symbolic extents it cannot."""
    if isinstance(value, tuple | list):
        return all(map(_is_written, value))
    return value is not None and not isinstance(value, Sym)


def _made(b: Builder, operand: Any, like: Value | None, bindings: Bindings) -> Any:
    """Give an operand; a literal or computed one becomes a constant."""
    if isinstance(operand, Computed):
        content = _evaluate(operand.expression, bindings)
        if content is None:
            raise NoMatch("a constant cannot be computed")
        if operand.dtype is not None:
            return b.const(content, dtype=DTYPES[operand.dtype])
        return _constant(b, content, like)
    if isinstance(operand, Literal | Listed):
        return _constant(b, _evaluate(operand, bindings), like)
    return operand


def _constant(b: Builder, content: Any, like: Value | None) -> Value:
    if isinstance(content, tuple):
        if not all(isinstance(item, int) for item in content):
            raise NoMatch("a list of other things than integers")
        return b.const(np.asarray(content, np.int64))
    if like is None or like.dtype in (None, DType.UNDEFINED):
        raise NoMatch("the element type of a number is not known")
    return b.const(content, dtype=like.dtype)


def _holds(condition: Condition, bindings: Bindings) -> bool:
    found = _evaluate(condition.left, bindings)
    if condition.right is not None:
        found = compare(found, condition.comparison, _evaluate(condition.right, bindings))
    return found is not None and bool(found) != condition.negated


def _evaluate(expression: Expression, bindings: Bindings) -> Any:
    if isinstance(expression, Literal):
        return expression.value
    if isinstance(expression, Listed):
        return tuple(_evaluate(item, bindings) for item in expression.items)
    if isinstance(expression, Arithmetic):
        return calculate(_evaluate(expression.left, bindings), expression.sign, _evaluate(expression.right, bindings))
    found = PREDICATES[expression.name]
    arguments: list[Any] = []
    for argument, kind in zip(expression.arguments, found.kinds, strict=False):
        if isinstance(argument, Ref):
            value = bindings[argument.name]
            if isinstance(value, tuple) or (value is None and expression.name != "given"):
                return None
            arguments.append(value.op if kind is Op else value)
        else:
            arguments.append(_evaluate(argument, bindings))
    return found.function(*arguments)
