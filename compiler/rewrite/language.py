"""Rules written as data: the same engine as `@rewrite`, from text.

rule conv-relu {
  match   %c = Conv(%x, %w, ...) ; %y = Relu(%c)
  where   single_use(%c), attr(%c, group) == 1
  replace %y = com.microsoft::FusedConv(%x, %w, ...) {activation = "Relu", ...%c}
}

In `match`: `%x?` is an operand that may be missing, `const %w` a constant, a number a constant whose every element
is that number, `...` (or `...%more`) all remaining operands, `Relu|Gelu(%x)` one of several operators, `*(...)`
any; `{group = 1}` requires attributes (defaults count); `keep %c = ...` lets others use what is matched, and leaves
it there. What `where` may ask is in `memoptc.rewrite.predicates`. In `replace`, results of `match` are given their
replacement, a number is a constant of the first operand's element type, a list of integers one of int64, `_` an
operand that is not given; `...%c` copies attributes that are not set otherwise. Attributes, items of lists and the
constant `const(value(%a) * value(%b))` are computed with + - * / and what `memoptc.rewrite.predicates` lists. `;`
between two replacements replaces two results.

Between rules, `example conv-relu {`, a graph, a line `// ---- expect`, the graph that it becomes, and `}` is an
example, and `example conv-relu declines { GRAPH }` one that the rule leaves alone: `memoptc rules test FILE` runs them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lark import Token

from memoptc.ir.core import Op, Value
from memoptc.ir.diagnostics import InputError, SourceError
from memoptc.ir.mir import EXPECT
from memoptc.rewrite.driver import RulePass
from memoptc.rewrite.pattern import Any_, Const, Operand, OpPattern, Optional_, Rest, key_of
from memoptc.rewrite.predicates import PREDICATES
from memoptc.rewrite.replacement import DTYPES, Replacement
from memoptc.rewrite.rule import Rule
from memoptc.rewrite.syntax import (
    EXAMPLE,
    Arithmetic,
    Call,
    Computed,
    Expression,
    Listed,
    Literal,
    Made,
    Ref,
    RuleText,
    Statement,
    read,
)

"""Line between a graph and what a rule makes of it."""
_REST = "..."
"""Name of remaining operands without one."""


def load_rules(path: Path) -> type[RulePass]:
    """Give a pass of all rules in a file, named after it; its help is the file's first comment.

    Raises:
        SourceError: a rule is wrong; the message shows where.
        InputError: the file cannot be read, holds no rule, or its name is no name for a pass.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise InputError(f"Rules {path} cannot be read: {why}.", hint="Check the path.") from None
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    if not re.match(r"[a-z]", name):
        raise InputError(f"{path.name} names no pass.", hint="Let the file's name begin with a letter.")
    rules = parse_rules(text, str(path))
    if not rules:
        raise InputError(f"{path} holds no rule.", hint="A rule begins with `rule NAME {`.")
    comment = text.lstrip().partition("\n")[0]
    help_ = comment.removeprefix("//").strip() if comment.startswith("//") else f"Rules of {path.name}."
    made: Any = type("".join(p.capitalize() for p in name.split("-")), (RulePass,), {"__doc__": help_, "rules": rules})
    made.name = name
    made.examples = read_examples(text, str(path), rules)
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RuleExample:
    """An example in a file of rules.

    Args:
        rule: The rule that it is for.
        line: Its line in the file.
        before: A graph, as text.
        after: The graph that it becomes; `""` when only that the rule is applied matters.
        declines: Whether the rule leaves the graph alone.
    """

    rule: Rule
    line: int
    before: str
    after: str
    declines: bool


