"""Patterns: what a piece of graph must look like, written the way the graph reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.ir.ops.nearest import unknown_operator

Captures: TypeAlias = "dict[str, Value | Op | tuple[Value, ...] | None]"


class NoMatch(Exception):
    """Raised by a rule to decline a match; the reason is counted and shown on request.

    Args:
        why: A few words, the same for the same reason.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class Any_:
    """Any value; the same name twice means the same value."""

    name: str


@dataclass(frozen=True)
class Optional_:
    """An optional operand: any value, or `None` when it is not given."""

    name: str


@dataclass(frozen=True)
class Rest:
    """All remaining operands, none included, as a tuple."""

    name: str


@dataclass(frozen=True)
class Const:
    """A constant: any one under a name, or one whose every element is `value`."""

    name: str = ""
    value: float | None = None

    def accepts(self, value: Value) -> bool:
        """True if the value is such a constant."""
        tensor = value.tensor
        if tensor is None:
            return False
        if self.value is None:
            return True
        if not 0 < tensor.size <= 1 << 16:
            return False
        array = tensor.numpy()
        if array.dtype.kind not in "fiub":  # bfloat16 and other narrow floats, or text
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError):
                return False
        return bool((array == self.value).all())


@dataclass(frozen=True, eq=False)
class OpPattern:
    """An op of one of several operators, with patterns for its operands.

    As an operand of another pattern it stands for its result `index`. The same object used twice is the
    same op twice, so that patterns are graphs, not only trees.

    Args:
        keys: Operators (`Conv`, `com.microsoft::Gelu`); empty means any operator.
        operands: One pattern per operand; a `Rest` takes what is left.
        bind: Name under which the rule gets the op.
        attrs: Attribute name -> required value (the schema's default counts), or a test.
        keep: The op may have users outside the match, and then stays.
        index: Which result.
        whole: The pattern that this one gives another result of.
    """

    keys: tuple[str, ...]
    operands: tuple[Operand, ...] = ()
    bind: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    index: int = 0
    whole: OpPattern | None = None

    def out(self, index: int) -> OpPattern:
        """Give the same op's result `index` as an operand of another pattern."""
        return OpPattern(self.keys, index=index, whole=self.base)

    @property
    def base(self) -> OpPattern:
        """The pattern of the op itself."""
        return self.whole or self

    @property
    def depth(self) -> int:
        """Number of ops on the longest path from the root down to a leaf."""
        return 1 + max((o.depth for o in self.base.operands if isinstance(o, OpPattern)), default=0)

    def parts(self) -> Iterator[OpPattern]:
        """The pattern itself and those of ops below it."""
        yield self.base
        for operand in self.base.operands:
            if isinstance(operand, OpPattern):
                yield from operand.parts()

    def __str__(self) -> str:
        return "|".join(self.base.keys) or "any()"

    def captures(self) -> dict[str, str]:
        """Names that a match binds -> kind (`value`, `optional`, `rest` or `op`)."""
        found: dict[str, str] = {}
        if self.whole is not None:
            return self.whole.captures()
        if self.bind:
            found[self.bind] = "op"
        for operand in self.operands:
            match operand:
                case OpPattern():
                    found |= operand.captures()
                case Any_() | Const() if operand.name:
                    found[operand.name] = "value"
                case Optional_():
                    found[operand.name] = "optional"
                case Rest():
                    found[operand.name] = "rest"
        return found


Operand: TypeAlias = Any_ | Optional_ | Rest | Const | OpPattern


def opt(name: str) -> Optional_:
    """An optional operand."""
    return Optional_(name)


def rest(name: str) -> Rest:
    """All remaining operands."""
    return Rest(name)


def const(what: str | float) -> Const:
    """A constant: `const("w")` any, bound to a name; `const(0.0)` one whose every element is 0."""
    return Const(name=what) if isinstance(what, str) else Const(value=float(what))


class _Maker:
    """`op.Conv("x", "w", bind="conv")`; `op.any("Relu", "Gelu")("x")`; `op.domain("com.microsoft").Gelu("x")`."""

    def __init__(self, domain: str | None = None) -> None:
        self._domain = domain

    def domain(self, domain: str) -> _Maker:
        """Give the maker for operators of another domain."""
        return _Maker(domain)

    def any(self, *names: str) -> Callable[..., OpPattern]:
        """Give a maker for a choice of operators; of any operator when no name is given."""
        keys = tuple(self._key(n) for n in names)

        def make(
            *operands: Any, bind: str = "", attrs: Mapping[str, Any] | None = None, keep: bool = False
        ) -> OpPattern:
            patterns = tuple(map(_operand, operands))
            if any(isinstance(p, Rest) for p in patterns[:-1]):
                raise TypeError("only the last operand can be rest()")
            return OpPattern(keys, patterns, bind, dict(attrs or {}), keep)

        return make

    def __getattr__(self, name: str) -> Callable[..., OpPattern]:
        if not name[:1].isupper():
            raise AttributeError(f"{name!r} is no operator: operator names start with a capital letter")
        return self.any(name)

    def _key(self, name: str) -> str:
        return name if "::" in name else key_of(name, self._domain)


