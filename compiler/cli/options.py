"""Command-line options made of the fields of dataclasses, and the values that people write for options."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from memoptc.option_fields import GENERAL, UNCHANGED, OptionField, as_values, default_of, flags_of, option, options_of
from memoptc.runtime.sizes import parse_bytes

F = TypeVar("F", bound=Callable[..., Any])


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """A value that a function reads out of what the user writes.

    Args:
        parse: Gives the value, or raises `ValueError`.
        name: What kind of value that is.
    """

    def __init__(self, parse: Callable[[str], Any], name: str) -> None:
        self.parse = parse
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Give the value; a default is one already."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


@dataclass(frozen=True)
class Talk:
    """Verbosity and form of a command's output; every command has these."""

    quiet: bool = option("Say nothing but results and errors.", "-q", "--quiet", default=False, group=GENERAL)
    verbose: bool = option("Say more: passes as they run, reasons.", "-v", "--verbose", default=False, group=GENERAL)
    progress: str = option(
        "How progress is shown: a bar on a terminal, lines, or not at all.",
        default="auto",
        choices=("auto", "plain", "none"),
        group=GENERAL,
    )
    debug: bool = option("Show a traceback when something goes wrong.", default=False, group=GENERAL)
    as_json: bool = option("Print the result as JSON, errors too.", "--json", default=False, group=GENERAL)

    def tell(self, result: Any, show: Callable[[], Any], *, always: bool = False) -> None:
        """Print a result on stdout: as one JSON document, or as a person reads it, or not at all.

        Args:
            result: What `memoptc.plain_values.plain` makes plain values of, or a function that gives it.
            show: Prints it for a person.
            always: Print it with `--quiet`, too: it is all that the command is called for.
        """
        if self.as_json:
            print_json(result() if callable(result) else result)
        elif always or not self.quiet:
            show()


def print_json(result: Any) -> None:
    """Print one JSON document on stdout."""
    import json

    from memoptc.plain_values import plain

    click.echo(json.dumps(plain(result), indent=2, ensure_ascii=False))


BYTES = Parsed(parse_bytes, "size")
"""A size such as `64MiB`, `1.5GB` or `4096`."""


def takes(into: str, kind: type, *names: str, **changes: Mapping[str, Any]) -> Callable[[F], F]:
    """Add options for fields of a dataclass to a command, which gets their values as one dictionary.

    Args:
        into: Parameter of the command that the dictionary goes to.
        kind: The dataclass, whose fields `memoptc.option_fields.option` declares.
        names: Fields to take; all when none is named.
        changes: What this command says of a field differently: name -> fields of `OptionField`.
    """
    known = options_of(kind)
    chosen = {name: known[name] for name in (names or known)}

    def add(function: F) -> F:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            given = {name: values.pop(name) for name in chosen}
            return function(**values, **{into: as_values(kind, given)})

        decorated: Any = command
        for name, (f, how) in reversed(chosen.items()):
            default = default_of(f)
            how = replace(how, **changes.get(name, {}))
            told = {"cls": Grouped, "kind": kind, **_how(default, how)}
            decorated = click.option(*flags_of(name, default, how), name, **told)(decorated)
        wrapped: F = decorated
        return wrapped

    return add


def unused(mode: str, *names: str, hint: str = "") -> None:
    """Refuse options that stand on the command line and do nothing in one mode of the command that runs.

    Those of a project file stay: it has them for other commands, too.

    Args:
        mode: The mode, behind "does nothing", such as `with --arena`.
        names: Parameters of the command.
        hint: How to go on; to leave the option out when empty.

    Raises:
        InputError: one of them was given.
    """
    from memoptc.ir.diagnostics import InputError

    context = click.get_current_context()
    given = context.meta.get("given", context.get_parameter_source)
    for parameter in context.command.params:
        if parameter.name in names and given(parameter.name) is click.core.ParameterSource.COMMANDLINE:
            flag = parameter.opts[-1] if parameter.opts[0].startswith("--no-") else parameter.opts[0]
            raise InputError(f"{flag} does nothing {mode}.", hint=hint or f"Leave {flag} out.")


def talks(function: F) -> F:
    """Add -q, -v, --json and --debug to a command, which gets them as `talk`."""

    @functools.wraps(function)
    def command(*, talk: dict[str, Any], **values: Any) -> Any:
        return function(**values, talk=Talk(**talk))

    decorated: F = takes("talk", Talk)(command)  # type: ignore[assignment]
    return decorated


class Grouped(click.Option):
    """An option that stands below a heading in `--help`.

    Args:
        args: As for any option.
        group: The heading.
        kind: Dataclass whose field of the same name it is for.
        kwargs: As for any option.
    """

    def __init__(self, *args: Any, group: str = "", kind: type | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group, self.kind = group, kind


class GroupedCommand(click.Command):
    """A command whose `--help` lists its options below headings, in the order in which they first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        own_help = self.get_help_option(ctx)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                group = GENERAL if parameter is own_help else getattr(parameter, "group", "")
                sections.setdefault(group or "Options", []).append(record)
        sections[GENERAL] = sections.pop(GENERAL, [])  # the last one
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _how(default: Any, how: OptionField) -> dict[str, Any]:
    """Give the arguments of `click.option`."""
    if how.cli_default is not UNCHANGED:
        default = how.cli_default
    found: dict[str, Any] = {"help": how.help, "metavar": how.metavar, "group": how.group}
    if isinstance(default, bool):
        return found | {"default": default, "is_flag": True}
    if isinstance(default, tuple | dict):
        found["multiple"] = True
    else:
        found |= {"default": default, "show_default": default not in (None, "")}
    return found | {"type": _type(how)}


def _type(how: OptionField) -> Any:
    bounds: dict[str, Any] = {"min": how.least, "max": how.most}
    if how.choices:
        return click.Choice(list(how.choices))
    if how.parse is int:
        return click.INT if how.least is None and how.most is None else click.IntRange(**bounds)
    if how.parse is float:
        return click.FLOAT if how.least is None and how.most is None else click.FloatRange(**bounds)
    if how.parse is Path:
        return click.Path(path_type=Path)
    return click.STRING if how.parse is None else Parsed(how.parse, (how.metavar or "value").lower())
