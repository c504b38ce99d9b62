"""The reader of pipelines' text: one pass over it, by recursive descent.

    pipeline = [sequence]                      value = string | integer | size | real | "true" | "false" | "none" | word
    sequence = item {"," item}                       | "[" [value {"," value}] "]"
    item     = pass | "(" sequence ")" "*" [integer]
    pass     = name ["{" [key "=" value {"," key "=" value}] "}"]

A word is text, as in `form=drop`. Spaces may stand between any two of these. A generated parser takes ten times as long
to set up as this takes to read the longest pipeline, and every command would pay for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from memoptc.runtime.sizes import parse_bytes

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_KEY = re.compile(r"[a-z_][a-z0-9_]*")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_REAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?\d+[eE][+-]?\d+")
_INTEGER = re.compile(r"[+-]?\d+")
_SIZE = re.compile(r"\d+(?:\.\d+)?(?:[KMGT]i?B?|B)\b", re.IGNORECASE)
_COUNT = re.compile(r"\d+")
_WORDS = {"true": True, "false": False, "none": None}

P = TypeVar("P")


class Word(NamedTuple):
    """A name and the column at which it begins, counted from 1."""

    text: str
    column: int


class Reader(Generic[P]):
    """Reads one pipeline.

    Args:
        text: The pipeline, on one line.
        make_pass: Makes a pass of its name and its options.
        make_group: Makes a group of its items and how often it repeats at most.
        fail: Raises the error for a column and what is wrong there.
    """

    def __init__(
        self,
        text: str,
        make_pass: Callable[[Word, list[tuple[Word, Any]]], P],
        make_group: Callable[[tuple[P, ...], int | None], P],
        fail: Callable[[int, str], NoReturn],
    ) -> None:
        self.text, self.at = text, 0
        self._make_pass, self._make_group, self._fail = make_pass, make_group, fail

    def pipeline(self) -> tuple[P, ...]:
        """Read all of it."""
        self._skip()
        items = self._sequence() if self.at < len(self.text) else ()
        if self.at < len(self.text):
            self._unexpected()
        return items

    def _sequence(self) -> tuple[P, ...]:
        items = [self._item()]
        while self._take(","):
            items.append(self._item())
        return tuple(items)

    def _item(self) -> P:
        if self._take("("):
            items = self._sequence()
            self._need(")")
            self._need("*")
            count = self._match(_COUNT)
            return self._make_group(items, None if count is None else int(count.text))
        name = self._match(_NAME) or self._unexpected()
        options: list[tuple[Word, Any]] = []
        if self._take("{") and not self._take("}"):
            options.append(self._option())
            while self._take(","):
                options.append(self._option())
            self._close("}")
        return self._make_pass(name, options)

    def _option(self) -> tuple[Word, Any]:
        key = self._match(_KEY) or self._fail(self.at + 1, "the name of an option is expected here")
        if not self._take("="):
            self._fail(self.at + 1, f"'=' and a value are expected here, as in {key.text}=1")
        return key, self._value()

    def _value(self) -> Any:
        if self._take("["):
            values: list[Any] = []
            if not self._take("]"):
                values.append(self._value())
                while self._take(","):
                    values.append(self._value())
                self._close("]")
            return tuple(values)
        if word := self._match(_STRING):
            try:
                return json.loads(word.text)
            except ValueError as e:
                self._fail(word.column, f"this is no string ({e})")
        if word := self._match(_SIZE):
            return parse_bytes(word.text)
        if word := self._match(_REAL):
            if not math.isfinite(float(word.text)):
                self._fail(word.column, f"{word.text} is too large")
            return float(word.text)
        if word := self._match(_INTEGER):
            return int(word.text)
        if word := self._match(_KEY):
            return _WORDS.get(word.text, word.text)
        self._fail(self.at + 1, "a value is expected here: a number, a size, a word, or text in quotes")

    def _match(self, pattern: re.Pattern[str]) -> Word | None:
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        word = Word(found[0], self.at + 1)
        self.at = found.end()
        self._skip()
        return word

    def _take(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        self._skip()
        return True

    def _need(self, mark: str) -> None:
        if not self._take(mark):
            self._unexpected()

    def _close(self, mark: str) -> None:
        """End what was opened, behind a value."""
        if not self._take(mark):
            what = (
                f"',' or '{mark}' is expected here; text that is more than one word, such as a path, stands in quotes"
            )
            self._fail(self.at + 1, what)

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _unexpected(self) -> NoReturn:
        self._fail(self.at + 1, "a pass, '(' or ',' is expected here")
