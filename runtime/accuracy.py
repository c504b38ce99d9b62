"""Accuracy targets: by what a model is judged that a pass made coarser on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from memoptc.runtime.compare import Totals
from memoptc.runtime.loss_bound import SLACK
from memoptc.runtime.quality import Quality, decibels


@dataclass(frozen=True)
class AccuracyTarget:
    """Least accuracy of a lossy candidate, over all samples; what is `None` is not asked for.

    Args:
        min_sqnr: Signal to difference of every output, in decibels; of integers, from the part that differs.
        max_loss: How much the metric (top-1 accuracy on labels, or the user's own) may fall.
        max_disagreement: Share of the rows of scores whose likeliest class may be another than the original's.
    """

    min_sqnr: float | None = None
    max_loss: float | None = None
    max_disagreement: float | None = None

    def fault(self, totals: Totals) -> str:
        """Say why one output misses the target; `""` where it meets it."""
        if self.min_sqnr is not None:
            found = decibels(1.0 - totals.agreement) if totals.lossless else totals.sqnr_db
            if not found >= self.min_sqnr:  # NaN, where squares are infinite, is not enough either
                return f"SQNR {found:.1f} dB, {self.min_sqnr:g} dB are asked for"
        agreement = totals.agreement if totals.lossless else totals.top1_agreement
        if self.max_disagreement is not None and agreement is not None:
            if 1.0 - agreement > self.max_disagreement + SLACK:
                most = self.max_disagreement
                return f"another likeliest class in {1 - agreement:.2%} of the rows, {most:.2%} allowed"
        return ""

    def met_by(self, quality: Quality, metric: float | None, margin: float = 0.0) -> bool:
        """Say whether a candidate of a search meets the target.

        A loss of top-1 accuracy has to be shown (`PairedHits.allow`); one of another metric is taken as measured.

        Args:
            quality: Of the candidate, measured.
            metric: The original's own.
            margin: Decibels to spare.
        """
        if self.min_sqnr is not None and not quality.sqnr_db >= self.min_sqnr + margin:
            return False
        if self.max_loss is None:
            return True
        if quality.hits is not None:
            return quality.hits.allow(self.max_loss)
        assert metric is not None
        assert quality.metric is not None
        return metric - quality.metric <= self.max_loss + SLACK

    def loss_fault(self, accuracy: Mapping[str, Any] | None) -> str:
        """Say why the measured metric misses the target; `""` where it meets it or nothing is asked of it."""
        if self.max_loss is None:
            return ""
        if accuracy is None:
            return "a loss of accuracy is limited, but the data has no labels that fit an output"
        before, after = accuracy["control"], accuracy["candidate"]
        if before - after <= self.max_loss + SLACK:
            return ""
        return f"{accuracy.get('metric', 'accuracy')} fell from {before:.4f} to {after:.4f}, {self.max_loss:g} allowed"

    def __str__(self) -> str:
        parts = [] if self.min_sqnr is None else [f"at least {self.min_sqnr:g} dB"]
        parts += [] if self.max_loss is None else [f"at most {self.max_loss:g} of the metric lost"]
        parts += [] if self.max_disagreement is None else [f"at most {self.max_disagreement:.2%} disagreement"]
        return ", ".join(parts) or "nothing asked for"


def combined(targets: Iterable[AccuracyTarget]) -> AccuracyTarget | None:
    """Give the target of a model that several passes made coarser, one after the other; `None` without any.

    Passes with `min_sqnr` or `max_loss` are all held against the graph before the first of them, so the loosest holds
    in the end. SQNR says nothing where one of them asks for none (an early exit gives other scores by design).
    """
    found = list(targets)
    if not found:
        return None
    ratios = [t.min_sqnr for t in found]
    losses = [t.max_loss for t in found if t.max_loss is not None]
    disagreements = [t.max_disagreement for t in found if t.max_disagreement is not None]
    return AccuracyTarget(
        None if None in ratios else min(r for r in ratios if r is not None),
        max(losses, default=None),
        sum(disagreements) if disagreements else None,
    )
