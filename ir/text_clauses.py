"""Clauses of `.mir` text behind an op, a graph or a function: where it comes from, its notes, its opset."""

# ruff: noqa: D102 (methods named after grammar rules: the grammar says what they are)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from lark import Token

from memoptc.ir.core import Loc
from memoptc.ir.text_values import ValueReader, text_of

Note: TypeAlias = tuple[str, dict[str, str]]
"""A doc string, and metadata."""


class Clause(NamedTuple):
    """`kind(value)`."""

    kind: str
    value: Any


class ClauseReader(ValueReader):
    """Reads clauses. Each method that takes `children` belongs to the grammar rule of its name."""

    def facts_of(self, place: Token, clauses: Sequence[Clause], allowed: tuple[str, ...]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for kind, value in clauses:
            if kind not in allowed:
                raise self.error(place, f"{kind!r} says nothing about this")
            if kind in facts:
                raise self.error(place, f"{kind!r} is given twice")
            facts[kind] = value
        return facts

    def loc(self, children: list[Any]) -> Clause:
        nodes, rules, file, line, col = children
        at = ("", 0, 0) if file is None else (self.string(file), self.integer(line), self.integer(col))
        return Clause("loc", Loc(nodes or (), rules or (), *at))

    def strings(self, children: list[Any]) -> tuple[str, ...]:
        return tuple(self.string(c) for c in children)

    def name(self, children: list[Any]) -> Clause:
        return Clause("name", self.string(children[0]))

    def doc(self, children: list[Any]) -> Clause:
        return Clause("doc", self.string(children[0]))

    def meta(self, children: list[Any]) -> Clause:
        return Clause("meta", dict(c for c in children if c is not None))

    def overload(self, children: list[Any]) -> Clause:
        return Clause("overload", self.string(children[0]))

    def opset(self, children: list[Any]) -> Clause:
        (entries,) = children
        return Clause("opset", {text_of(k): self.expect(k, v, int) for k, v in entries})

    def attributes(self, children: list[Any]) -> Clause:
        return Clause("attributes", self.attrs_of(children[0], none=True))

    def body_note(self, children: list[Any]) -> Clause:
        return Clause("body", children[0])

    def note(self, children: list[Any]) -> Note:
        docs = [c for c in children if isinstance(c, Token)]
        if len(docs) > 1:
            raise self.error(docs[1], "a note has one text, and pairs")
        return self.string(docs[0]) if docs else "", dict(c for c in children if isinstance(c, tuple))

    def pair(self, children: list[Any]) -> tuple[str, str]:
        key, value = children
        return self.string(key), self.string(value)