def key_of(name: str, domain: str | None = None) -> str:
    """Spell an operator as `Op.key` does; without a domain, it must be one of ONNX's or onnxruntime's own.

    Raises:
        AttributeError: neither has it.
    """
    if domain is None:
        domain = ops.domain_of(name)
        if fault := unknown_operator(name):
            raise AttributeError(fault)
    return f"{domain}::{name}" if domain else name


op = _Maker()


def _operand(given: Any) -> Operand:
    match given:
        case str():
            return Any_(given)
        case Any_() | Optional_() | Rest() | Const() | OpPattern():
            return given
        case int() | float():
            return const(float(given))
        case _:
            raise TypeError(f"{given!r} is no pattern: use a name, a number, opt(), rest(), const() or op.X(...)")


@dataclass(frozen=True)
class Match:
    """A place where a pattern fits.

    Args:
        ops: Which op each op pattern stands for.
        captures: What the names stand for.
    """

    ops: Mapping[OpPattern, Op]
    captures: Captures


EMPTY = Match({}, {})


def match_op(pattern: OpPattern, op: Op, match: Match = EMPTY) -> Iterator[Match]:
    """Give every way in which the pattern fits this op; more than one where operands may be exchanged."""
    pattern = pattern.base
    if pattern in match.ops:
        if match.ops[pattern] is op:
            yield match
        return
    if (pattern.keys and op.key not in pattern.keys) or op in match.ops.values() or not _attrs_fit(pattern, op):
        return
    captures = dict(match.captures)
    if pattern.bind:
        if captures.get(pattern.bind, op) is not op:
            return
        captures[pattern.bind] = op
    started = Match({**match.ops, pattern: op}, captures)
    operands = op.operands
    yield from _operands(pattern.operands, operands, started)
    if len(operands) >= 2 and ops.facts(op).commutative and operands[0] is not operands[1]:
        yield from _operands(pattern.operands, (operands[1], operands[0], *operands[2:]), started)


def _attrs_fit(pattern: OpPattern, op: Op) -> bool:
    for name, wanted in pattern.attrs.items():
        value = ops.default_of(op, name)
        if isinstance(value, list):
            value = tuple(value)
        if callable(wanted):
            if not wanted(value):
                return False
        elif not same_plain(value, tuple(wanted) if isinstance(wanted, list) else wanted):
            return False
    return True


def same_plain(a: Any, b: Any) -> bool:
    """True if two plain values are equal; floats as float32, which is what ONNX keeps of an attribute."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same_plain(i, j) for i, j in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, int | float):
        with np.errstate(over="ignore"):
            return bool(np.float32(a) == np.float32(b))
    return bool(a == b)


def _operands(patterns: tuple[Operand, ...], values: tuple[Value, ...], match: Match) -> Iterator[Match]:
    if not patterns:
        if all(v.is_absent for v in values):
            yield match
        return
    first, *others = patterns
    if isinstance(first, Rest):
        yield from _bind(match, first.name, values)
        return
    value = values[0] if values and not values[0].is_absent else None
    for found in _operand_matches(first, value, match):
        yield from _operands(tuple(others), values[1:], found)


def _operand_matches(pattern: Operand, value: Value | None, match: Match) -> Iterator[Match]:
    if isinstance(pattern, Optional_):
        yield from _bind(match, pattern.name, value)
        return
    if value is None:
        return
    match pattern:
        case Any_():
            yield from _bind(match, pattern.name, value)
        case Const():
            if pattern.accepts(value):
                if pattern.name:
                    yield from _bind(match, pattern.name, value)
                else:
                    yield match
        case OpPattern():
            if value.op is not None and value.index == pattern.index:
                yield from match_op(pattern, value.op, match)


def _bind(match: Match, name: str, value: Any) -> Iterator[Match]:
    missing = object()
    held: Any = match.captures.get(name, missing)
    if held is missing:
        yield Match(match.ops, {**match.captures, name: value})
    elif held is value or (isinstance(value, tuple) and held == value):
        yield match
