"""mix-weights: each weight in blocks of 4 bits, in 8 bits, or in float, as small as the accuracy asked for allows."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.accuracy_check import further
from memoptc.passes.precision._quantize.bit_search import BitSearch
from memoptc.passes.precision._quantize.coding import SMALLEST, report
from memoptc.passes.precision._quantize.layer_precision import LayerPrecision
from memoptc.passes.precision._quantize.replay import search_memoized
from memoptc.passes.precision._quantize.weight_coder import WeightCoder
from memoptc.runtime.accuracy import AccuracyTarget


class MixWeights(Pass):
    """Code all weights as `quantize-weights` does, then take back to 8 bits, or to float, what accuracy needs.

    By "outputs", copies of the graph are held against it: on validation data where there is any, else on that of the
    calibration, else on made-up inputs, which show how far codes move the model, not how it fares on real data. If
    all weights in 4 bits are good enough, so they stay. Else each weight's effect on the outputs is measured alone, and
    weights go to 8 bits per channel, or to float, those first that bring most for their bytes.

    Of a decoder with a cache, kernels code activations as they go: a step then takes three quarters of the time, and
    the products err a tenth of what 4 bits cost them. Weights in 8 bits are in blocks there, too, which are read as
    codes at every step; so are those of keys and values that several query heads share, which are few bytes.

    With a `size`, bytes decide instead: products and lookups may then take 2 bits, too, and what their weights cost at
    the outputs (measured in groups of neighbours) says which get more.

    By "weights" nothing is run: what coding changes in each weight, as a part of it, is added up over the model as if
    all of it reached the outputs. That is an estimate, and for most models a cautious one.

    Args:
        min_sqnr: Least signal to difference of every output, in decibels or of the estimate; `none` for any.
        tables_sqnr: As `min_sqnr`, where tables hold most of the bytes: 16 numbers for a whole weight err more than
            blocks do, on samples that the search has not seen most of all; `none` for no more than `min_sqnr`.
        max_loss: Largest accepted loss of the metric (top-1 accuracy of labelled data, or the user's own).
        fallback: Whether weights may stay in float.
        by: "outputs" or "weights".
        block: Weights that share a scale in 4 bits.
        smallest: Bytes below which a weight stays as it is.
        rounding: Round by calibration data, where there is any.
        decode: When weights of convolutions and recurrent operators are decoded: while onnxruntime loads, from tables
            of 16 or 256 numbers, after which they take the memory and the time of floats (the file is small); or in
            each "run", from blocks, which takes less memory and more time, of convolutions only.
        exclude: Node names or operators to leave in float.
        study: Measure each weight alone even when accuracy is met without.
        size: Bytes of the weights with their scales, at most, as a part of those in float; no accuracy is asked for.
        effort: How many times as long the search may take as it does by itself, for large models and much data.
    """

    changes_numbers: ClassVar[bool] = True
    min_sqnr: float | None = 10.0
    tables_sqnr: float | None = 20.0
    max_loss: float | None = None
    fallback: bool = True
    by: str = "outputs"
    block: int = 32
    smallest: int = SMALLEST
    rounding: bool = True
    decode: str = "load"
    exclude: tuple[str, ...] = ()
    study: bool = False
    size: float | None = None
    effort: float = 1.0

    def __post_init__(self) -> None:
        if self.by not in ("outputs", "weights"):
            raise InputError(f"mix-weights has no by={self.by!r}.", hint="There are: outputs, weights.")
        if self.decode not in ("load", "run"):
            raise InputError(f"mix-weights has no decode={self.decode!r}.", hint="There are: load, run.")
        if self.by == "weights" and (self.min_sqnr is None or self.max_loss is not None):
            raise InputError("Errors of weights say nothing of a metric.", hint="Give min_sqnr, and no max_loss.")
        if self.size is not None and (self.by == "weights" or not self.size > 0):
            raise InputError(
                f"mix-weights has no size={self.size} by {self.by}.", hint='Give a part above 0, by="outputs".'
            )

    @property
    def accuracy_target(self) -> AccuracyTarget | None:
        """Where bytes were asked for, a difference no larger than the outputs: beyond that it is no model any more."""
        return None if self.size is None else AccuracyTarget(0.0)

    def stricter(self, missing: float | None = None) -> Pass | None:
        """With more layers in 8 bits, or in float: as data held out showed, what was searched on says too little."""
        more = self.fallback and self.by == "outputs" and self.min_sqnr is not None and self.size is None
        return replace(self, min_sqnr=(self.min_sqnr or 0.0) + further(missing)) if more else None

    def run(self, graph: Graph, context: Context) -> None:
        """Code the weights of the graph."""
        if self.by == "weights":
            self._search(graph, context)
        else:
            search_memoized(self, graph, context, lambda counting: self._search(graph, counting))

    def _search(self, graph: Graph, context: Context) -> None:
        search = BitSearch(self, graph, context)
        if not search.found.chosen:
            report(self.name, context, WeightCoder(search.plan), search.found, 0, (0, 0))
            return
        states = search.by_weights() if self.by == "weights" else search.by_outputs()
        coder = search.coder()
        before, after = search.write(graph, states, coder, context.stats)
        for state, what in (
            (LayerPrecision.INT2_WEIGHTS, "in 2 bits"),
            (LayerPrecision.INT4_WEIGHTS, "in 4 bits"),
            (LayerPrecision.INT8_WEIGHTS, "in 8 bits"),
            (LayerPrecision.FLOAT, "kept in float"),
        ):
            count = sum(found == state for found in states.values())
            if count:
                context.stats[f"weights {what}"] += count
        if search.found.left:
            context.stats["weights left"] += len(search.found.left)
        report(self.name, context, coder, search.found, context.stats["weights in 4 bits"], (before, after))
