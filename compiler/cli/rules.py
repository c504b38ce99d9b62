"""`memoptc rules test FILE`: rules held against onnxruntime, on the examples in their file and on random graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import GroupedCommand, Talk, talks


@click.command("rules", cls=GroupedCommand)
@click.argument("action", type=click.Choice(["test"]))
@click.argument("names", nargs=-1, required=True, metavar="FILE|PASS...")
@click.option(
    "--instances",
    default=200,
    show_default=True,
    type=click.IntRange(min=0),
    help="Random graphs that each rule is applied to.",
)
@click.option("--rule", "only", multiple=True, help="Test this rule only; may be repeated.")
@click.option("--exact", is_flag=True, help="Ask for the same bits.")
@click.option("--seed", default=0, show_default=True, help="Of the graphs.")
@talks
def command(
    action: str, names: tuple[str, ...], instances: int, only: tuple[str, ...], exact: bool, seed: int, talk: Talk
) -> int:
    """Test the rules of .rules or .py files, or of passes: examples in the file, then random graphs that they fit.

    onnxruntime runs each graph before and after. Exit code 3 when a rule is wrong, or is applied too seldom to know.
    """
    from memoptc.ir.diagnostics import InputError
    from memoptc.testing.rule_check import check_example, check_rule

    passes = [pass_ for name in names for pass_ in _passes(name)]
    known = [rule.name for pass_ in passes for rule in pass_.rules]
    if missing := [name for name in only if name not in known]:
        raise InputError(f"There is no rule {missing[0]!r} here.", hint=f"Rules are {', '.join(known) or 'none'}.")
    told: list[dict[str, Any]] = []
    for pass_ in passes:
        for rule in (r for r in pass_.rules if not only or r.name in only):
            examples = [e for e in pass_.examples if e.rule is rule]
            row: dict[str, Any] = {"pass": pass_.name, "rule": rule.name, "examples": len(examples), "failure": ""}
            try:
                for example in examples:
                    check_example(example, exact=exact)
                row["instances"] = check_rule(rule, instances, exact=exact, seed=seed) if instances else 0
            except AssertionError as error:
                row["failure"] = f"{error}"
            told.append(row)
            if not talk.as_json and not talk.quiet:
                counted = f"{row['examples']} examples, {row.get('instances', 0)} random graphs"
                click.echo(f"{rule.name}: {row['failure'] or f'{counted}, same numbers'}")
    if talk.as_json:
        talk.tell({"rules": told}, list)
    return 3 if any(row["failure"] for row in told) else 0


def _passes(name: str) -> list[Any]:
    """Give the passes of rules that a file or a name stands for."""
    from memoptc import registry
    from memoptc.ir.diagnostics import InputError
    from memoptc.rewrite import RulePass

    names = registry.load_plugin(name) if Path(name).suffix in (".rules", ".py") else [name]
    found = [cls for cls in map(registry.find, names) if issubclass(cls, RulePass)]
    if not found:
        raise InputError(f"No pass of {name} is made of rules.", hint="Test it by memoptc.testing.PassTests.")
    return found
