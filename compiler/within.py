"""Reaching a budget of the whole process: weights beside the model, then less and less for activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from memoptc.attempts import Attempt, Attempts
from memoptc.ir.diagnostics import BudgetError
from memoptc.measuring import Sizes
from memoptc.options import Options
from memoptc.report import Decision
from memoptc.report.rows import size
from memoptc.report.verdict import BUDGET
from memoptc.runtime.memory.need import NeedEstimate
from memoptc.steps import run

ROUNDS = 4
"""Pipelines with a budget of activations that are tried: what a process takes besides is only known afterwards."""

LESS = 0.9
"""Share of the last budget of activations that the next one is, at most."""

MATTERS = 0.1
"""Share of the need that smaller weights must save to be named as a way out."""

WAYS = ("stock", "session")
_NAMES = {"stock": "stock onnxruntime", "session": "Session"}


@dataclass(frozen=True)
class Held:
    """What an attempt needs, in the way of running that needs least of those that count.

    Args:
        way: `stock` or `session`.
        need: Bytes.
        how: `measured` or `predicted`.
    """

    way: str
    need: int
    how: str

    def __str__(self) -> str:
        return f"{size(self.need)} ({self.how}) in {_NAMES[self.way]}"


def held(sizes: Sizes, options: Options, how: str) -> Held:
    """Choose the way of running that a budget is kept in: the one asked for, else the smaller.

    Raises:
        BudgetError: what it needs in the way asked for is not known.
    """
    known = {way: need for way, need in zip(WAYS, sizes, strict=True) if need is not None}
    if options.run_with is not None:
        if options.run_with not in known:
            raise BudgetError(
                "The model does not run in Session, so that no budget can be kept there.", hint="Use --run-with stock."
            )
        known = {options.run_with: known[options.run_with]}
    way = min(known, key=known.__getitem__)
    return Held(way, known[way], how)


def reach(attempts: Attempts, attempt: Attempt, needs: Callable[[Attempt], Held]) -> Attempt:
    """Give an attempt whose process fits its budget; where none does, the one that came nearest last.

    Ends: at most one attempt with weights outside, and `ROUNDS` with less and less for activations.

    Args:
        attempts: Makes attempts; its options carry the budget.
        attempt: The first one.
        needs: Tells what an attempt needs.
    """
    budget = attempts.compilation.options.budget.process
    if budget is None or needs(attempt).need <= budget:
        return attempt
    compilation = attempts.compilation
    if compilation.options.external == "auto" and not attempt.choice.form.external:
        compilation = replace(compilation, options=replace(compilation.options, external="always"))
        attempts.compilation = compilation
        attempt = attempts.build(attempt.pipeline)
    options, calibrated = compilation.options, compilation.data.calibration is not None
    given: float = float("inf")
    for _ in range(ROUNDS if options.passes is None else 0):
        found = needs(attempt)
        if found.need <= budget:
            break
        given = min(given * LESS, _planned(attempt) * _share(found, attempt, budget))
        if given < 1:
            break
        options.progress(f"fitting activations into {size(int(given))}", None)
        asked = replace(options, level=max(options.level, 2), memory_budget=f"activations={int(given)}", run_with=None)
        attempt = attempts.build(run.pipeline(asked, calibrated))
        if asked.level > options.level:
            attempt.warnings.append(
                f"The budget took the passes of -O2; -O{options.level} has none that make activations smaller. What "
                f"-O{options.level} promises of the outputs is held all the same."
            )
    return attempt


def _planned(attempt: Attempt) -> int:
    return attempt.written.planned_peak_bytes or 0


def _share(found: Held, attempt: Attempt, budget: int) -> float:
    """The part of the activations' bytes that may stay: sessions hold more than the plan, by a factor of their own."""
    estimate = _estimate(found, attempt)
    activations = min(found.need, estimate.activations_bytes + estimate.workspace_bytes)
    return 1 - (found.need - budget) / activations if activations else 0.0


def _estimate(found: Held, attempt: Attempt) -> NeedEstimate:
    return attempt.written.estimates[WAYS.index(found.way)]


def check_process(attempt: Attempt, found: Held, options: Options) -> None:
    """Refuse a result whose process does not fit its budget; else say in which way of running it does.

    Raises:
        BudgetError: it does not; the message names what holds it, and what would help.
    """
    budget = options.budget.process
    if budget is None:
        return
    if found.need <= budget:
        attempt.decisions.append(
            Decision(BUDGET, f"kept in {_NAMES[found.way]}", f"{size(found.need)} of {size(budget)}, {found.how}")
        )
        return
    message = (
        f"The budget of {size(budget)} is out of reach: the process needs {found}{_parts(_estimate(found, attempt))}."
    )
    if options.force:
        attempt.warnings.append(f"{message} Written all the same (--force).")
        return
    raise BudgetError(message, hint=f"Nothing was written; {_way_out(_estimate(found, attempt), options)}")


def _parts(estimate: NeedEstimate) -> str:
    parts = {
        "weights": estimate.weights_bytes + estimate.mapped_bytes,
        "activations": estimate.activations_bytes + estimate.workspace_bytes,
        "loading and code": estimate.loading_bytes + estimate.ours_bytes,
    }
    return ": " + ", ".join(f"{name} {size(count)}" for name, count in parts.items()) + " by the memory model"


def _way_out(estimate: NeedEstimate, options: Options) -> str:
    other = "bind smaller sizes with --dim, or use --force."
    if options.target != "float32":
        return other
    saved = (estimate.weights_bytes + estimate.mapped_bytes) * 3 // 4
    if saved < MATTERS * estimate.need_bytes:
        return other
    return f"--target int8 would take about {size(estimate.need_bytes - saved)}; or {other}"
