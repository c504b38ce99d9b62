"""Edits of a level's pipeline that a user asks for: passes left out, options set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Pass, spell
from memoptc.pipeline import Pipeline, parse


def edited(pipeline: Pipeline, skipped: Sequence[str] = (), settings: Sequence[str] = ()) -> Pipeline:
    """Leave passes out, and set options of others, wherever they stand in a pipeline.

    Args:
        pipeline: The pipeline.
        skipped: Names of passes.
        settings: `pass.option=value`, the value as in the text of a pipeline; quotes around a word may be left out.

    Raises:
        InputError: a pass is not in the pipeline, or has no such option or value.
    """
    passes = list(pipeline.passes())
    dropped = {i for name in skipped for i in _positions(passes, name, "--skip-pass")}
    replaced: dict[int, Pass] = {}
    for setting in settings:
        target, equals, value = setting.partition("=")
        name, dot, option = target.strip().partition(".")
        if not (equals and dot and name and option):
            raise InputError(
                f"{setting!r} sets no option.", hint="Write --set PASS.OPTION=VALUE, e.g. fit.slowdown=1.2."
            )
        for i in _positions(passes, name, "--set"):
            before: Any = replaced.get(i, passes[i])  # every pass is a dataclass, which its base does not say
            replaced[i] = replace(before, **{option: _value(name, option, value.strip())})
    return pipeline.without(dropped, replaced)


def _positions(passes: Sequence[Pass], name: str, flag: str) -> list[int]:
    found = [i for i, p in enumerate(passes) if p.name == name]
    if not found:
        known = ", ".join(dict.fromkeys(p.name for p in passes))
        raise InputError(f"{flag} names {name!r}, which does not run.", hint=f"What runs is {known}.")
    return found


def _value(name: str, option: str, value: str) -> Any:
    """Read a value as a pipeline's text has it; a bare word that is none counts as quoted."""
    try:
        (read,) = parse(f"{name}{{{option}={value}}}").passes()
    except InputError:
        (read,) = parse(f"{name}{{{option}={spell(value)}}}").passes()
    return getattr(read, option)
