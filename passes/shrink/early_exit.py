"""early-exit: a classifier ends after the first layers where its confidence suffices, as far as data allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.ir.ops import opset_of
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.observe import pool_of
from memoptc.passes.shrink._exit.branch import pooled, write_exit
from memoptc.passes.shrink._exit.heads import Floats, Head, confidence_of, fit_head, threshold_for
from memoptc.passes.shrink._exit.layer_boundaries import LayerBoundary, layer_boundaries
from memoptc.passes.shrink._exit.scores import class_scores
from memoptc.passes.shrink._shrink.work import FLOATS
from memoptc.report.model import Decision
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.loss_bound import disagreements, samples_for
from memoptc.runtime.options import RunOptions

FEWEST = 32
"""Rows of calibration data (samples times their batch) below which no head is fitted."""

WORTH = 0.05
"""Share of the multiplications that exits have to save on the calibration data."""


class EarlyExit(Pass):
    """Add one or two exits to a classifier: an early head's scores stand where it is sure enough.

    After some layers the hidden state is pooled (mean and largest over an image, mean and token 0 of tokens) and a
    linear head gives scores, fitted to the model's own scores in closed form: no labels are needed. The confidence is
    the probability of the likeliest class less that of the second (BranchyNet uses entropy: Teerapittayanon et al.,
    2016; margins: Kaya et al., "Shallow-Deep Networks", 2019). A batch leaves when its least confident sample is at
    least at the threshold; else the rest of the model, in a branch of an If, runs as before. The threshold is the
    lowest at which the calibration samples, each judged by a head that was fitted without it, show that the likeliest
    class is another than the model's for at most `max_disagreement` of all inputs of their kind (see `disagreements`).
    On validation data the agreement has to hold, too; the threshold is then one for which these show it as well, or,
    where they are too few for that, one at which no larger share of them disagrees.

    The exit whose expected saving is largest is taken, and a second one where that saves more. What it saves depends on
    the data: run time falls where inputs are easy and rises by the head where they are not.

    Args:
        max_disagreement: Share of samples that may get another likeliest class than from the whole model.
        most: Exits at most, 1 or 2.
        threshold: Use this threshold in [0, 1] instead of the calibrated one: 0 ends every batch at the first exit, 1
            none.
    """

    max_disagreement: float = 0.005
    most: int = 2
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_disagreement < 1:
            raise InputError(
                f"early-exit has no max_disagreement={self.max_disagreement!r}.",
                hint="A number in [0, 1) was expected.",
            )
        if self.most not in (1, 2):
            raise InputError(f"early-exit has no most={self.most!r}.", hint="There can be 1 exit, or 2.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(
                f"early-exit has no threshold={self.threshold!r}.", hint="A number in [0, 1] was expected."
            )

    @property
    def accuracy_target(self) -> AccuracyTarget:
        """Agreement with the whole model; how far scores lie from its own says nothing."""
        return AccuracyTarget(max_disagreement=self.max_disagreement)

    def run(self, graph: Graph, context: Context) -> None:
        """Add exits to the top graph."""
        if context.calibration is None:
            raise InputError("early-exit needs data.", hint="Give some with --calibration; labels are not needed.")
        context.shapes(graph)
        reason = _why_not(graph)
        found = [] if reason else layer_boundaries(graph)
        if not found:
            context.stats[f"left: {reason or 'no border between layers with something to save behind it'}"] += 1
            return
        found, features, scores = _observed(graph, found, context.calibration, context)
        if not found:
            context.stats["left: no border whose rows are those of the scores"] += 1
            return
        if len(scores) < FEWEST:
            context.stats[f"left: fewer than {FEWEST} samples to fit a head to"] += 1
            return
        if self.threshold is None and disagreements(self.max_disagreement, len(scores) // 2) is None:
            context.stats["left: too few samples for the disagreement allowed"] += 1
            context.warnings.append(
                f"early-exit cannot show a disagreement of at most {self.max_disagreement:.2%} on {len(scores)} samples"
                f": give {2 * samples_for(self.max_disagreement)} or more with --calibration, or allow more."
            )
            return
        heads = {i: fit_head(each, scores) for i, each in enumerate(features)}
        chosen = self._chosen(found, heads)
        if not chosen:
            context.stats["left: no exit is sure enough to pay"] += 1
            context.decisions.append(
                Decision(self.name, "no exit", f"none saves {WORTH:.0%} at {self.max_disagreement:.2%} disagreement")
            )
            return
        calibrated = _outcome_of(chosen, heads)
        held = None
        if context.validation is not None and context.validation is not context.calibration:
            seen = _on_validation(graph, chosen, heads, context)
            before, least = _outcome_of(chosen, seen), 0.0 if self.threshold is not None else 1 - self.max_disagreement
            chosen = self._as_sure_as(chosen, found, seen)
            held = _outcome_of(chosen, seen) if chosen else before
            if held.agreement < least or _saved(chosen, seen) <= WORTH:
                self._tell_why(calibrated, before, least, context)
                return
            calibrated = _outcome_of(chosen, heads)
        values = {r.name: r for op in graph.ops for r in op.results}
        # The last one first: the first exit's branch then holds the second.
        for exit_ in reversed(chosen):
            head = heads[exit_.index]
            write_exit(graph, values[exit_.border.name], head.weight, head.bias, exit_.threshold, self.name)
        context.stats["exits"] += len(chosen)
        self._report(chosen, calibrated, held, context)

    def _tell_why(self, calibrated: _Outcome, held: _Outcome, least: float, context: Context) -> None:
        """Say why validation data allow no exit."""
        if held.agreement >= least:
            context.stats["left: no exit pays that is sure enough on validation data"] += 1
            return
        context.stats["left: agreement does not hold on validation data"] += 1
        context.warnings.append(
            f"early-exit agrees with the whole model on {calibrated.agreement:.2%} of the calibration samples, but on "
            f"{held.agreement:.2%} of the validation samples: no exit was added. More calibration data of the same "
            "kind helps, and so does more validation data, which can show how sure an exit has to be."
        )

    def _chosen(self, found: list[LayerBoundary], heads: Mapping[int, Head]) -> list[_Exit]:
        """The exits that save most on the calibration data."""
        if self.threshold is not None:
            return [_Exit(0, found[0], self.threshold)]
        # What is best on some samples looks better there than it is: which exits are taken is decided on the one half,
        # how sure they have to be on the other.
        even = {i: head.part(slice(0, None, 2)) for i, head in heads.items()}
        best: tuple[float, list[_Exit]] = (WORTH, [])
        for i in range(len(heads)):
            for others in ([], *([j] for j in range(i + 1, len(heads)) if self.most > 1)):
                exits = self._calibrated([i, *others], found, even)
                best = max(best, (_saved(exits, even), exits), key=lambda pair: pair[0])
        odd = {i: head.part(slice(1, None, 2)) for i, head in heads.items()}
        exits = self._calibrated([exit_.index for exit_ in best[1]], found, odd)
        return exits if _saved(exits, odd) > WORTH else []

    def _as_sure_as(self, chosen: list[_Exit], found: list[LayerBoundary], seen: Mapping[int, Head]) -> list[_Exit]:
        """The exits with thresholds that validation samples allow, too.

        Calibration data are often what the model was trained on, of which it is surer than of other inputs. Where there
        are too few samples to show a disagreement, no more of them may disagree, as the proof counts them.
        """
        if self.threshold is not None:
            return chosen
        samples = len(next(iter(seen.values())).agrees)
        enough = disagreements(self.max_disagreement, samples) is not None
        few = None if enough else int(self.max_disagreement * samples)
        least = {e.index: e.threshold for e in self._calibrated([exit_.index for exit_ in chosen], found, seen, few)}
        return [replace(e, threshold=max(e.threshold, least[e.index])) for e in chosen if e.index in least]

    def _calibrated(
        self, indices: list[int], found: list[LayerBoundary], heads: Mapping[int, Head], allowed: int | None = None
    ) -> list[_Exit]:
        """The exits with the lowest thresholds that the samples allow; without those that nobody leaves by."""
        samples = len(heads[indices[0]].agrees) if indices else 0
        allowed = disagreements(self.max_disagreement, samples) if allowed is None else allowed
        if allowed is None:
            return []
        stays, exits = np.ones(samples, np.bool_), []
        for number, index in enumerate(indices):
            share = allowed // (len(indices) - number)
            threshold = threshold_for(heads[index], stays, share) if stays.any() else None
            if threshold is None:
                continue
            leaves = stays & (heads[index].confidence >= threshold)
            allowed -= int((leaves & ~heads[index].agrees).sum())
            stays &= ~leaves
            exits.append(_Exit(index, found[index], threshold))
        return exits

    def _report(self, chosen: list[_Exit], calibrated: _Outcome, held: _Outcome | None, context: Context) -> None:
        told = ", ".join(
            f"{share:.0%} after {exit_.border.name} ({exit_.border.done:.0%} of the multiplications)"
            for exit_, share in zip(chosen, calibrated.shares, strict=True)
        )
        why = f"agreement {calibrated.agreement:.2%} on {calibrated.samples} calibration samples"
        if held is not None:
            why += f", {held.agreement:.2%} on {held.samples} validation samples"
        expected = 1 - _saving(chosen, calibrated.shares)
        why += f"; expected multiplications {expected:.2f} of the whole, at worst all of them and the heads"
        context.decisions.append(Decision(self.name, f"samples leave: {told}", why))
        context.warnings.append(
            "early-exit: a batch leaves early when its hardest sample does; run easy and hard inputs one by one, or in "
            "small batches."
        )


@dataclass(frozen=True)
class _Exit:
    """An exit that is taken.

    Args:
        index: Of its border.
        border: Where it is.
        threshold: Least confidence.
    """

    index: int
    border: LayerBoundary
    threshold: float


@dataclass(frozen=True)
class _Outcome:
    """Effect of exits on data.

    Args:
        agreement: Share of samples with the likeliest class of the whole model.
        shares: Per exit, the share of all samples that leave there.
        samples: How many there were.
    """

    agreement: float
    shares: tuple[float, ...]
    samples: int


def _outcome_of(chosen: list[_Exit], heads: Mapping[int, Head]) -> _Outcome:
    mine = [heads[exit_.index] for exit_ in chosen]
    return _outcome(chosen, [head.confidence for head in mine], [head.agrees for head in mine])


def _outcome(chosen: list[_Exit], confidence: Iterable[Floats], agrees: Iterable[np.ndarray]) -> _Outcome:
    stays: np.ndarray | None = None
    wrong, shares = 0, []
    for exit_, sure, right in zip(chosen, confidence, agrees, strict=True):
        stays = np.ones(len(sure), np.bool_) if stays is None else stays
        leaves = stays & (sure >= exit_.threshold)
        wrong += int((leaves & ~right).sum())
        shares.append(float(leaves.mean()))
        stays &= ~leaves
    assert stays is not None
    return _Outcome(1 - wrong / len(stays), tuple(shares), len(stays))


def _saving(chosen: list[_Exit], shares: tuple[float, ...]) -> float:
    return sum(share * (1 - exit_.border.done) for exit_, share in zip(chosen, shares, strict=True))


def _saved(chosen: list[_Exit], heads: Mapping[int, Head]) -> float:
    """Share of the multiplications saved."""
    if not chosen:
        return 0.0
    return _saving(chosen, _outcome_of(chosen, heads).shares)


def _why_not(graph: Graph) -> str:
    """Reason why a model can have no exits; `""` when it can."""
    if (opset_of(graph) or 0) < 18:
        return "opset below 18 (raise-opset{to=18} first)"
    if len(graph.outputs) != 1:
        return "more than one output"
    shape, output = graph.outputs[0].shape, graph.outputs[0]
    if output.op is None or output.dtype not in FLOATS or shape is None or len(shape) != 2:
        return "the output is no [batch, classes] of scores"
    if not isinstance(shape[1], int) or shape[1] < 2:
        return "the number of classes is not known, or 1"
    return ""


def _observed(
    graph: Graph, found: list[LayerBoundary], data: Iterable[Sample], context: Context
) -> tuple[list[LayerBoundary], list[Floats], Floats]:
    """Pooled features at boundaries `[rows, features]`, and scores `[rows, classes]`, on data.

    Borders are left out where a sample has other rows than its scores: tokens of all sequences, one after the other, or
    the time axis first.
    """
    copy = graph.clone()
    values = {r.name: r for op in copy.ops for r in op.results}
    scores = class_scores(copy)
    b = Builder(copy)
    looked = [pooled(b, values[border.name]) for border in found]
    copy.set_outputs([scores, *looked], [])
    pool = pool_of(context)
    path = pool.write(copy, "exits.onnx")
    rows: list[list[Floats]] = [[] for _ in range(len(found) + 1)]
    other: set[int] = set()
    try:
        evaluator = Evaluator(path, RunOptions(), label="the model with its hidden states")
        for sample in data:
            context.tick()
            given = [np.asarray(value, np.float64) for value in evaluator.run(sample.feed).values()]
            other |= {i for i, value in enumerate(given[1:]) if len(value) != len(given[0])}
            for kept, value in zip(rows, given, strict=True):
                kept.append(value)
    finally:
        path.unlink()
    found = [border for i, border in enumerate(found) if i not in other]
    whole, *features = (np.concatenate(each) for i, each in enumerate(rows) if i - 1 not in other)
    if not all(np.isfinite(each).all() for each in (whole, *features)):
        raise InputError("The model gives infinities or NaN on the calibration data.", hint="early-exit needs numbers.")
    return found, list(features), whole


def _on_validation(graph: Graph, chosen: list[_Exit], heads: Mapping[int, Head], context: Context) -> dict[int, Head]:
    """The heads of the exits, with their confidence and agreement on validation data."""
    kept, features, scores = _observed(graph, [exit_.border for exit_ in chosen], context.validation, context)
    seen = {}
    for exit_ in chosen:
        head = heads[exit_.index]
        if exit_.border not in kept:  # its rows are not those of the scores there
            silent = np.zeros(len(scores))
            seen[exit_.index] = replace(head, confidence=silent + 1, agrees=silent > 0)
            continue
        given = features[kept.index(exit_.border)] @ head.weight + head.bias
        agrees = given.argmax(1) == scores.argmax(1)
        seen[exit_.index] = replace(head, confidence=confidence_of(given), agrees=agrees)
    return seen
