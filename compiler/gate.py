"""The gates: what must hold before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import BudgetError, GateError
from memoptc.ir.taken import looked_into
from memoptc.levels import ANY_SLOWDOWN, SLOWDOWN
from memoptc.options import Options
from memoptc.report import Report
from memoptc.report.rows import size
from memoptc.runtime.memory.liveness import PeakReport, liveness, peak


def check_verification(report: Report, options: Options, find_culprit: Callable[[], str]) -> None:
    """Refuse a candidate whose outputs differ by more than allowed.

    Args:
        report: With the outcome of the proof.
        options: The options in force.
        find_culprit: Gives the pass (and rewrite) that broke the numbers, or `""`; called on failure only.

    Raises:
        GateError: the proof failed; the message names the worst output and the pass.
    """
    found = report.verification
    if found.get("passed") is not False:
        return
    worst = found.get("worst") or "an output"
    culprit = find_culprit()
    message = f"Verification failed: {worst}" + (f"; first broken by {culprit}." if culprit else ".")
    if options.force:
        report.warnings.append(f"{message} Written all the same (--force).")
        return
    raise GateError(
        message,
        hint="Nothing was written; leave the pass out with --passes, keep more layers in float, or use --force.",
    )


def promised_slowdown(options: Options) -> float:
    """Largest ratio of latencies that a compile promises: what was asked for, else the level's; any for a budget."""
    if options.max_slowdown is not None:
        return options.max_slowdown
    return ANY_SLOWDOWN if options.memory_budget is not None else SLOWDOWN.get(options.level, SLOWDOWN[2])


def check_slowdown(report: Report, options: Options) -> None:
    """Refuse a candidate that is slower than `max_slowdown` allows.

    Raises:
        GateError: it is.
    """
    if options.max_slowdown is None or not (report.control.measured and report.candidate.measured):
        return
    before, after = (s.measured["latency_ms"]["p50"] for s in (report.control, report.candidate) if s.measured)
    if before and after / before > options.max_slowdown:
        message = f"The result is {after / before:.2f} times as slow; at most {options.max_slowdown:g} was asked for."
        if options.force:
            report.warnings.append(f"{message} Written all the same (--force).")
            return
        raise GateError(message, hint="Use a lower level, allow more, or use --force.")


def check_budget(report: Report, graph: Graph, options: Options, dims: Mapping[str, int]) -> None:
    """Refuse a plan that does not fit into the memory budget.

    Raises:
        BudgetError: it does not; the message names the floor and the op that holds it there.
    """
    if options.memory_budget is None:
        return
    need = report.candidate.arena_bytes
    if need is None:
        need = report.candidate.planned_peak_bytes
    if need is not None and need <= options.memory_budget:
        return
    if need is None:
        message = "The planned memory is unknown, since some sizes are; the budget cannot be checked."
    else:
        graph = looked_into(graph)
        found = peak(graph, dims)
        floor = report.candidate.floor_bytes
        message = (
            f"The budget of {size(options.memory_budget)} is out of reach: the plan needs {size(need)}, its floor "
            f"is {size(floor)}, held there by {found.op_label}{_made_from(graph, dims, found)}."
        )
    if options.force:
        report.warnings.append(f"{message} Written all the same (--force).")
        return
    raise BudgetError(message, hint="Nothing was written; bind smaller sizes with --dim, or use --force.")


def _made_from(graph: Graph, dims: Mapping[str, int], found: PeakReport) -> str:
    """Which nodes of the original the one at the peak stands for, where a pass made it."""
    steps = liveness(graph, dims).steps
    loc = steps[found.step].loc
    if not loc.rules or not loc.nodes:
        return ""
    first, *others = loc.nodes
    return f", made from {first}" + (f" ... {others[-1]}" if others else "")
