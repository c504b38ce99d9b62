"""Terminal output: progress on stderr, the before/after table on stdout."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from memoptc.report import Report
from memoptc.report.chart import sparkline
from memoptc.report.rows import before_after, size, statistics_text
from memoptc.report.verdict import NOT_CHOSEN, planned_for, proof

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.table import Table

    from memoptc.cli.options import Talk


class Progress:
    """A progress bar on a terminal, nothing in a pipe. Call it with a step's name and how far along it is.

    Args:
        quiet: Never show anything.
        style: `auto`; `plain` for a line per step, in a pipe too; `none`.
    """

    def __init__(self, quiet: bool, style: str = "auto") -> None:
        self._bar: Bar | None = None
        self._plain, self._step = style == "plain" and not quiet, ""
        if quiet or style != "auto" or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("reading", total=1.0)

    def __call__(self, step: str, share: float | None = None) -> None:
        """Show `step`; `share` is how much of the whole is done, 0 to 1."""
        if self._bar is not None:
            from rich.markup import escape

            self._bar.update(self._task, description=escape(step), completed=share if share is not None else None)
        elif self._plain and step != self._step:
            self._step = step
            told = "" if share is None else f"{share:4.0%} "
            print(f"memoptc: {told}{step}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def tell_result(talk: Talk, report: Report, written: list[Path]) -> None:
    """Print what a compile came to, as `talk` says, and its warnings on stderr."""
    if report.warnings:
        from rich.console import Console
        from rich.markup import escape

        errors = Console(stderr=True, highlight=False)
        for warning in report.warnings:
            errors.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    talk.tell(
        lambda: report.to_json() | {"files": written}, lambda: _print_result(report, written, verbose=talk.verbose)
    )


def _print_result(report: Report, written: list[Path], *, verbose: bool) -> None:
    """Print the verdict, the before/after table, the proof, and what was written."""
    console = result_console()
    _print_verdict(report, console)
    console.print(result_table(report, parts=verbose))
    _print_curves(report, console)
    console.print(proof(report), soft_wrap=True)
    if report.precision is not None and _differ(report.precision["layers"]):
        console.print(layer_table(report.precision, all_layers=verbose))
    if verbose:
        console.print(pass_table(report))
        for decision in report.decisions:
            console.print(f"{decision.step}: {decision.what}, because {decision.why}", soft_wrap=True, markup=False)
    for decision in report.decisions if not verbose else ():
        if decision.step == NOT_CHOSEN:
            console.print(f"{decision.step}: {decision.what} ({decision.why})", soft_wrap=True, markup=False)
    for path in written:
        console.print(f"wrote {path}{_note(path)}", soft_wrap=True, markup=False)
    console.print(f"next: {_next(report, written)}", soft_wrap=True, markup=False)


_NOTES = {
    ".data": "weights; it belongs beside the model",
    ".session.json": "how Session runs the model",
    ".worst.npz": "the sample on which outputs differ most; it holds your data",
}
"""What files written beside a model are, by how their names end."""


def _next(report: Report, written: list[Path]) -> str:
    """Where to look next: what the result leaves open first, then where the rest of it stands."""
    checked, found = report.verification, []
    if checked.get("mode", "off") == "off" or (checked.get("inputs") == "random" and not checked.get("bit_exact")):
        found.append("--validation DATA compares both models on your own inputs")
    if not report.control.measured:
        found.append("without --no-measure both are measured")
    if not any(path.suffix in (".html", ".md", ".json") and "session" not in path.suffixes for path in written):
        found.append("--report FILE.html keeps all of this as a page")
    return "; ".join([*found, "-v says what each pass did and what the need is made of"])


def _note(path: Path) -> str:
    return next((f" ({note})" for ending, note in _NOTES.items() if path.name.endswith(ending)), "")


def _print_verdict(report: Report, console: Console) -> None:
    """Print the verdict in words; what got worse below it, in red."""
    from rich.markup import escape

    sizes = planned_for(report)
    if sizes:
        console.print(sizes, soft_wrap=True, markup=False)
    if report.decoder:
        console.print(f"decoder: {report.decoder}", soft_wrap=True, markup=False)
    failed = report.verification.get("passed") is False
    console.print(f"[bold{' red' if failed else ''}]{escape(report.verdict)}[/]", soft_wrap=True)
    for figure in report.worse:
        console.print(f"[red]worse: {escape(str(figure))}[/]", soft_wrap=True)


def _differ(rows: Sequence[Mapping[str, Any]]) -> bool:
    """True if layers are in several states, or all in float."""
    return len({row["decision"] for row in rows}) > 1 or any(row["decision"] == "float" for row in rows)


def _print_curves(report: Report, console: Console) -> None:
    """Planned bytes over the run, before and after, to one scale."""
    curves = [(n, s.curve.live_bytes) for n, s in (("before", report.control), ("after", report.candidate)) if s.curve]
    top = max((max(c, default=0) for _, c in curves), default=0)
    if len(curves) == 2 and top:
        for name, curve in curves:
            console.print(f"{name:>7} {sparkline(curve, top)} {size(max(curve))}", markup=False, soft_wrap=True)


def result_console() -> Console:
    """A console on stdout whose tables are not cut in a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = 120
    return console


