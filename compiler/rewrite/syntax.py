"""The syntax of rules written as data: text to a tree of plain records that know their places."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput

from memoptc.ir.diagnostics import syntax_error

EXAMPLE = re.compile(r"^example[ \t]+([a-z][a-z0-9-]*)([ \t]+declines)?[ \t]*\{[ \t]*\n(.*?)^\}[ \t]*$", re.M | re.S)
"""An example of a rule: its name, whether it declines, a graph, and below `// ---- expect` what it becomes."""


@dataclass(frozen=True)
class Ref:
    """`%x`, or in a pattern `%x?` (kind `optional`), `const %x` (`const`), `...%x` or `...` (`rest`)."""

    token: Token
    kind: str = "value"

    @property
    def name(self) -> str:
        """The name without `%`; `...` for remaining operands without a name."""
        return self.token.removeprefix("%")


@dataclass(frozen=True)
class Literal:
    """A number, a string, a word (an attribute's name, an element type), or a list of such."""

    value: Any


@dataclass(frozen=True)
class Call:
    """`dtype(%x)`."""

    name: Token
    arguments: tuple[Expression | Ref, ...]


@dataclass(frozen=True)
class Arithmetic:
    """`left + right`, and `-`, `*`, `/`."""

    left: Expression
    sign: str
    right: Expression


@dataclass(frozen=True)
class Listed:
    """`[1, dim(%x, 0)]`: a list of which some items are computed."""

    items: tuple[Expression, ...]


@dataclass(frozen=True)
class Computed:
    """`const(value(%a) * 2, f32)`: an operand that is a computed constant; of the first operand's type if not said."""

    expression: Expression
    dtype: Token | None


Expression: TypeAlias = Call | Literal | Arithmetic | Listed


@dataclass(frozen=True)
class Statement:
    """`%c = Conv(%x, %w, ...) {group = 1}` in a pattern; no operators stand for any."""

    results: tuple[Token, ...]
    operators: tuple[Token, ...]
    operands: tuple[Ref | Literal, ...]
    tests: tuple[tuple[str, Any], ...]
    keep: bool


@dataclass(frozen=True)
class Condition:
    """`attr(%c, group) == 1`, and its text."""

    left: Expression
    comparison: str
    right: Expression | None
    negated: bool
    text: str


@dataclass(frozen=True)
class Made:
    """`FusedConv(%x, %w, ...) {activation = "Relu", ...%c}`; an operand of `None` is one that is not given."""

    operator: Token
    operands: tuple[Ref | Literal | Listed | Computed | None, ...]
    attributes: tuple[tuple[str, Expression], ...]
    spreads: tuple[Token, ...]


@dataclass(frozen=True)
class Replacement:
    """`%y = ...`."""

    results: tuple[Token, ...]
    source: Made | Token


@dataclass(frozen=True)
class RuleText:
    """One rule."""

    name: Token
    match: tuple[Statement, ...]
    where: tuple[Condition, ...]
    replace: tuple[Replacement, ...]


def read(text: str, file: str = "") -> tuple[RuleText, ...]:
    """Read a text of rules.

    Raises:
        SourceError: it is none; the message shows where.
    """
    lark = _lark()
    text = EXAMPLE.sub(lambda found: "\n" * found[0].count("\n"), text)  # what stands below stays at its lines
    try:
        tree = lark.parse(text)
    except UnexpectedInput as e:
        raise syntax_error(e, lark, text, file=file) from None
    rules: tuple[RuleText, ...] = _Reader(text).transform(tree)
    return rules


@cache
def _lark() -> Lark:
    grammar = resources.files("memoptc.rewrite").joinpath("rules.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", propagate_positions=True, maybe_placeholders=True)


@v_args(inline=True)
class _Reader(Transformer[Token, Any]):
    """Each method gets the children of the grammar rule of its name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def start(self, *rules: RuleText) -> tuple[RuleText, ...]:
        return rules

    def rule(
        self, name: Token, match: Sequence[Statement], where: Sequence[Condition] | None, replace: Sequence[Replacement]
    ) -> RuleText:
        return RuleText(name, tuple(match), tuple(where or ()), tuple(replace))

    def match(self, *statements: Statement) -> tuple[Statement, ...]:
        return statements

    def statement(self, keep: Token | None, results: Any, operators: Any, *rest: Any) -> Statement:
        *operands, tests = rest
        return Statement(results, operators, tuple(o for o in operands if o is not None), tests or (), keep is not None)

    def results(self, *tokens: Token) -> tuple[Token, ...]:
        return tokens

    def operators(self, *tokens: Token) -> tuple[Token, ...]:
        return () if tokens[0].type == "ANYTHING" else tokens

    def value(self, token: Token) -> Ref:
        return Ref(token)

    def optional(self, token: Token) -> Ref:
        return Ref(token, "optional")

    def constant(self, token: Token) -> Ref:
        return Ref(token, "const")

    def rest(self, dots: Token, token: Token | None) -> Ref:
        return Ref(token if token is not None else dots, "rest")

    def tests(self, *tests: Any) -> tuple[Any, ...]:
        return tests

    def test(self, key: Token, literal: Literal) -> tuple[str, Any]:
        return _plain(key), literal.value

    def where(self, *conditions: Condition) -> tuple[Condition, ...]:
        return conditions

    @v_args(inline=False, meta=True)
    def condition(self, meta: Any, children: list[Any]) -> Condition:
        negated, left, *others = children
        comparison, right = others if any(o is not None for o in others) else ("", None)
        text = " ".join(self.text[meta.start_pos : meta.end_pos].split())
        return Condition(left, str(comparison), right, negated is not None, text)

    def call(self, name: Token, *arguments: Any) -> Call:
        return Call(name, tuple(a for a in arguments if a is not None))

    def replace(self, *replacements: Replacement) -> tuple[Replacement, ...]:
        return replacements

    def replacement(self, results: tuple[Token, ...], source: Made | Token) -> Replacement:
        return Replacement(results, source)

    def made(self, operator: Token, *rest: Any) -> Made:
        *operands, attributes = rest
        given = [a for a in attributes or () if isinstance(a, tuple)]
        spreads = [a for a in attributes or () if not isinstance(a, tuple)]
        return Made(operator, tuple(_operands(operands)), tuple(given), tuple(spreads))

    def nothing(self, token: Token) -> Token:
        return token

    def attributes(self, *entries: Any) -> tuple[Any, ...]:
        return entries

    def attribute(self, key: Token, expression: Expression) -> tuple[str, Expression]:
        return _plain(key), expression

    def spread(self, dots: Token, token: Token) -> Token:
        return token

    def number(self, token: Token) -> Literal:
        return Literal(int(token) if token.lstrip("-").isdigit() else float(token))

    def string(self, token: Token) -> Literal:
        return Literal(json.loads(token))

    def word(self, token: Token) -> Literal:
        return Literal(str(token))

    def list(self, *parts: Any) -> Expression:
        given = tuple(p for p in parts if p is not None)
        plain = tuple(p.value for p in given if isinstance(p, Literal))
        return Literal(plain) if len(plain) == len(given) else Listed(given)

    def arithmetic(self, left: Any, sign: Token, right: Any) -> Arithmetic:
        return Arithmetic(left, str(sign), right)

    def signed(self, sign: Token, of: Any) -> Arithmetic:
        return Arithmetic(Literal(0), str(sign), of)

    def computed(self, expression: Any, dtype: Token | None) -> Computed:
        return Computed(expression, dtype)

    def items(self, *literals: Literal | None) -> Literal:
        return Literal(tuple(item.value for item in literals if item is not None))


def _operands(found: Sequence[Any]) -> list[Ref | Literal | Listed | Computed | None]:
    """Operands as written; a grammar placeholder is none at all, `_` is one that is not given."""
    return [None if isinstance(o, Token) else o for o in found if o is not None]


def _plain(key: Token) -> str:
    return str(json.loads(key)) if key.startswith('"') else str(key)
