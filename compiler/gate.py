"""The gates: what must hold before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memoptc.attempts import Attempt
from memoptc.bisect import Culprit
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import BudgetError, ProofError
from memoptc.measuring import Needs, Sizes, Times
from memoptc.options import Options
from memoptc.report.rows import limit_text, size
from memoptc.runtime.configuration import SESSION
from memoptc.runtime.memory.liveness import PeakReport, liveness, peak
from memoptc.runtime.sizes import GROWTH, PREDICTED, RESOLUTION, grown
from memoptc.runtime.slowdown import TICK_MS


def check_verification(attempt: Attempt, options: Options, find_culprit: Callable[[], Culprit]) -> None:
    """Refuse a candidate whose outputs differ by more than allowed.

    Args:
        attempt: With the outcome of the proof.
        options: The options in force.
        find_culprit: Gives the pass (and rewrite) that broke the numbers; called on failure only.

    Raises:
        ProofError: the proof failed; the message names the worst output and the pass.
    """
    found = attempt.verification
    if found is None or not found.failed:
        return
    worst = found.worst or "an output"
    culprit = find_culprit()
    message = f"Verification failed: {worst}" + (f"; first broken by {culprit}." if culprit.pass_ else ".")
    if options.force:
        attempt.warnings.append(f"{message} Written all the same (--force).")
        return
    real = "judge it on real inputs with --validation, " if found.inputs == "random" else ""
    raise ProofError(
        message,
        hint=f"Nothing was written; {real}leave the pass out with --passes, keep more layers in float, or use --force.",
    )


@dataclass(frozen=True)
class Broken:
    """A promise that a candidate breaks.

    Args:
        what: The figure, such as `need in stock onnxruntime`.
        before: The original's.
        after: The candidate's.
        bound: Largest ratio that is allowed.
        unit: `bytes` or `ms`.
        in_session: Whether it is a figure of `Session`, which other tiers may mend, or of stock onnxruntime.
    """

    what: str
    before: float
    after: float
    bound: float
    unit: str
    in_session: bool = False

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else float("inf")

    def clause(self) -> str:
        """Say it as part of a sentence."""
        a, b = (size(v) if self.unit == "bytes" else f"{v:.3g} ms" for v in (self.before, self.after))
        return f"{self.what} is {b} instead of {a} ({self.ratio:.2f}; at most {self.bound:g} is promised)"

    def sentence(self) -> str:
        """Say it as a sentence."""
        text = self.clause()
        return f"{text[0].upper()}{text[1:]}."


def broken_needs(before: Sizes, after: Sizes, how: str = "", resolution: int = RESOLUTION) -> list[Broken]:
    """Compare what two models need, in bytes: in stock onnxruntime and in `Session`, `None` if not known there.

    In `Session` the candidate is held to the larger of the original's two needs: what importing `Session` itself takes
    is the same for both, and no decision of a compile changes it.
    """
    found = []
    if grown(before[0], after[0], resolution):
        found.append(Broken(f"{how}need in stock onnxruntime", before[0], after[0], GROWTH, "bytes"))
    if before[1] is not None and after[1] is not None:
        most = max(before[0], before[1])
        if grown(most, after[1], resolution):
            found.append(Broken(f"{how}need in Session", most, after[1], GROWTH, "bytes", in_session=True))
    return found


OWN = 1 << 20
"""Bytes by which need in `Session` may exceed that in stock onnxruntime: what importing it takes."""


def more_in_session(needs: Needs) -> list[Broken]:
    """Compare what a model needs in `Session` with what the same one needs in stock onnxruntime."""
    stock, session = needs.sizes
    if session is None or not grown(stock, session, OWN):
        return []
    return [Broken("need in Session", stock, session, GROWTH, "bytes", in_session=True)]


SMALL, SHARE = PREDICTED, 1024
"""Bytes by which the need at small extents may grow, and what part of that which is saved at the planned ones it may be
where that is more: many a user runs small ones, but a gigabyte at large ones is worth a megabyte of code and nodes."""


def granted_at_small(before: Sizes, after: Sizes | None) -> int:
    """Give the bytes by which the need at small extents may grow, by those that two models are predicted to need."""
    return SMALL if after is None else max(SMALL, (before[0] - after[0]) // SHARE)


def broken_at_small(before: Sizes, after: Sizes, extents: Mapping[str, int], granted: int = SMALL) -> list[Broken]:
    """Compare what two models are predicted to need at the smallest extents of a dynamic model."""
    at = ", ".join(f"{name}={extent}" for name, extent in extents.items())
    return broken_needs(before, after, f"at {at} predicted ", granted)


def broken_latency(times: Times, bound: float) -> list[Broken]:
    """Compare latencies, in stock onnxruntime and in `Session`; of a decoder those of a step, too.

    Noise breaks no promise; nor does what calling `Session` takes with any model, the original included.
    """
    found = []
    sides = [("latency", times, times.after), ("latency in Session", times, times.session)]
    if times.step is not None:
        sides.append(("latency of a decoding step", times.step, times.step.after))
    for what, turns, side in sides:
        if side is None:
            continue
        before, slowdown = turns.control_of(side).latency_ms["p50"], turns.slowdown_of(side)
        in_session = side is times.session
        granted = TICK_MS + (times.calling_ms if in_session else 0.0)
        if slowdown.breaks(bound) and side.latency_ms["p50"] - bound * before > granted:
            found.append(Broken(what, before, before * slowdown.ratio, bound, "ms", in_session=in_session))
    return found


def refusal(broken: Sequence[Broken], kept: Sequence[str] = ()) -> tuple[str, str]:
    """Give the message, and how to go on, where nothing that could be taken back helps.

    Args:
        broken: What is worse than promised.
        kept: Names of passes that changed the model and are never taken back, since they were asked for.
    """
    what = "; ".join(b.clause() for b in broken)
    those, leave = "", ""
    if kept:
        those, leave = f" but {', '.join(kept)}", f"leave {', '.join(kept)} out, "
    return (
        f"The result is worse than the original: {what}, also with every pass taken back{those}.",
        f"Nothing was written; {leave}use the original as it is, allow more (--max-slowdown), or use --force.",
    )


def check_budget(attempt: Attempt, options: Options, dims: Mapping[str, int]) -> None:
    """Refuse a plan whose activations, or whose weights, do not fit into their budget.

    Raises:
        BudgetError: it does not; the message names the floor and the op that holds it there.
    """
    _check_weights(attempt, options)
    budget = options.budget.activations
    if budget is None:
        return
    plan, floor = attempt.written.plan, attempt.written.planned_peak_bytes
    need = floor if plan is None else plan.arena_bytes
    recorded, unknown = attempt.contract.peaks.get(str(SESSION), 0), attempt.written.peak.unknown
    hint = "Nothing was written; bind smaller sizes with --dim, or use --force."
    if need is not None and need > budget:
        found = peak(attempt.graph, dims)
        message = (
            f"The budget of {limit_text(budget)} for activations is out of reach: the plan needs {size(need)}, "
            f"its floor is {size(floor)}, held there by {found.op_label}{_made_from(attempt.graph, dims, found)}."
        )
    elif unknown and recorded > budget:
        message = (
            f"The budget of {limit_text(budget)} for activations is out of reach: a run allocated {size(recorded)}."
        )
    elif (unknown or need is None) and not recorded:
        names = f" of {len(unknown)} values, such as {unknown[0]!r}," if unknown else ""
        message = f"The planned memory is unknown, since some sizes{names} are; the budget cannot be checked."
        hint = "Nothing was written; bind sizes with --dim, leave out --no-measure, or use --force."
    else:
        if recorded > budget:
            attempt.warnings.append(
                f"The plan keeps the budget of {limit_text(budget)} for activations; a run in Session allocated "
                f"{size(recorded)}."
            )
        return
    if options.force:
        attempt.warnings.append(f"{message} Written all the same (--force).")
        return
    raise BudgetError(message, hint=hint)


def _check_weights(attempt: Attempt, options: Options) -> None:
    budget = options.budget.weights
    if budget is None or attempt.written.weight_bytes <= budget:
        return
    message = f"The weights take {size(attempt.written.weight_bytes)}, their budget is {limit_text(budget)}."
    if options.force:
        attempt.warnings.append(f"{message} Written all the same (--force).")
        return
    raise BudgetError(
        message, hint="Nothing was written; store them smaller with --target int8 or int4, or use --force."
    )


def _made_from(graph: Graph, dims: Mapping[str, int], found: PeakReport) -> str:
    """The original's nodes that the node at the peak stands for, where a pass made it."""
    steps = liveness(graph, dims).steps
    loc = steps[found.step].loc
    if not loc.rules or not loc.nodes:
        return ""
    first, *others = loc.nodes
    return f", made from {first}" + (f" ... {others[-1]}" if others else "")
