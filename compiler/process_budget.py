"""A budget of the whole process: in which way of running it is kept, and what holds it where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memoptc.attempts import Attempt
from memoptc.ir.diagnostics import BudgetError
from memoptc.measuring import Sizes
from memoptc.options import Options
from memoptc.report import Decision
from memoptc.report.rows import limit_text, size
from memoptc.report.verdict import BUDGET
from memoptc.runtime.memory.need import NeedEstimate
from memoptc.runtime.sizes import RESOLUTION
from memoptc.samples import Inputs

MARGIN = 1.2
"""What predicted needs are multiplied by before they are held against a budget. Of `benchmarks/need_model.py`'s models,
as exported and at -O2, the lowest prediction was 0.89 of the need in stock onnxruntime, and 0.85 in Session."""

MATTERS = 0.1
"""Share of the need that smaller weights must save to be named as a way out."""

WAYS = ("stock", "session")
_NAMES = {"stock": "stock onnxruntime", "session": "Session"}


@dataclass(frozen=True)
class Held:
    """Need of an attempt, in the way of running that needs least of those that count.

    Args:
        way: `stock` or `session`.
        bytes: Measured or predicted.
        how: `measured` or `predicted`.
        other: Bytes in the other way of running; `None` where that is not known.
    """

    way: str
    bytes: int
    how: str
    other: int | None = None

    @property
    def need(self) -> int:
        """Bytes that a budget must hold: those of `bytes`, and what the next process may need more."""
        return _counted(self.bytes, self.how)

    @property
    def elsewhere(self) -> tuple[str, int | None]:
        """The other way of running, and the bytes that a budget must hold there."""
        way = WAYS[1 - WAYS.index(self.way)]
        return way, None if self.other is None else _counted(self.other, self.how)

    @property
    def sum(self) -> str:
        """Say what `need` is made of."""
        measured = f"{size(RESOLUTION)} by which processes differ"
        more = measured if self.how == "measured" else f"{MARGIN - 1:.0%} by which predictions may be low"
        return f"{self.how} {size(self.bytes)} and {more}"

    def __str__(self) -> str:
        return f"{size(self.need)} ({self.sum}) in {_NAMES[self.way]}"


def _counted(need: int, how: str) -> int:
    return need + RESOLUTION if how == "measured" else math.ceil(need * MARGIN)


def held(sizes: Sizes, options: Options, how: str) -> Held:
    """Choose the way of running that a budget is kept in: the one asked for, else the smaller.

    Raises:
        BudgetError: what it needs in the way asked for is not known.
    """
    known = {way: need for way, need in zip(WAYS, sizes, strict=True) if need is not None}
    way = options.run_with or min(known, key=known.__getitem__)
    if way not in known:
        raise BudgetError(
            "The model does not run in Session, so that no budget can be kept there.", hint="Use --run-with stock."
        )
    return Held(way, known[way], how, known.get(WAYS[1 - WAYS.index(way)]))


def estimate_of(found: Held, attempt: Attempt) -> NeedEstimate:
    """The prediction for the way of running in which a budget is held."""
    return attempt.written.estimates[WAYS.index(found.way)]


def check_process(attempt: Attempt, found: Held, options: Options, data: Inputs) -> None:
    """Refuse a result whose process does not fit its budget; else say in which way of running it does.

    Args:
        attempt: What is judged.
        found: What it needs.
        options: The options in force, with the budget.
        data: The extents that were planned for, and those that both models ran at.

    Raises:
        BudgetError: it does not; the message names what holds it, and what would help.
    """
    budget = options.budget.process
    if budget is None:
        return
    estimate = estimate_of(found, attempt)
    unknown = estimate.unknown if found.how == "predicted" else ()
    if unknown:
        message = (
            f"Whether the budget of {limit_text(budget)} is kept cannot be predicted: {len(unknown)} values have no "
            f"known size, such as {unknown[0]!r}."
        )
        hint = "bind sizes with --dim, leave out --no-measure, or use --force."
    elif found.need > budget:
        message = f"The budget of {limit_text(budget)} is out of reach: the process needs {found}{_parts(estimate)}."
        hint = _way_out(estimate, found, options, open_sizes=bool(data.dims))
    else:
        why = f"{found.sum}, of {limit_text(budget)}"
        attempt.decisions.append(Decision(BUDGET, f"kept in {_NAMES[found.way]}", why))
        attempt.warnings += _where_it_is_not_kept(found, options, data, estimate)
        return
    if not options.force:
        raise BudgetError(message, hint=f"Nothing was written; {hint}")
    attempt.warnings.append(f"{message} Written all the same (--force).")


def _where_it_is_not_kept(found: Held, options: Options, data: Inputs, estimate: NeedEstimate) -> list[str]:
    """Say in which other way of running, and at which other extents, the process is above its budget."""
    budget = options.budget.process
    assert budget is not None
    warnings = []
    way, need = found.elsewhere
    if options.run_with is None and (need is None or need > budget):
        there = "it does not run" if need is None else f"it needs {size(need)} ({found.how})"
        warnings.append(
            f"The budget is kept in {_NAMES[found.way]} only: in {_NAMES[way]} {there}; --run-with {way} asks for it."
        )
    at, planned = data.check, _counted(estimate.need_bytes, "predicted")
    if found.how == "measured" and at is not None and at != data.dims and planned > budget:
        sizes, large = (", ".join(f"{name}={extent}" for name, extent in d.items()) for d in (at, data.dims))
        warnings.append(
            f"The budget is kept at {sizes}; at {large} the process is predicted to need up to {size(planned)}: "
            "--dim says which sizes it is to hold for."
        )
    return warnings


def _parts(estimate: NeedEstimate) -> str:
    parts = {
        "weights": estimate.weights_bytes + estimate.mapped_bytes,
        "activations": estimate.activations_bytes + estimate.workspace_bytes,
        "loading and code": estimate.loading_bytes + estimate.ours_bytes,
    }
    return ": " + ", ".join(f"{name} {size(count)}" for name, count in parts.items()) + " by the memory model"


def _way_out(estimate: NeedEstimate, found: Held, options: Options, *, open_sizes: bool) -> str:
    """Ways out for the user, the nearest first."""
    assert options.budget.process is not None
    ways = []
    way, need = found.elsewhere
    if need is not None and need <= options.budget.process:
        ways.append(f"--run-with {way} needs {size(need)}")
    saved = (estimate.weights_bytes + estimate.mapped_bytes) * 3 // 4
    if options.target == "float32" and saved >= MATTERS * estimate.need_bytes:
        enough = "" if found.need - saved <= options.budget.process else ", which is not enough either"
        ways.append(f"--target int8 would take about {size(found.need - saved)}{enough}")
    if options.max_slowdown is not None:
        ways.append(f"allow more than --max-slowdown {options.max_slowdown:g}")
    if found.how == "predicted":
        ways.append("leave out --no-measure, which holds the budget by what is measured")
    ways += ["bind smaller sizes with --dim"] if open_sizes else []
    return "; or ".join([*ways, "use --force."])
