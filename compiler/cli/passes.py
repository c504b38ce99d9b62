"""`memoptc passes`: every pass and rule that can be found, with options and help."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import click

from memoptc.cli.options import GroupedCommand, Talk, takes, talks
from memoptc.options import Options


@click.command("passes", cls=GroupedCommand)
@takes("options", Options, "plugins")
@talks
def command(options: dict[str, Any], talk: Talk) -> None:
    """List every pass, with its options and what it does; its rules; then the pipelines of the levels."""
    from rich.markup import escape
    from rich.table import Table

    from memoptc import levels, registry
    from memoptc.cli.show import result_console
    from memoptc.pass_base import spell
    from memoptc.rewrite import RulePass
    from memoptc.targets import TARGETS

    for plugin in options["plugins"]:
        registry.load_plugin(plugin)
    console = result_console()
    table = Table("pass", "options", "what it does", title="passes", title_justify="left")
    for name in registry.names():
        cls = registry.find(name)
        spelled = ", ".join(
            f.name if f.default is MISSING else f"{f.name}={spell(f.default)}"
            for f in fields(cls)  # type: ignore[arg-type]
        )
        table.add_row(name, escape(spelled), escape(registry.help_of(cls)))
    console.print(table)
    if talk.quiet:
        return
    table = Table("pass", "rule", "replaces", title="rules", title_justify="left")
    for name in registry.names():
        cls = registry.find(name)
        for rule in cls.rules if issubclass(cls, RulePass) else ():
            table.add_row(name, rule.name, escape(" and ".join(map(str, rule.roots))))
    console.print(table)
    table = Table("level", "target", "pipeline", title="pipelines", title_justify="left")
    for level in range(4):
        for target in TARGETS:
            table.add_row(f"-O{level}", target, escape(levels.pipeline_text(level, target, calibrated=True)))
    console.print(table)