def read_examples(text: str, file: str, rules: Sequence[Rule]) -> tuple[RuleExample, ...]:
    """Read the examples of a file of rules.

    Raises:
        SourceError: an example is of no rule that the file has.
    """
    named = {rule.name: rule for rule in rules}
    found = []
    for match in EXAMPLE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match[1] not in named:
            raise SourceError(f"there is no rule {match[1]} in this file", text, line, 9, file=file)
        before, _, after = match[3].partition(EXPECT)
        found.append(RuleExample(named[match[1]], line, before, after, match[2] is not None))
    return tuple(found)


def parse_rules(text: str, file: str = "") -> tuple[Rule, ...]:
    """Read rules.

    Args:
        text: Any number of them.
        file: Name of the text's file, for error messages.

    Raises:
        SourceError: the text is wrong; the message shows where.
    """
    found: dict[str, Rule] = {}
    for rule in read(text, file):
        if rule.name in found:
            _fault(text, file, rule.name, f"there is a rule {rule.name} already")
        found[str(rule.name)] = _Reading(text, file, rule).rule()
    return tuple(found.values())


def _fault(text: str, file: str, place: Token, what: str, hint: str = "") -> NoReturn:
    raise SourceError(what, text, place.line or 1, place.column or 1, file=file, hint=hint)


