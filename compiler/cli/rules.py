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

    told: list[dict[str, Any]] = []
    for name in names:
        pass_ = _pass(name)
        chosen = [r for r in pass_.rules if not only or r.name in only]
        if not chosen:
            raise InputError(f"{name} has no such rule.", hint=f"Its rules: {', '.join(r.name for r in pass_.rules)}.")
        for rule in chosen:
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


def _pass(name: str) -> Any:
    """Give the pass of rules that a file or a name stands for."""
    from memoptc import registry
    from memoptc.ir.diagnostics import InputError
    from memoptc.rewrite import RulePass

    path = Path(name)
    if path.suffix in (".rules", ".py"):
        before = set(registry.names())
        registry.load_plugin(name)
        stem = path.stem.replace("_", "-")
        name = next((n for n in registry.names() if n not in before), stem)
    cls = registry.find(name)
    if not issubclass(cls, RulePass):
        raise InputError(f"Pass {name} is not made of rules.", hint="Test it by memoptc.testing.PassTests.")
    return cls
