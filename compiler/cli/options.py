"""Options that several subcommands share, and the values that people write for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_UNITS |= {f"{k}IB": v for k, v in list(_UNITS.items()) if k in ("K", "M", "G", "T")}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A size such as `64MiB`, `1.5GB` or `4096`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give the size in bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size; write one like 64MiB, 1.5GB or 4096", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


class Binding(click.ParamType):  # type: ignore[type-arg]
    """`NAME=8`: an extent for a symbolic dimension."""

    name = "name=extent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Give the pair (symbol, extent)."""
        if isinstance(value, tuple):
            return value
        name, equals, extent = value.rpartition("=")
        if not equals or not name or not extent.strip().isdigit():
            self.fail(f"{value!r} binds no dimension; write one like N=8", param, ctx)
        return name.strip(), int(extent)


class Bindings(click.ParamType):  # type: ignore[type-arg]
    """`NAME=1,2,4`: one or more extents for a symbolic dimension."""

    name = "name=extents"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Give the pair (symbol, extents)."""
        if isinstance(value, tuple):
            return value
        name, equals, extents = value.rpartition("=")
        parts = [e.strip() for e in extents.split(",")]
        if not equals or not name or not all(p.isdigit() for p in parts):
            self.fail(f"{value!r} binds no dimension; write one like N=1,2,4,8", param, ctx)
        return name.strip(), tuple(int(p) for p in parts)


def common(function: F) -> F:
    """Add the options that every subcommand has: -q, -v, --debug, --plugin."""
    for option in reversed(
        [
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors."),
            click.option("-v", "--verbose", is_flag=True, help="Say more: passes as they run, reasons."),
            click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong."),
            click.option(
                "--plugin",
                "plugins",
                multiple=True,
                metavar="MODULE",
                help="Load passes or rules from a module, .py or .rules file; may be repeated.",
            ),
        ]
    ):
        function = option(function)
    return function


dim_option = click.option(
    "--dim",
    "dims",
    multiple=True,
    type=Binding(),
    help="Extent of a symbolic dimension for planning, measuring and verifying; the model stays dynamic.",
)
