"""`memoptc reduce MODEL`: the smallest model that still shows a failure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import BYTES, Talk, takes, talks, unused
from memoptc.cli.project import ProjectCommand
from memoptc.options import Options

if TYPE_CHECKING:
    from memoptc.reduction import Reduction


@click.command("reduce", cls=ProjectCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write, .onnx or .mir; MODEL.reduced.onnx if not given.",
)
@click.option("--test", "command_", metavar="CMD", help="Fails where this exits with 0; {} is the model's path.")
@click.option("--fails", is_flag=True, help="Fails where a compile ends with the same error.")
@click.option(
    "--differs", type=click.IntRange(0, 3), metavar="LEVEL", help="Fails where the outputs at -O LEVEL differ."
)
@click.option("--slow", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Fails where a compile takes longer.")
@click.option(
    "--above",
    type=BYTES,
    metavar="SIZE",
    help="Fails where a compile takes more memory, e.g. 900MiB.",
)
@click.option("--trial-seconds", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Per trial.")
@click.option("--seconds", type=click.FloatRange(min=1), help="Stop after so long, with the smallest one until then.")
@takes("options", Options, "level", "target", "passes", "dims", "plugins")
@talks
def command(
    model: Path,
    output: Path | None,
    command_: str | None,
    fails: bool,
    differs: int | None,
    slow: float | None,
    above: int | None,
    trial_seconds: float,
    seconds: float | None,
    options: dict[str, Any],
    talk: Talk,
) -> int:
    """Remove from MODEL what a failure does not need: nodes, subgraphs, extents, weights, attributes.

    Each trial runs in a process of its own, which may crash or hang.
    """
    asked = {"--test": command_, "--fails": fails or None, "--differs": differs, "--slow": slow, "--above": above}
    chosen = [name for name, value in asked.items() if value is not None]
    if len(chosen) != 1:
        raise click.UsageError(f"say what to look for: one of {', '.join(asked)}")
    if command_ is not None:
        unused("with --test: what is run says how", "level", "target", "passes", "dims", "plugins")
    if slow is not None:
        unused("with --slow, which ends a trial", "trial_seconds")
    if differs is not None:
        unused("with --differs, which names the level", "level")
        options["level"] = differs
    if options["dims"]:
        _check_dims(model, options["dims"])
    output = output or model.with_suffix(".reduced.onnx")
    found = reduce_by(
        model,
        output,
        portable(options),
        chosen[0].removeprefix("--"),
        command=command_,
        trial_seconds=trial_seconds if slow is None else slow,
        most_bytes=above or 0,
        seconds=seconds,
        quiet=talk.quiet,
    )
    talk.tell(found.to_json() | {"file": output}, lambda: click.echo(describe(found, output)), always=True)
    return 0


def _check_dims(model: Path, dims: dict[str, int]) -> None:
    """Refuse a dimension that the model does not have, which would be the failure that is kept."""
    from memoptc.graph_files import read_any
    from memoptc.ir.diagnostics import MemoptcError
    from memoptc.runtime.inputs import by_symbol, check_symbols

    try:
        graph, _ = read_any(model)
    except MemoptcError:
        return  # reading it may be what fails
    check_symbols({value.name: value.type for value in graph.inputs}, by_symbol(graph, dims))


def portable(options: dict[str, Any]) -> dict[str, Any]:
    """Give options of `memoptc.compile` that hold in any folder."""
    return options | {"plugins": [str(Path(p).resolve()) if Path(p).exists() else p for p in options["plugins"]]}


def describe(found: Reduction, output: Path) -> str:
    """Say what is left, in one line."""
    left = "" if found.complete else ", time ended the search"
    return f"{output}: {found.nodes[1]} of {found.nodes[0]} nodes, after {found.trials} trials{left}; {found.failure}"


def reduce_by(
    model: Path,
    output: Path,
    options: dict[str, Any],
    look_for: str,
    *,
    command: str | None = None,
    trial_seconds: float = 60.0,
    most_bytes: int = 0,
    seconds: float | None = None,
    quiet: bool = False,
) -> Reduction:
    """Reduce a file; what is left is told on stderr as it goes on.

    Args:
        model: The model.
        output: Where to write.
        options: Of `memoptc.compile`, as plain values.
        look_for: `test`, `fails`, `differs`, `slow` or `above`.
        command: For `test`.
        trial_seconds: Longest time of a trial; for `slow`, the time that is too long.
        most_bytes: For `above`.
        seconds: Longest time in all.
        quiet: Say nothing.
    """
    from memoptc.ir.files import TemporaryFolder
    from memoptc.reduction import CommandCheck, CompileCheck, reduce_file
    from memoptc.reduction.check import Check, Trials

    if not model.is_file():
        raise click.UsageError(f"{model}: no such file")
    with TemporaryFolder() as folder:
        check: Check = (
            CommandCheck(command, trial_seconds)
            if command is not None
            else CompileCheck(Trials(Path(folder), trial_seconds), options, look_for, most_bytes)
        )
        return reduce_file(
            model,
            output,
            check,
            seconds=float("inf") if seconds is None else seconds,
            progress=lambda text: None if quiet else click.echo(text, err=True),
        )
