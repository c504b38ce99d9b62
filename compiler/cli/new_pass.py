"""`memoptc new-pass NAME`: a package for a pass of your own, with tests."""

from __future__ import annotations

from pathlib import Path

import click

from memoptc.cli.options import GroupedCommand, Talk, talks
from memoptc.scaffold import KINDS, new_pass


@click.command("new-pass", cls=GroupedCommand)
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; memoptc-NAME if not given.")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default=KINDS[0],
    show_default=True,
    help="A pattern and its replacement, or code that walks the graph.",
)
@talks
def command(name: str, output: Path | None, kind: str, talk: Talk) -> None:
    """Write a package with a pass called NAME, which works, and tests that pass."""
    files = list(new_pass(name, kind, output or Path(f"memoptc-{name}")))
    talk.tell({"files": files}, lambda: click.echo("\n".join(f"wrote {file}" for file in files)))
