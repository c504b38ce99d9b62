"""cascade: a small classifier answers where it is sure enough, the large one answers the rest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.ir.ops import opset_of
from memoptc.ir.spelling import type_text
from memoptc.ir.types import DType, TensorType, Type, as_tensor
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.observe import pool_of
from memoptc.passes.shrink._exit.branch import confident, end_or_go_on
from memoptc.passes.shrink._exit.heads import Floats, Head, confidence_of, threshold_for
from memoptc.passes.shrink._exit.scores import class_scores
from memoptc.passes.shrink._shrink.work import FLOATS, multiplications
from memoptc.passes.simplify.raise_opset import RaiseOpset
from memoptc.pipeline import parse
from memoptc.report.model import Decision
from memoptc.runtime.accuracy import AccuracyTarget
from memoptc.runtime.data import Sample
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.loss_bound import disagreements, samples_for
from memoptc.runtime.options import RunOptions

OPSET = 18
"""Opset that both models are raised to where they are of an older one; where one is newer, the other follows it."""


class Cascade(Pass):
    """Put a small classifier before this one: its scores stand where it is sure enough.

    Both models take the same inputs and give scores of the same classes. The small one always runs; a batch goes on to
    the large one, in a branch of an If, when its least confident row is below the threshold (Viola and Jones, 2001, for
    detectors; Wang et al., "IDK Cascades", 2018, for classifiers). The confidence is the probability of the likeliest
    class less that of the second. The threshold is the lowest at which calibration data show that the likeliest class
    is another than the large model's for at most `max_disagreement` of all inputs of their kind; validation data, where
    they are enough, have to show it, too, and of fewer it is no more than that share. No labels are needed.

    Args:
        small: File of the small model.
        max_disagreement: Share of samples that may get another likeliest class than from the large model.
        threshold: Use this threshold in [0, 1] instead of the calibrated one: 0 is the small model, 1 the large one.
    """

    small: str
    max_disagreement: float = 0.005
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.max_disagreement < 1:
            raise InputError(f"cascade has no max_disagreement={self.max_disagreement!r}.", hint="Give one in (0, 1).")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"cascade has no threshold={self.threshold!r}.", hint="Give one in [0, 1].")

    @property
    def accuracy_target(self) -> AccuracyTarget:
        """Agreement with the large model; how far scores lie from its own says nothing."""
        return AccuracyTarget(max_disagreement=self.max_disagreement if self.threshold is None else 1.0)

    def run(self, graph: Graph, context: Context) -> None:
        """Merge the small model into the top graph.

        Raises:
            InputError: the models do not fit together, or there is no data, or too little of it.
        """
        small = read_onnx(self.small)
        newest = max(OPSET, *(opset_of(each) or 0 for each in (graph, small)))
        run_pipeline(parse(f"raise-opset{{to={newest},below={newest}}},inline-functions"), small, context)
        RaiseOpset(to=newest, below=newest).run(graph, context)
        _check(graph, small, self.small)
        context.shapes(graph)
        infer_shapes(small)
        threshold = self._threshold(graph, small, context) if self.threshold is None else self.threshold
        if threshold is None:
            context.stats["left: the small model is sure enough of no sample"] += 1
            context.warnings.append(
                f"cascade: {self.small} agrees too seldom with the large model to answer any sample at "
                f"{self.max_disagreement:.2%} disagreement; nothing was changed."
            )
            return
        _merge(graph, small, threshold, self.name)
        infer_shapes(graph)
        context.stats["cascades"] += 1

    def _threshold(self, graph: Graph, small: Graph, context: Context) -> float | None:
        """The lowest threshold that calibration data allow."""
        if context.calibration is None:
            raise InputError("cascade needs data.", hint="Give some with --calibration; labels are not needed.")
        large_scores = _scores(graph, context.calibration, context)
        allowed = disagreements(self.max_disagreement, len(large_scores))
        if allowed is None:
            raise InputError(
                f"{len(large_scores)} samples cannot show a disagreement of at most {self.max_disagreement:.2%}.",
                hint=f"Give {samples_for(self.max_disagreement)} or more to calibrate on (without --validation a fifth "
                "of --calibration is held out), or allow more with --max-disagreement.",
            )
        head = _judged(_scores(small, context.calibration, context), large_scores)
        threshold = threshold_for(head, np.ones(len(large_scores), np.bool_), allowed)
        if threshold is None:
            return None
        text = f"{_told(head, threshold)} calibration samples"
        if context.validation is not None and context.validation is not context.calibration:
            held = _judged(_scores(small, context.validation, context), _scores(graph, context.validation, context))
            # Models are surer of what they were trained on, which calibration data often are.
            few = disagreements(self.max_disagreement, len(held.agrees))
            if few is None:  # too few samples to show it: no more of them, as the proof counts them
                few = int(self.max_disagreement * len(held.agrees))
            least = threshold_for(held, np.ones(len(held.agrees), np.bool_), few)
            if least is None:
                return None
            threshold = max(threshold, least)
            text = f"{_told(head, threshold)} calibration samples, {_told(held, threshold)} validation samples"
        cost = sum(map(multiplications, small.ops)) / (sum(map(multiplications, graph.ops)) or 1.0)
        context.decisions.append(
            Decision(
                self.name,
                f"the small model answers at a confidence of {threshold:.3f} or more",
                text,
                cost=f"the small model always runs: {cost:.2f} of the large one's multiplications",
            )
        )
        context.warnings.append(
            "cascade: the small model answers a batch when it is sure of the hardest sample; run easy and hard inputs "
            "one by one, or in small batches."
        )
        return threshold


def _judged(small: Floats, large: Floats) -> Head:
    nothing = np.zeros(0, np.float32)
    return Head(nothing, nothing, confidence_of(small), small.argmax(1) == large.argmax(1))


def _told(found: Head, threshold: float) -> str:
    answered = found.confidence >= threshold
    wrong = float((answered & ~found.agrees).mean())
    return f"it answers {answered.mean():.0%}, and the likeliest class agrees on {1 - wrong:.2%}, of {len(answered)}"


def _check(large: Graph, small: Graph, name: str) -> None:
    """Refuse models that take other inputs or give other scores."""
    if small.defaults:
        raise InputError(f"{name} has weights that are inputs, too.", hint="Compile it first: memoptc MODEL -O1.")
    takes = [(v.name, v.dtype, len(v.shape or ())) for v in _required(large)]
    if takes != [(v.name, v.dtype, len(v.shape or ())) for v in _required(small)]:
        raise InputError(
            f"{name} takes {_names(small.inputs)}, the large model {_names(large.inputs)}.",
            hint="A cascade needs two models with the same inputs, in one order, of one type.",
        )
    for mine, theirs in zip(_required(large), _required(small), strict=True):
        if any(isinstance(b, int) and a != b for a, b in zip(mine.shape or (), theirs.shape or (), strict=True)):
            raise InputError(
                f"{name} takes {_names([theirs])}, which is narrower than the large model's {_names([mine])}.",
                hint="Export the small model with the same open axes, or make the large one's static with --freeze.",
            )
    for graph, what in ((large, "The large model"), (small, name)):
        shape = graph.outputs[0].shape if len(graph.outputs) == 1 else None
        classes = shape[1] if shape is not None and len(shape) == 2 else None
        if graph.outputs[0].op is None or graph.outputs[0].dtype not in FLOATS or not isinstance(classes, int):
            raise InputError(f"{what} is no classifier.", hint="It needs one output, [batch, classes] of floats.")
    shapes = [graph.outputs[0].shape for graph in (large, small)]
    assert shapes[0] is not None
    assert shapes[1] is not None
    if shapes[0][1] != shapes[1][1] or large.outputs[0].dtype != small.outputs[0].dtype or shapes[0][1] < 2:  # type: ignore[operator]
        raise InputError(
            f"{name} scores {shapes[1][1]} classes, the large model {shapes[0][1]}.",
            hint="Both must score the same classes, 2 at least, in one dtype.",
        )
    versions = [opset_of(graph) for graph in (large, small)]
    if versions[0] != versions[1]:
        raise InputError(
            f"{name} is written for opset {versions[1]}, the large model for {versions[0]}.",
            hint=f"Convert one of them: --passes 'raise-opset{{to={max(v or 0 for v in versions)},below=99}},lower'.",
        )


def _names(values: Iterable[Value]) -> str:
    return ", ".join(f"{v.name}: {type_text(v.type)}" for v in values)


def _scores(graph: Graph, data: Iterable[Sample], context: Context) -> Floats:
    """Scores before a final Softmax, `[rows, classes]`, on data."""
    copy = graph.clone()
    copy.set_outputs([class_scores(copy)], [])
    pool = pool_of(context)
    path = pool.write(copy, "scores.onnx")
    rows: list[Floats] = []
    try:
        evaluator = Evaluator(path, RunOptions(), label="a model of the cascade")
        for sample in data:
            context.tick()
            (scores,) = evaluator.run(sample.feed).values()
            rows.append(np.asarray(scores, np.float64))
    finally:
        path.unlink()
    found = np.concatenate(rows)
    if not np.isfinite(found).all():
        raise InputError("A model of the cascade gives infinities or NaN on the calibration data.")
    return found


def _required(graph: Graph) -> list[Value]:
    """Inputs without a default."""
    return [value for value in graph.inputs if value not in graph.defaults]


def _merge(graph: Graph, small: Graph, threshold: float, rule: str) -> None:
    """Put the small model's ops before the large one's, which move into a branch."""
    rest = list(graph.ops)
    first = next(op for op in rest if not op.is_const)
    mine: dict[Value, Value] = {}
    copy = small.clone(mine)
    for theirs, value in zip(copy.inputs, _required(graph), strict=True):
        theirs.replace_by(value)
    dtype = small.outputs[0].dtype
    scores, answer = mine[class_scores(small)], mine[small.outputs[0]]
    copy.set_outputs([])
    moved: list[Op] = list(copy.ops)
    for op in copy.walk():
        # The small model's symbols mean nothing here.
        for result in op.results if not op.is_const else ():
            result.type = None
        for region in op.regions.values():
            for value in region.inputs:
                value.type = _without_extents(value.type)
            for info in region.outputs_info:
                info.type = _without_extents(info.type)
    for op in moved:
        op.move_before(first)
    assert graph.model is not None
    for domain, version in (small.model.opset_imports if small.model is not None else {}).items():
        graph.model.opset_imports.setdefault(domain, version)
    b = Builder(graph, before=first, loc=first.loc.union(rule=rule))
    probabilities = b.Softmax(scores if dtype == DType.FLOAT else b.Cast(scores, to=int(DType.FLOAT)), axis=1)
    ends = Graph("small")
    ends.set_outputs([Builder(ends, loc=b.loc).Identity(answer)])
    end_or_go_on(b, confident(b, probabilities, threshold), ends, rest)


def _without_extents(type_: Type | None) -> Type | None:
    tensor = as_tensor(type_)
    return type_ if tensor is None else TensorType(tensor.dtype, None)
