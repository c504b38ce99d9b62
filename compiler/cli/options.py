"""Options that several subcommands share, and the values that people write for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from memoptc.runtime.sizes import parse_bytes

F = TypeVar("F", bound=Callable[..., Any])


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A size such as `64MiB`, `1.5GB` or `4096`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give the size in bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


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


def accuracy_options(function: F) -> F:
    """Add the options that hold integers to an accuracy."""
    for option in reversed(
        [
            click.option("--min-sqnr", type=float, help="Least signal to difference of every output, in dB."),
            click.option(
                "--max-accuracy-loss",
                type=click.FloatRange(min=0),
                help="Largest accepted loss of the metric, e.g. 0.005.",
            ),
            click.option(
                "--metric",
                metavar="perplexity|MODULE:FUNCTION",
                help="What measures accuracy; top-1 on labels if not given.",
            ),
            click.option(
                "--fallback/--no-fallback",
                default=True,
                help="Whether layers may stay in float for that; else exit code 3 when it is not met.",
            ),
        ]
    ):
        function = option(function)
    return function
