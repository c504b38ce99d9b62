"""Search for the smallest weights: the cheapest steps first, as far as the outputs on data allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.candidates import CandidateEvaluator
from memoptc.passes.precision._quantize.observe import pool_of
from memoptc.passes.precision._quantize.replay import adopt
from memoptc.report.model import Decision
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.data import Sample
from memoptc.runtime.held_out import FollowedBy, labelled_rows, samples_with
from memoptc.runtime.loss_bound import PairedHits, samples_for
from memoptc.runtime.metric import top1
from memoptc.runtime.moments import Aside
from memoptc.runtime.quality import MOST, Examiner

Levels = Mapping[int, int]
"""Site -> how far it is taken; sites that stay are left out."""

AFTER = 6
"""Steps behind the first that is too much that are tried one by one."""

ENOUGH = 16
"""Samples below which a gate is not to be relied on."""

_QUICK = 1.0
"""Decibels by which a quick look may miss what is asked for."""


@dataclass(frozen=True)
class Level:
    """One way to shrink a site.

    Args:
        noise: Noise to signal expected in the site's own result.
        saved: Bytes that go, or seconds.
    """

    noise: float
    saved: float


@dataclass(frozen=True)
class Step:
    """From one level of a site to a further one.

    Args:
        site: Which site.
        level: Index of the new level.
        price: Noise that comes, per byte or second that goes.
    """

    site: int
    level: int
    price: float


def steps(curves: Sequence[Sequence[Level]]) -> list[Step]:
    """Order the steps of all sites, the cheapest first; within a site, steps get dearer (lower convex hull)."""
    found: list[Step] = []
    for site, levels in enumerate(curves):
        at = Level(0.0, 0.0)
        rest = {i: level for i, level in enumerate(levels) if level.saved > 0}
        while rest:
            prices = {i: max(level.noise - at.noise, 0.0) / (level.saved - at.saved) for i, level in rest.items()}
            best = min(prices, key=lambda i: (prices[i], -rest[i].saved))
            at = rest[best]
            found.append(Step(site, best, prices[best]))
            rest = {i: level for i, level in rest.items() if level.saved > at.saved}
    return sorted(found, key=lambda step: step.price)


def furthest(ordered: Sequence[Step], good: Callable[[Levels], bool]) -> dict[int, int]:
    """Give the longest beginning of the steps that is good, and what can be added to it.

    Args:
        ordered: Steps, cheapest first.
        good: Measures whether levels are good enough; called about log2(n) + `AFTER` times.
    """
    low, high = 0, len(ordered) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(_levels(ordered[:middle])) else (low, middle)
    chosen = _levels(ordered[:low])
    blocked: set[int] = set()
    for step in ordered[low : low + AFTER]:
        more = chosen | {step.site: step.level}
        if step.site not in blocked and good(more):
            chosen = more
        else:
            blocked.add(step.site)
    return chosen


def _levels(chosen: Sequence[Step]) -> dict[int, int]:
    return {step.site: step.level for step in chosen}


class Gate:
    """Holds shrunken copies against the graph before any lossy pass, on validation data, else on samples kept aside.

    Args:
        name: Of the pass.
        graph: The top graph.
        context: Of the compile.
        min_sqnr: Least signal to difference of every output, in decibels; `None` for any.
        max_loss: Largest accepted loss of the metric; `None` for any.
        fitted: Whether calibration data are fitted to. Where they are not, they are looked at, too, if the labels of
            the validation data are too few to show so small a loss; as many as that takes.
        lost: Where calibration data are looked at, take enough for so many lost rows to be allowed.

    Raises:
        InputError: there is no data to measure on, or nothing is asked for.
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        context: Context,
        min_sqnr: float | None,
        max_loss: float | None,
        *,
        fitted: bool = True,
        lost: int = 0,
    ) -> None:
        if context.calibration is None:
            raise InputError(f"{name} needs data.", hint="Give some with --calibration.")
        if min_sqnr is None and max_loss is None:
            raise InputError(f"{name} was given no limit.", hint="Set min_sqnr or max_loss.")
        self.name, self.target = name, AccuracyTarget(min_sqnr, max_loss)
        metric = context.metric if context.metric is not None or max_loss is None else top1
        if context.artefacts.reference is None:
            # What an earlier lossy pass took of the limits is taken: all of them together have to keep to them.
            pool = pool_of(context)
            context.artefacts.reference = pool, pool.write(graph, "reference.onnx")
        pool, reference = context.artefacts.reference
        # What weights were fitted to says little of other data. A compile without validation data hands out its
        # calibration data as such.
        given = context.validation
        data: Iterable[Sample] = context.calibration
        if given is not None and given is not context.calibration:
            data = given
            if metric is top1 and max_loss is not None and not fitted:
                missing = min(samples_for(max_loss, lost), MOST) - sum(map(labelled_rows, given))
                data = FollowedBy(given, context.calibration, samples_with(context.calibration, missing))
        elif fitted:
            data = Aside(context.calibration)
        self.examiner = Examiner(reference, data, metric)
        self.trials = CandidateEvaluator(self.examiner, pool)
        self._rows = sum(map(labelled_rows, data)) if metric is top1 else 0

    def holds(self, graph: Graph) -> bool:
        """True if a copy is good enough."""
        least = self.target.min_sqnr
        if least is not None and self.trials.quick(graph).sqnr_db < least - _QUICK:
            return False
        return self.target.met_by(self.trials.until(graph, self._failed), self.examiner.metric)

    def _failed(self, hits: PairedHits) -> bool:
        """True if more is lost than is allowed even if the rows that are still to come make no difference."""
        loss = self.target.max_loss
        return loss is not None and hits.lost > hits.won and not hits._replace(rows=self._rows).allow(loss)

    def search(self, graph: Graph, curves: Sequence[Sequence[Level]], make: Callable[[Levels], Graph]) -> Levels:
        """Choose levels, and put what they make into the graph.

        Args:
            graph: The top graph.
            curves: The levels of each site.
            make: Gives a copy of the graph at some levels.
        """
        chosen = self.choose(curves, make)
        if chosen:
            adopt(graph, make(chosen))
        return chosen

    def choose(self, curves: Sequence[Sequence[Level]], make: Callable[[Levels], Graph]) -> Levels:
        """Choose levels, as `search`; the graph stays as it is."""
        return furthest(steps(curves), lambda levels: self.holds(make(levels)))

    def decide(self, graph: Graph, what: str, saved: int, context: Context) -> None:
        """Tell the report what was done, and what came of it."""
        quality = self.trials.full(graph)
        why = f"{quality.sqnr_db:.1f} dB reached on {quality.samples} samples"
        if quality.metric is not None:
            why += f", metric {self.examiner.metric:.4f} -> {quality.metric:.4f}"
        if quality.hits is not None and self.target.max_loss is not None:
            why += f" ({quality.hits})"
        context.decisions.append(Decision(self.name, what, why, gain_bytes=saved))
        rows = quality.samples if quality.hits is None else quality.hits.rows
        if rows < ENOUGH:
            context.warnings.append(
                f"{self.name} was held against {rows} samples only; what holds on them may not on others. "
                "More calibration data, or more with --validation, makes it firmer."
            )
