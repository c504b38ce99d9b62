"""feature-statistics: which share of the features before a product is zero for a whole batch; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.ops import definition, opset_of
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.observe import pool_of
from memoptc.passes.shrink._shrink.work import FLOATS
from memoptc.report.model import Decision
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.options import RunOptions

WORTH = 0.01
"""Mean share of zero features from which a product is reported."""


class FeatureStatistics(Pass):
    """Measure, on calibration data, features that are zero in every row of a batch, before products with weights.

    Behind a gate such as Relu, the rows of the next weight that such features meet are multiplied in vain (Liu et al.,
    "Deja Vu", 2023). The report gets, per product, the mean, least and largest share over the samples, and the share
    that is zero in all of them, which `prune` can take away. Leaving rows out at run time does not pay in stock
    onnxruntime (docs/less-work.md), so nothing is changed.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Measure the top graph."""
        if context.calibration is None:
            raise InputError("feature-statistics needs data.", hint="Give some with --calibration.")
        context.shapes(graph)
        names = [op.operands[0].name for op in _products(graph)]
        if not names:
            context.stats["left: no product with weights behind computed features"] += 1
            return
        labels = {op.operands[0].name: op.name or op.result.name for op in _products(graph)}
        copy = graph.clone()
        values = {r.name: r for op in copy.ops for r in op.results}
        b = Builder(copy)
        unique = list(dict.fromkeys(names))
        copy.set_outputs([_largest(b, values[name]) for name in unique], [])
        pool = pool_of(context)
        path = pool.write(copy, "features.onnx")
        zeros: list[list[np.ndarray]] = [[] for _ in unique]
        try:
            evaluator = Evaluator(path, RunOptions(), label="the model with its features")
            for sample in context.calibration:
                context.tick()
                for kept, largest in zip(zeros, evaluator.run(sample.feed).values(), strict=True):
                    kept.append(np.asarray(largest) == 0)
        finally:
            path.unlink()
        for name, kept in zip(unique, zeros, strict=True):
            shares = [float(each.mean()) for each in kept]
            if not shares or np.mean(shares) < WORTH:
                continue
            context.stats["products with zero features"] += 1
            always = float(np.logical_and.reduce(kept).mean())
            context.decisions.append(
                Decision(
                    self.name,
                    f"{labels[name]}: {np.mean(shares):.0%} of {kept[0].size} features are zero for a whole batch",
                    f"{min(shares):.0%} to {max(shares):.0%} over {len(shares)} samples, {always:.0%} in all of them",
                )
            )


def _products(graph: Graph) -> Iterator[Op]:
    """Products of computed features, along their last axis, with constant weights of two axes."""
    for op in graph.ops:
        if definition(op).multiplications is None or len(op.operands) < 2:
            continue
        features, weight = op.operands[:2]
        extents = features.shape or ()
        if features.op is None or features.tensor is not None or features.dtype not in FLOATS or len(extents) < 2:
            continue
        if weight.tensor is not None and len(weight.shape or ()) == 2 and extents[-1] in (weight.shape or ()):
            yield op


def _largest(b: Builder, value: Value) -> Value:
    """The largest magnitude of each feature over all rows, `[features]`."""
    axes = list(range(len(value.shape or ()) - 1))
    magnitude = b.Abs(value)
    if (opset_of(b.graph) or 0) >= 18:
        found: Value = b.ReduceMax(magnitude, np.array(axes, np.int64), keepdims=0)
    else:
        found = b.ReduceMax(magnitude, axes=axes, keepdims=0)
    return found
