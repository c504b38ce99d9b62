"""Heads for exits: linear maps from pooled hidden states to the model's own scores, and how far to trust them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FOLDS = 4
"""Parts of the data; the scores of each are those of a head that was fitted to the others."""

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Parts of the mean squared feature that are added to it, tried on the folds."""


@dataclass(frozen=True)
class Head:
    """A linear map `[batch, features] -> [batch, classes]`, and what it gives on samples that it was not fitted to.

    Args:
        weight: `[features, classes]`.
        bias: `[classes]`.
        confidence: Per sample, the probability of the likeliest class less that of the second, in [0, 1].
        agrees: Per sample, whether the likeliest class is the model's.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    confidence: Floats
    agrees: npt.NDArray[np.bool_]

    def part(self, samples: slice) -> Head:
        """The same head, with some of the samples."""
        return replace(self, confidence=self.confidence[samples], agrees=self.agrees[samples])


def fit_head(features: Floats, scores: Floats) -> Head:
    """Fit scores by ridge regression in closed form (Hoerl and Kennard, 1970), the damping chosen on folds.

    Args:
        features: `[samples, features]`.
        scores: The model's own, `[samples, classes]`.
    """
    parts = np.arange(len(features)) % FOLDS
    best: tuple[float, Floats, float] | None = None
    for damping in DAMPINGS:
        found = np.zeros_like(scores)
        for fold in range(FOLDS):
            weight, bias = _ridge(features[parts != fold], scores[parts != fold], damping)
            found[parts == fold] = features[parts == fold] @ weight + bias
        error = float(np.square(found - scores).sum())
        if best is None or error < best[0]:
            best = (error, found, damping)
    assert best is not None
    weight, bias = _ridge(features, scores, best[2])
    return Head(
        weight.astype(np.float32),
        bias.astype(np.float32),
        confidence_of(best[1]),
        best[1].argmax(1) == scores.argmax(1),
    )


def _ridge(features: Floats, scores: Floats, damping: float) -> tuple[Floats, Floats]:
    mean, middle = features.mean(0), scores.mean(0)
    centered = features - mean
    gram = centered.T @ centered
    gram[np.diag_indices_from(gram)] += damping * max(float(np.trace(gram)) / len(gram), 1e-12)
    weight = np.linalg.solve(gram, centered.T @ (scores - middle))
    return weight, middle - mean @ weight


def confidence_of(scores: Floats) -> Floats:
    """Probability of the likeliest class less that of the second, per row."""
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    ordered = np.sort(shifted / shifted.sum(1, keepdims=True), axis=1)
    found: Floats = ordered[:, -1] - ordered[:, -2]
    return found


def threshold_for(head: Head, among: npt.NDArray[np.bool_], wrong: int) -> float | None:
    """Give the lowest confidence at which at most so many samples leave with another class than the model's.

    Args:
        head: Of the exit.
        among: The samples that get as far as the exit.
        wrong: How many of them may.

    Returns:
        The threshold; `None` when no sample may leave.
    """
    confidence, agrees = head.confidence[among], head.agrees[among]
    order = np.argsort(-confidence, kind="stable")
    errors = np.cumsum(~agrees[order])
    allowed = np.flatnonzero(errors <= wrong)
    if not len(allowed):
        return None
    # Samples of equal confidence leave together.
    last = int(allowed[-1])
    while last >= 0 and last + 1 < len(order) and confidence[order[last + 1]] == confidence[order[last]]:
        last -= 1
    return None if last < 0 else float(confidence[order[last]])
