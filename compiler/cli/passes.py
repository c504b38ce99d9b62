"""`memoptc passes`: every pass and rule that can be found, with options and help."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import click

from memoptc.cli.options import GroupedCommand, Talk, print_json, takes, talks
from memoptc.options import Options


@click.command("passes", cls=GroupedCommand)
@takes("options", Options, "plugins")
@talks
def command(options: dict[str, Any], talk: Talk) -> None:
    """List every pass, with its options and what it does; its rules; then the pipelines of the levels."""
    from memoptc import levels, registry
    from memoptc.rewrite import RulePass
    from memoptc.targets import TARGETS

    registry.load_plugins(options["plugins"])
    passes: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for name in registry.names():
        cls = registry.find(name)
        declared = fields(cls)  # type: ignore[arg-type]
        required = [f.name for f in declared if f.default is MISSING]
        settings = {f.name: f.default for f in declared if f.default is not MISSING}
        passes.append({"name": name, "required": required, "options": settings, "help": registry.help_of(cls)})
        for rule in cls.rules if issubclass(cls, RulePass) else ():
            rules.append({"pass": name, "name": rule.name, "replaces": list(map(str, rule.roots))})
    pipelines: list[dict[str, Any]] = [
        {"level": level, "target": target, "pipeline": levels.pipeline_text(level, target, calibrated=True)}
        for level in range(4)
        for target in TARGETS
    ]
    listed = {"passes": passes} if talk.quiet else {"passes": passes, "rules": rules, "pipelines": pipelines}
    if talk.as_json:
        print_json(listed)
    else:
        _print(listed)


def _print(listed: dict[str, list[dict[str, Any]]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from memoptc.cli.show import result_console
    from memoptc.pass_base import spell

    console = result_console()
    table = Table("pass", "options", "what it does", title="passes", title_justify="left")
    for row in listed["passes"]:
        spelled = ", ".join([*row["required"], *(f"{n}={spell(v)}" for n, v in row["options"].items())])
        table.add_row(row["name"], escape(spelled), escape(row["help"]))
    console.print(table)
    if "rules" not in listed:
        return
    table = Table("pass", "rule", "replaces", title="rules", title_justify="left")
    for row in listed["rules"]:
        table.add_row(row["pass"], row["name"], escape(" and ".join(row["replaces"])))
    console.print(table)
    table = Table("level", "target", "pipeline", title="pipelines", title_justify="left")
    for row in listed["pipelines"]:
        table.add_row(f"-O{row['level']}", row["target"], escape(row["pipeline"]))
    console.print(table)
