"""Options as fields of a dataclass: one field is the keyword in Python, the option on the command line, and its help.

`memoptc.cli.options.takes` makes command-line options of such fields, `keywords_after_one` the keywords of a function.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Concatenate, ParamSpec, TypeVar

from memoptc.ir.diagnostics import InputError

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
O = TypeVar("O")  # noqa: E741
R = TypeVar("R")

GENERAL = "General"
"""Heading of what every command has; the last one."""

UNCHANGED: Any = object()
"""Stands for the field's own default."""

_KEY = "memoptc.option"

MAX_EXTENT = 2**40
"""Largest extent of a dimension."""


@dataclass(frozen=True)
class OptionField:
    """Declaration of one option on the command line.

    Args:
        help: What it does, in one line of `--help`.
        flags: How it is spelled; `--field-name` when empty.
        parse: Reads the text that a user writes, and raises `ValueError` saying what is wrong with it; a type for its
            values, or `None` for text as it stands.
        choices: The words that are allowed.
        least: Smallest number that is allowed.
        most: Largest number that is allowed.
        metavar: What stands for the value in `--help`.
        group: Heading in `--help`.
        cli_default: Value when the option is not given on the command line, where that is not the field's default.
    """

    help: str
    flags: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    choices: Sequence[str] = ()
    least: float | None = None
    most: float | None = None
    metavar: str | None = None
    group: str = ""
    cli_default: Any = UNCHANGED


