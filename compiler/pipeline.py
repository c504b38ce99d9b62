"""Pipelines are text: `simplify,quantize{percentile=99.9},(share-common,drop-dead)*3`.

A group with `*` repeats until it changes nothing (at most 10 times); with `*3` at most three times.
`str(parse(text))` is the canonical spelling, and parses to the same pipeline.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from typing import Any, get_type_hints

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, VisitError

from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Pass
from memoptc.registry import find

UNTIL_STABLE_LIMIT = 10


@dataclass(frozen=True)
class Group:
    """Passes that repeat until they change nothing, `limit` times at most."""

    items: tuple[Pass | Group, ...]
    limit: int | None = None

    @property
    def rounds(self) -> int:
        """How often it runs at most."""
        return UNTIL_STABLE_LIMIT if self.limit is None else self.limit

    def __str__(self) -> str:
        return f"({','.join(map(str, self.items))})*{'' if self.limit is None else self.limit}"


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes and groups."""

    items: tuple[Pass | Group, ...] = ()

    def __str__(self) -> str:
        return ",".join(map(str, self.items))

    def passes(self) -> Iterator[Pass]:
        """Every pass, those of groups once."""
        yield from _passes(self.items)


def _passes(items: tuple[Pass | Group, ...]) -> Iterator[Pass]:
    for item in items:
        if isinstance(item, Group):
            yield from _passes(item.items)
        else:
            yield item


def parse(text: str) -> Pipeline:
    """Read a pipeline.

    Raises:
        InputError: a pass or option does not exist, a value has the wrong type, or the text is no pipeline;
            the message shows where.
    """
    try:
        found = _parser().parse(text)
    except UnexpectedInput as e:
        raise _fault(text, getattr(e, "column", len(text) + 1), "a pass, '(' or ',' is expected here") from None
    except VisitError as e:
        raise e.orig_exc from None
    pipeline: Pipeline = _Build(text).transform(found)
    return pipeline


@lru_cache(maxsize=1)
def _parser() -> Lark:
    grammar = resources.files("memoptc").joinpath("pipeline.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True, maybe_placeholders=False)


def _fault(text: str, column: int, what: str, hint: str = "") -> InputError:
    column = max(1, column)
    return InputError(f"In the pipeline: {what}:\n  {text}\n  {' ' * (column - 1)}^", hint=hint)


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def transform(self, tree: Any) -> Any:
        try:
            return super().transform(tree)
        except VisitError as e:
            raise e.orig_exc from None

    def start(self, *items: Any) -> Pipeline:
        return Pipeline(tuple(items[0]) if items else ())

    def sequence(self, *items: Any) -> tuple[Any, ...]:
        return items

    def group(self, items: tuple[Any, ...], limit: Token | None = None) -> Group:
        return Group(items, None if limit is None else int(limit))

    def option(self, key: Token, value: Any) -> tuple[Token, Any]:
        return key, value

    def string(self, token: Token) -> str:
        text: str = ast.literal_eval(token)
        return text

    def integer(self, token: Token) -> int:
        return int(token)

    def real(self, token: Token) -> float:
        return float(token)

    def true(self) -> bool:
        return True

    def false(self) -> bool:
        return False

    def none(self) -> None:
        return None

    def list(self, *items: Any) -> tuple[Any, ...]:
        return items

    def pass_(self, name: Token, *options: tuple[Token, Any]) -> Pass:
        try:
            cls = find(str(name))
        except InputError as e:
            raise _fault(self.text, name.column or 1, e.message.rstrip("."), e.hint) from None
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for key, value in options:
            if key not in known:
                options_text = ", ".join(known) or "none"
                raise _fault(
                    self.text,
                    key.column or 1,
                    f"{name} has no option {key}",
                    f"Its options are: {options_text}.",
                )
            given[str(key)] = self._checked(key, value, hints[key])
        return cls(**given)

    def _checked(self, key: Token, value: Any, hint: Any) -> Any:
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not _fits(value, hint):
            name = getattr(hint, "__name__", str(hint))
            raise _fault(self.text, key.column or 1, f"{key} must be of type {name}, not {value!r}")
        return value


setattr(_Build, "pass", _Build.pass_)


def _fits(value: Any, hint: Any) -> bool:
    origin = getattr(hint, "__origin__", None)
    if origin is tuple:
        inner = hint.__args__[0]
        return isinstance(value, tuple) and all(_fits(v, inner) for v in value)
    if hasattr(hint, "__args__"):
        return any(_fits(value, h) for h in hint.__args__)
    if hint in (type(None), None):
        return value is None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)
