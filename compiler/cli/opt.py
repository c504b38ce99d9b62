"""`memoptc opt`: run passes on a `.mir` or `.onnx` file and print the result as `.mir`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoptc.cli.options import GroupedCommand, Talk, print_json, takes, talks, unused
from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import TemporaryFolder
from memoptc.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memoptc.manager import Instrument
    from memoptc.report.model import PassRecord
    from memoptc.rewrite.trace import Mismatch, Trace


@click.command("opt", cls=GroupedCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here (.mir or .onnx), not to stdout.")
@click.option("--full", is_flag=True, help="Print large weights, doc strings and metadata, too: text to read back.")
@click.option("--no-verify-each", is_flag=True, help="Do not verify the graph after each pass.")
@click.option("--print-after", metavar="NAMES", help="Show the graph after these passes (a,b or all), on stderr.")
@click.option("--print-changed", is_flag=True, help="Show what each pass changes, on stderr.")
@click.option(
    "--trace",
    "traced",
    multiple=True,
    metavar="RULE",
    help="Say for each op at which this rule might fit why it does not, on stderr; `all` for every rule.",
)
@takes("options", Options, "passes", "dims", "plugins", passes={"help": "Passes to run; a reproducer brings its own."})
@talks
def command(
    file: Path,
    output: Path | None,
    full: bool,
    no_verify_each: bool,
    print_after: str | None,
    print_changed: bool,
    traced: tuple[str, ...],
    options: dict[str, Any],
    talk: Talk,
) -> None:
    """Run passes on FILE and print the graph; statistics go to stderr."""
    from memoptc import registry
    from memoptc.graph_files import read_any
    from memoptc.ir.mir import write_mir
    from memoptc.ir.onnx_io import write_onnx
    from memoptc.ir.printer import print_graph
    from memoptc.manager import run_pipeline
    from memoptc.pass_base import Context
    from memoptc.pipeline import parse
    from memoptc.rewrite.trace import Trace
    from memoptc.runtime.data import Data
    from memoptc.runtime.inputs import by_symbol, check_symbols

    if output is not None:
        unused("with -o: files hold all weights", "full")
    registry.load_plugins(options["plugins"])
    graph, recipe = read_any(file)
    dims = by_symbol(graph, options["dims"])
    check_symbols({value.name: value.type for value in graph.inputs}, dims)
    calibration = None
    if recipe.calibration is not None:
        calibration = Data(recipe.calibration, {v.name: v.type for v in graph.inputs}, [v.name for v in graph.defaults])
    pipeline = parse(recipe.pipeline if options["passes"] is None else options["passes"])
    names = {pass_.name for pass_ in pipeline.passes()}
    if missing := [n for n in (print_after or "all").split(",") if n not in {*names, "all"}]:
        raise InputError(f"No pass {missing[0]!r} runs.", hint=f"These do: {', '.join(sorted(names)) or 'none'}.")
    instruments = _instruments(not no_verify_each, print_after, print_changed)
    with TemporaryFolder() as scratch:
        context = Context(
            level=recipe.level,
            target=recipe.target,
            dims={**recipe.dims, **dims},
            calibration=calibration,
            scratch=Path(scratch),
        )
        trace = Trace([] if "all" in traced else traced) if traced or talk.verbose else None
        if trace is not None:
            context.artefacts.trace = trace
        context.shapes(graph)
        records = run_pipeline(pipeline, graph, context, instruments)
    if not talk.quiet:
        _report_passes(context.warnings, records, with_times=talk.verbose)
    if trace is not None:
        _report_trace(trace, traced)
    files: list[Path] = []
    if output is not None:
        files = (write_onnx if output.suffix == ".onnx" else write_mir)(graph, output)
    if talk.as_json:
        facts = {"passes": records, "warnings": context.warnings, "files": files}
        text = {} if output else {"graph": print_graph(graph, weights="inline" if full else "elide", notes=full)}
        print_json(facts | text)
    elif output is None:
        click.echo(print_graph(graph, weights="inline" if full else "elide", notes=full), nl=False)


def _instruments(verify: bool, print_after: str | None, print_changed: bool) -> list[Instrument]:
    """Make the hooks that the options ask for."""
    from memoptc.instruments import PrintAfter, PrintChanged, VerifyEach

    found: list[Instrument] = [VerifyEach(types=True)] if verify else []
    if print_after is not None:
        chosen = print_after.split(",")
        found.append(PrintAfter(_to_stderr, () if "all" in chosen else chosen))
    if print_changed:
        found.append(PrintChanged(_to_stderr))
    return found


def _report_passes(warnings: Sequence[str], records: Sequence[PassRecord], *, with_times: bool) -> None:
    """Show warnings, and what each pass did; passes that did nothing in one line, unless times are asked for."""
    from memoptc.report.rows import statistics_text

    for warning in warnings:
        _to_stderr(f"warning: {warning}")
    idle: dict[str, None] = {}
    for record in records:
        did = statistics_text(record.stats)
        if did or with_times:
            took = f" ({record.seconds:.2f} s)" if with_times else ""
            _to_stderr(f"{record.name}: {did or 'nothing'}{took}")
        else:
            idle[record.name] = None
    if idle:
        _to_stderr(f"nothing: {', '.join(idle)}")


def _report_trace(trace: Trace, traced: tuple[str, ...]) -> None:
    """Show each op where rules were asked for by name; else one op for each rule and reason."""
    if missing := sorted(set(traced) - trace.seen - {"all"}):
        raise InputError(
            f"No rule {missing[0]!r} ran.",
            hint=f"These did: {', '.join(sorted(trace.seen))}." if trace.seen else "No pass here is made of rules.",
        )
    found = trace.mismatches()
    if traced:
        for mismatch in found:
            _to_stderr(f"{mismatch}")
        for name in sorted((trace.seen if "all" in traced else set(traced)) - {m.rule for m in found}):
            _to_stderr(f"{name}: nothing is left in the graph at which it might fit")
        return
    reasons: dict[tuple[str, str], list[Mismatch]] = {}
    for mismatch in found:
        reasons.setdefault((mismatch.rule, mismatch.kind), []).append(mismatch)
    for those in sorted(reasons.values(), key=len, reverse=True):
        more = f" (and {len(those) - 1} like it)" if len(those) > 1 else ""
        _to_stderr(f"{those[0]}{more}")


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)