def option(help: str, *flags: str, default: Any = None, **how: Any) -> Any:
    """Declare a field that is an option.

    A field whose default is a tuple or a mapping may be given several times, one whose default is a bool is a switch.

    Args:
        help: What it does, in one line of `--help`.
        flags: How it is spelled; `--field-name` when empty, `--field-name/--no-field-name` where its default is true.
        default: The field's default.
        how: The other fields of `OptionField`.
    """
    metadata = {_KEY: OptionField(help, flags, **how)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(kind: type) -> dict[str, tuple[Field[Any], OptionField]]:
    """Give the fields of a dataclass that are options, by name in their order."""
    return {f.name: (f, f.metadata[_KEY]) for f in fields(kind) if _KEY in f.metadata}


def check_values(options: Any) -> None:
    """Hold the values of options against their words and bounds, as the command line does.

    Args:
        options: An instance of a dataclass with options; one word for an option that takes several stands for a list.

    Raises:
        InputError: a word that is not among the choices, what is no number, or a number outside of its bounds.
    """
    for name, (f, how) in options_of(type(options)).items():
        given = getattr(options, name)
        if isinstance(default_of(f), tuple) and isinstance(given, str | os.PathLike):
            given = (given,)
            object.__setattr__(options, name, given)
        for value in given if isinstance(given, tuple) else (given,):
            if how.choices and value != f.default and value not in how.choices:
                raise InputError(f"{name}={value!r} is unknown.", hint=f"Use {' or '.join(how.choices)}.")
            if how.parse in (int, float) and value != f.default:
                _check_number(name, value, how)


def _check_number(name: str, value: Any, how: OptionField) -> None:
    low, high = how.least, how.most
    kind = Integral if how.parse is int else Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (low is not None and value < low) or (high is not None and value > high):
        what = "a whole number" if how.parse is int else "a number"
        what += "" if low is None else f" of at least {low:g}"
        what += "" if high is None else f", and at most {high:g}"
        raise InputError(f"{name} cannot be {value!r}.", hint=f"Give {what}.")


def default_of(f: Field[Any]) -> Any:
    """Give the default of a field."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


def keywords_after_one(
    kind: Callable[P, O],
) -> Callable[[Callable[[A, O], R]], Callable[Concatenate[A, P], R]]:
    """Let callers of a function of one value and a dataclass of options write the options as keywords.

    To a type checker the function then has the parameters of the dataclass, so that a wrong keyword is an error.

    Args:
        kind: The dataclass; the help of its options stands for `{options}` in the function's docstring.
    """
    return functools.partial(_with_keywords, kind)


def keywords_after_two(
    kind: Callable[P, O],
) -> Callable[[Callable[[A, B, O], R]], Callable[Concatenate[A, B, P], R]]:
    """As `keywords_after_one`, of a function of two values and a dataclass of options."""
    return functools.partial(_with_keywords, kind)


def _with_keywords(kind: Any, function: Callable[..., Any]) -> Any:
    own = list(inspect.signature(function).parameters.values())[:-1]
    parameters = [*own, *inspect.signature(kind).parameters.values()]
    signature = inspect.Signature(parameters, return_annotation=inspect.signature(function).return_annotation)

    @functools.wraps(function)
    def taking(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options).arguments
        return function(*(given.pop(p.name) for p in own), kind(**given))

    told = [f"{name}: {how.help}" for name, (_, how) in options_of(kind).items()]
    taking.__doc__ = (function.__doc__ or "").replace("{options}", "\n        ".join(told))
    taking.__signature__ = signature  # type: ignore[attr-defined]
    return taking


def parse_binding(text: str) -> tuple[str, int]:
    """Read `NAME=8`: the extent of a symbolic dimension.

    Raises:
        ValueError: it is something else.
    """
    name, equals, extent = text.rpartition("=")
    if not equals or not name or not extent.strip().isdecimal():
        raise ValueError(f"{text!r} binds no dimension; write one like N=8")
    if int(extent) > MAX_EXTENT:
        raise ValueError(f"{extent} is more than a dimension can have: {MAX_EXTENT}")
    return name.strip(), int(extent)


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `NAME:1,3,224,224`: the extents of an input.

    Raises:
        InputError: it is something else.
    """
    name, colon, extents = text.rpartition(":")
    parts = [e.strip() for e in extents.split(",")] if extents.strip() else []
    if not colon or not name or not all(p.isdecimal() and int(p) <= MAX_EXTENT for p in parts):
        raise InputError(f"{text!r} is no shape of an input.", hint="Write one like --input-shape x:1,3,224,224.")
    return name.strip(), tuple(int(p) for p in parts)


def parse_bindings(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `NAME=1,2,4`: one or more extents of a symbolic dimension.

    Raises:
        ValueError: it is something else.
    """
    name, equals, extents = text.rpartition("=")
    parts = [e.strip() for e in extents.split(",")]
    if not equals or not name or not all(p.isdecimal() for p in parts):
        raise ValueError(f"{text!r} binds no dimension; write one like N=1,2,4,8")
    if any(int(p) > MAX_EXTENT for p in parts):
        raise ValueError(f"{extents} is more than a dimension can have: {MAX_EXTENT}")
    return name.strip(), tuple(int(p) for p in parts)


def as_values(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give values as the command line collects them in the form of their fields: pairs as a mapping."""
    defaults = {name: default_of(f) for name, (f, _) in options_of(kind).items()}
    return {name: dict(value) if isinstance(defaults[name], dict) else value for name, value in given.items()}


def flags_of(name: str, default: Any, how: OptionField) -> tuple[str, ...]:
    """Give how an option is spelled: a switch that is on by default has an opposite behind a slash."""
    dashed = name.replace("_", "-")
    return how.flags or (f"--{dashed}/--no-{dashed}" if default is True else f"--{dashed}",)


def to_argv(options: Any) -> list[str]:
    """Give the command-line words that stand for options, those at their defaults left out.

    A value that no words can stand for (data or a metric given as Python objects) is named by its type, `<list>`.
    """
    words: list[str] = []
    for name, (f, how) in options_of(type(options)).items():
        value, default = getattr(options, name), default_of(f)
        usual = default if how.cli_default is UNCHANGED else how.cli_default
        flag = flags_of(name, default, how)[0]
        if type(value) is type(usual) and value == usual:
            continue
        if isinstance(default, bool):
            words.append(flag.split("/")[not value])
        elif isinstance(default, dict):
            words += [word for key, extent in value.items() for word in (flag, f"{key}={extent}")]
        elif isinstance(default, tuple):
            words += [word for part in value for word in (flag, str(part))]
        else:
            plain = isinstance(value, str | int | float | os.PathLike) or is_dataclass(value)
            told = str(value) if plain else f"<{type(value).__name__}>"
            words += [flag + told] if len(flag) == 2 else [flag, told]
    return words