class _Reading:
    """Checks one rule and makes it."""

    def __init__(self, text: str, file: str, rule: RuleText) -> None:
        self.text, self.file, self.source = text, file, rule
        self.results: dict[str, OpPattern] = {}
        self.captures: set[str] = set()
        self.assigned: set[str] = set()
        self.several_rests = False

    def fault(self, place: Token, what: str, hint: str = "") -> NoReturn:
        _fault(self.text, self.file, place, what, hint)

    def rule(self) -> Rule:
        for statement in self.source.match:
            self.statement(statement)
        for condition in self.source.where:
            for expression in (condition.left, condition.right):
                self.expression(expression)
        roots = self.replacements()
        self.require_reachable(roots)
        names = [n for n in self.results if n in roots]
        try:
            patterns = tuple(self.results[n] for n in names)
            whole = Rule(patterns, Replacement(self.source, self.results, names), str(self.source.name), ())
        except TypeError as e:
            self.fault(self.source.name, str(e))
        whole.parameters = list(whole.captures)
        return whole

    def statement(self, statement: Statement) -> None:
        try:
            keys = tuple(key_of(str(o)) if "::" not in o else str(o) for o in statement.operators)
        except AttributeError as e:
            self.fault(statement.operators[0], str(e))
        operands = tuple(self.pattern(o) for o in statement.operands)
        for operand in statement.operands[:-1]:
            if isinstance(operand, Ref) and operand.kind == "rest":
                self.fault(operand.token, "only the last operand can be all remaining ones")
        bind = f"%{len(self.results)}:{statement.results[0]}"
        whole = OpPattern(keys, operands, bind, dict(statement.tests), statement.keep)
        for index, token in enumerate(statement.results):
            if token == "_":
                continue
            name = Ref(token).name
            if name in self.results or name in self.captures:
                self.fault(token, f"{token} is defined or used before")
            self.results[name] = whole if index == 0 else whole.out(index)

    def pattern(self, operand: Ref | Literal) -> Operand:
        if isinstance(operand, Literal):
            return Const(value=float(operand.value))
        if operand.name in self.results:
            if operand.kind != "value":
                self.fault(operand.token, f"{operand.token} is the result of an operator here")
            return self.results[operand.name]
        name = operand.name
        if name == _REST and name in self.captures:  # the remaining operands of another operator
            name = f"{_REST}{len(self.captures)}"
            self.several_rests = True
        self.captures.add(name)
        match operand.kind:
            case "optional":
                return Optional_(name)
            case "const":
                return Const(name)
            case "rest":
                return Rest(name)
        return Any_(name)

    def expression(self, expression: Expression | None) -> None:
        if isinstance(expression, Arithmetic):
            self.expression(expression.left)
            self.expression(expression.right)
        for item in expression.items if isinstance(expression, Listed) else ():
            self.expression(item)
        if not isinstance(expression, Call):
            return
        found = PREDICATES.get(expression.name)
        if found is None:
            close = difflib.get_close_matches(expression.name, PREDICATES, n=1)
            guess = f"Did you mean {close[0]}?" if close else ""
            self.fault(expression.name, f"there is no predicate {expression.name}", guess)
        if not found.needed <= len(expression.arguments) <= len(found.kinds):
            self.fault(expression.name, f"{expression.name} takes {len(found.kinds)} arguments")
        for argument, kind in zip(expression.arguments, found.kinds, strict=False):
            if isinstance(argument, Ref):
                self.known(argument.token)
                if kind is Op and argument.name not in self.results:
                    self.fault(argument.token, f"{argument.token} is not the result of an operator here")
                if kind not in (Op, Value):
                    self.fault(argument.token, f"{expression.name} takes no value here")
            elif kind in (Op, Value):
                self.fault(expression.name, f"{expression.name} takes a value such as %x")
            else:
                self.expression(argument)

    def known(self, token: Token) -> None:
        name = Ref(token).name
        if name not in self.results and name not in self.captures and name not in self.assigned:
            known = [f"%{n}" for n in (*self.results, *self.captures, *self.assigned)]
            close = difflib.get_close_matches(token, known, n=1)
            self.fault(token, f"{token} is not defined here", f"Did you mean {close[0]}?" if close else "")

    def replacements(self) -> set[str]:
        roots: set[str] = set()
        for replacement in self.source.replace:
            if isinstance(replacement.source, Made):
                self.made(replacement.source, roots)
            else:
                self.usable(replacement.source, roots)
            for token in replacement.results:
                name = Ref(token).name
                if name in roots or name in self.captures or name in self.assigned:
                    self.fault(token, f"{token} cannot be replaced: it is defined elsewhere")
                (roots if name in self.results else self.assigned).add(name)
                self.assigned.add(name)
        if not roots:
            roots_of_match = [t for statement in self.source.match for t in statement.results if t != "_"]
            name = roots_of_match[-1] if roots_of_match else "%y"
            self.fault(
                self.source.replace[0].results[0],
                "nothing that is matched gets replaced",
                f"What takes the place of {name} is called {name} here, too.",
            )
        return roots

    def made(self, made: Made, roots: set[str]) -> None:
        try:
            key_of(str(made.operator)) if "::" not in made.operator else None
        except AttributeError as e:
            self.fault(made.operator, str(e))
        for operand in made.operands:
            if isinstance(operand, Ref):
                self.usable(operand.token, roots)
            elif isinstance(operand, Listed):
                self.expression(operand)
            elif isinstance(operand, Computed):
                self.expression(operand.expression)
                if operand.dtype is not None and operand.dtype not in DTYPES:
                    self.fault(
                        operand.dtype,
                        f"there is no element type {operand.dtype}",
                        f"Such as {', '.join(list(DTYPES)[:4])}.",
                    )
        for _, expression in made.attributes:
            self.expression(expression)
        for token in made.spreads:
            if Ref(token).name not in self.results:
                self.fault(token, f"{token} is not the result of an operator here")

    def usable(self, token: Token, roots: set[str]) -> None:
        self.known(token)
        name = Ref(token).name
        if name == _REST and self.several_rests:
            self.fault(token, "... stands for operands of several operators here", "Name them, such as ...%more.")
        later = {Ref(t).name for r in self.source.replace for t in r.results}
        if name in self.results and name in later and name not in roots:
            self.fault(token, f"{token} is what gets replaced", "Use its operands.")

    def require_reachable(self, roots: set[str]) -> None:
        reached = {p for name in roots for p in self.results[name].parts()}
        for statement in self.source.match:
            named = [t for t in statement.results if t != "_"]
            if not named:
                self.fault(statement.results[0], "a statement needs a named result")
            if self.results[Ref(named[0]).name].base not in reached:
                self.fault(named[0], f"{named[0]} is not part of what gets replaced")
