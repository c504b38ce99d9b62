"""Metrics of a model's outputs against labels: top-1 accuracy, perplexity, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.runtime.perplexity import PERPLEXITY, Perplexity
from memoptc.runtime.user_functions import load_function


@dataclass(frozen=True)
class Outcome:
    """One sample as a metric sees it.

    Args:
        feed: Input name -> value.
        outputs: Output name -> value, as the model under examination gives them.
        label: The right answer, or `None`.
    """

    feed: Mapping[str, Any]
    outputs: Mapping[str, Any]
    label: npt.NDArray[Any] | None


Metric: TypeAlias = Callable[[Iterable[Outcome]], float]
"""From the samples of a data set to a figure of which more is better."""


def top1(outcomes: Iterable[Outcome]) -> float:
    """Part of labels that are where the largest score is, in the first output with scores for each label.

    Raises:
        InputError: no sample has labels, or no output has scores for them.
    """
    right = seen = 0
    unfit = ""
    for outcome in outcomes:
        hits = hits_of(outcome.outputs, outcome.label)
        right, seen = right + int(hits.sum()), seen + hits.size
        if outcome.label is not None and not hits.size:
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in outcome.outputs.items())
            unfit = f" (labels {list(outcome.label.shape)} of {outcome.label.dtype}, outputs {shapes})"
    if not seen:
        raise InputError(
            f"The data has no labels that fit an output{unfit}, so accuracy cannot be measured.",
            hint="Add an array `labels` of class numbers to the data, or use --metric module:function.",
        )
    return right / seen


def hits_of(outputs: Mapping[str, Any], label: Any) -> npt.NDArray[np.bool_]:
    """Say which labels are where the largest score is, in the first output with scores for each label.

    Classes lie along the axis that leaves the shape of the labels, axes of extent 1 aside: axis 1 (`[N, classes, 1, 1]`
    for labels `[N]`, `[N, classes, H, W]` for `[N, H, W]`) or the last one (`[N, T, classes]` for `[N, T]`), which goes
    first up to three axes.

    Args:
        outputs: Output name -> value.
        label: Class numbers of any integer dtype; negative ones are left out.

    Returns:
        `[labels]`; none where there is no label, or no output that fits.
    """
    labels = np.atleast_1d(np.asarray(label))
    if labels.dtype.kind in "iu":
        for value in outputs.values():
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
                axis = _class_axis(value.shape, labels)
                if axis is not None:
                    flat = labels.reshape(-1)
                    return np.asarray((np.argmax(value, axis).reshape(-1) == flat)[flat >= 0], np.bool_)
    return np.zeros(0, np.bool_)


def _class_axis(scores: tuple[int, ...], labels: npt.NDArray[Any]) -> int | None:
    """Axis of an output's classes, where it has scores for each label."""
    last, wanted = len(scores) - 1, _long(labels.shape)
    for axis in (last, 1) if len(scores) <= 3 else (1, last):
        if 0 <= axis <= last and scores[axis] > 1:
            rest = _long(scores[:axis] + scores[axis + 1 :])
            if rest == wanted or (last == 1 and rest == _long((labels.size,))):
                return axis
    return None


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def load_metric(metric: str | Metric, graph: Graph | None = None) -> Metric:
    """Give the function that a metric's name stands for.

    Args:
        metric: `perplexity`, `module:function`, or the function itself.
        graph: The model, whose structure `perplexity` asks.

    Raises:
        InputError: there is no such function, or perplexity is asked of something that is no decoder.
    """
    if callable(metric):
        return metric
    if metric == PERPLEXITY and graph is not None:
        try:
            return Perplexity(graph)
        except InputError as error:
            hint = (
                "Perplexity is of language models; give `labels` with the data for top-1, or --metric module:function."
            )
            raise InputError(str(error), hint=hint) from error
    module, colon, function = f"{metric}".rpartition(":")
    if not colon:
        raise InputError(f"{metric!r} names no metric.", hint="Write module:function.")
    found: Metric = load_function(module, function)
    return found