def result_table(report: Report, *, parts: bool) -> Table:
    """The before/after table.

    Args:
        report: The report.
        parts: With what each need is made of.
    """
    from rich.markup import escape
    from rich.table import Table

    title = f"{Path(report.model.get('path') or 'model').name}  -O{report.options.get('level')}"
    table = Table(title=f"{title} --target {report.options.get('target')}", title_justify="left")
    table.add_column("")
    for heading in ("before", "after", ""):
        table.add_column(heading, justify="right")
    for row in before_after(report):
        if row.part and not parts:
            continue
        style = "" if row.better is None else "green" if row.better else "red"
        table.add_row(escape(row.what), row.before, row.after, f"[{style}]{row.ratio}[/]" if style else row.ratio)
    return table


def pass_table(report: Report) -> Table:
    """One line per pass: time, nodes, what it did."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="passes", title_justify="left")
    for heading in ("pass", "seconds", "nodes", "what it did"):
        table.add_column(heading, justify="right" if heading in ("seconds", "nodes") else "left")
    for p in report.passes:
        did = escape(statistics_text(p.stats))
        table.add_row(p.name, f"{p.seconds:.2f}", f"{p.nodes_before} → {p.nodes_after}", did)
    return table


def layer_table(precision: dict[str, Any], *, all_layers: bool) -> Table:
    """One line per layer: its weights, what it does to the output alone, what was decided.

    Args:
        precision: As in the report.
        all_layers: Also those that are in the state of most.
    """
    from rich.markup import escape
    from rich.table import Table

    reached, rows = precision["reached"], precision["layers"]
    table = Table(
        title=f"layers; {reached['setting']}: {reached['sqnr_db']:.1f} dB"
        + (f" on {reached['samples']} samples" if reached["samples"] else ""),
        title_justify="left",
    )
    only_blocks = bool(rows) and all(row.get("blocks_alone_db") == row["alone_db"] for row in rows)
    blocks = not only_blocks and any("blocks_alone_db" in row for row in rows)
    weights = any(row["weights_alone_db"] != row["alone_db"] for row in rows)
    columns = (
        ["4-bit weights dB" if only_blocks else "alone dB"]
        + ["8-bit weights dB"] * weights
        + ["4-bit weights dB"] * blocks
    )
    for heading in ("layer", "operator", "weights", *columns, "decision"):
        table.add_column(heading, justify="left" if heading in ("layer", "operator", "decision") else "right")
    usual = usual_state(rows)
    for row in rows:
        if all_layers or row["decision"] != usual:
            about = "" if row["measured"] else "~"
            figures = [row["alone_db"]] + [row["weights_alone_db"]] * weights
            figures += [row.get("blocks_alone_db")] * blocks
            cells = ["" if figure is None else f"{about}{figure:.1f}" for figure in figures]
            table.add_row(escape(row["layer"]), row["op"], size(row["bytes"]), *cells, row["decision"])
    return table


def usual_state(rows: Sequence[Mapping[str, Any]]) -> str:
    """The state that the target is named for, where a layer has it; else that of most layers."""
    states = Counter(row["decision"] for row in rows)
    named = [state for state in ("integer", "4-bit weights") if states[state]]
    return named[0] if named else next((state for state, _ in states.most_common(1)), "integer")
