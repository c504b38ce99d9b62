"""Pipelines are text: `simplify,quantize{percentile=99.9},(share-common,drop-dead)*3`.

A group with `*` repeats until it changes nothing (at most 10 times); with `*3` at most three times.
`str(parse(text))` is the canonical spelling, and parses to the same pipeline.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Container, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, NoReturn, get_type_hints

from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Pass, spell
from memoptc.pipeline_text import Reader, Word
from memoptc.registry import find

UNTIL_STABLE_LIMIT = 10


@dataclass(frozen=True)
class Group:
    """Passes that repeat until they change nothing, `limit` times at most."""

    items: tuple[Pass | Group, ...]
    limit: int | None = None

    @property
    def rounds(self) -> int:
        """Most repetitions of the group."""
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

    def without(self, dropped: Container[int], replaced: Mapping[int, Pass] | None = None) -> Pipeline:
        """Give the pipeline without some passes, others replaced, by their positions in `passes`."""
        return Pipeline(_edited(self.items, itertools.count(), dropped, replaced or {}))


def _edited(
    items: tuple[Pass | Group, ...], positions: Iterator[int], dropped: Container[int], replaced: Mapping[int, Pass]
) -> tuple[Pass | Group, ...]:
    found: list[Pass | Group] = []
    for item in items:
        if isinstance(item, Group):
            inner = _edited(item.items, positions, dropped, replaced)
            found += [Group(inner, item.limit)] if inner else []
        elif (position := next(positions)) not in dropped:
            found.append(replaced.get(position, item))
    return tuple(found)


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
    text = text.replace("\n", " ")

    def fail(column: int, what: str) -> NoReturn:
        raise _fault(text, column, what)

    def make_pass(name: Word, options: list[tuple[Word, Any]]) -> Pass | Group:
        return _pass(text, name, options)

    return Pipeline(Reader[Pass | Group](text, make_pass, Group, fail).pipeline())


def _fault(text: str, column: int, what: str, hint: str = "") -> InputError:
    column = max(1, column)
    return InputError(f"In the pipeline: {what}:\n  {text}\n  {' ' * (column - 1)}^", hint=hint)


def _pass(text: str, name: Word, options: list[tuple[Word, Any]]) -> Pass:
    try:
        cls = find(name.text)
    except InputError as e:
        raise _fault(text, name.column, e.message.rstrip("."), e.hint) from None
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if len({key.text for key, _ in options}) < len(options):
        raise _fault(text, name.column, f"{name.text} gets an option twice")
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for key, value in options:
        if key.text not in known:
            options_text = ", ".join(known) or "none"
            raise _fault(
                text,
                key.column,
                f"{name.text} has no option {key.text}",
                f"Its options are: {options_text}.",
            )
        given[key.text] = _checked(text, key, value, hints[key.text])
    missing = [n for n, f in known.items() if n not in given and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise _fault(text, name.column, f"{name.text} needs its option {missing[0]}")
    try:
        return cls(**given)
    except InputError as e:
        raise _fault(text, name.column, e.message.rstrip("."), e.hint) from None


def _checked(text: str, key: Word, value: Any, hint: Any) -> Any:
    value = _widened(value, hint)
    if not _fits(value, hint):
        raise _fault(text, key.column, f"{key.text} must be {_describe(hint)}, not {spell(value)}")
    return value


def _widened(value: Any, hint: Any) -> Any:
    """Whole numbers count as floats where floats are wanted."""
    if isinstance(value, tuple):
        inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else ()
        return tuple(_widened(v, inner[0]) for v in value) if inner else value
    if isinstance(value, int) and not isinstance(value, bool) and not _fits(value, hint) and _fits(0.0, hint):
        return float(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments and any(type(value) is type(a) for a in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if arguments:
        return any(_fits(value, h) for h in arguments)
    if hint in (type(None), None):
        return value is None
    if hint in (int, float):
        return isinstance(value, hint) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _describe(hint: Any) -> str:
    """Say what values an option takes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(spell, arguments))}"
    if origin is tuple:
        return f"a list, each {_describe(arguments[0])}"
    if arguments:
        return " or ".join(map(_describe, arguments))
    return "none" if hint is type(None) else f"of type {getattr(hint, '__name__', hint)}"
