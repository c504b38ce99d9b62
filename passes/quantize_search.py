"""quantize-search: 8-bit integers by trial, with the recoveries that help and what accuracy needs left in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memoptc.ir.core import Graph, Op
from memoptc.ir.diagnostics import GateError, InputError
from memoptc.ir.onnx_io import write_into
from memoptc.pass_base import Context, Pass
from memoptc.passes._quantize.bias import join_biases
from memoptc.passes._quantize.sensitivity import Layer, sensitivities
from memoptc.passes._quantize.tradeoff import FLOAT, INTEGER, WEIGHTS, Move, moves, shortest, states
from memoptc.passes._quantize.trial import Codes, Setting, Trials, Variant, name_layers
from memoptc.passes.equalize import Equalize
from memoptc.passes.quantize import DTYPES, Quantize
from memoptc.passes.smooth import Smooth
from memoptc.passes.split_outliers import SplitOutliers, names_of_split
from memoptc.report.model import Decision
from memoptc.runtime.devices import USUAL, load_device
from memoptc.runtime.observers import OBSERVERS
from memoptc.runtime.quality import Examiner, Quality, decibels, top1

_WORTH = 0.2
"""Decibels that a recovery must gain on the data to stay."""


class QuantizeSearch(Pass):
    """Quantize as `quantize` does from data, choose how by trial, and keep in float what accuracy needs there.

    Copies of the graph are quantized and held against the graph in float on data: validation data where there is
    any, else that of the calibration. First the recoveries: `equalize`, `smooth`, `split-outliers`, how ranges are
    found, where weights are clipped, weights rounded by data, corrected biases; each stays if the output gains from
    it. If what was asked for is not met then, each layer's effect on the output is measured alone, and layers leave
    the integers, those first that bring most for the bytes and the work they cost: first their activations (weights
    stay integers), then the weights, too.

    Args:
        min_sqnr: Least signal to difference of every output, in decibels; `none` for any.
        max_loss: Largest accepted loss of the metric (top-1 accuracy of labelled data, or the user's own).
        fallback: Whether layers may leave the integers.
        recover: Whether recoveries are tried.
        weights: Element type of weight codes, "int8" or "uint8".
        device: Profile of the device to write for, as for `quantize`.
        outputs: Whether outputs shall be codes, too, as for `quantize`.
        percentile: For ranges by percentile, in percent.
        exclude: Node names or operators to leave in float.
        embeddings: Also code the tables of Gather, per column.
        recurrent: Also code the weights of LSTM, whose products then code their left sides at run time.
        study: Measure each layer alone even when accuracy is met without.
        checkpoint: A folder to keep in what calibration has seen: interrupted, it goes on from there.
    """

    min_sqnr: float | None = 20.0
    max_loss: float | None = None
    fallback: bool = True
    recover: bool = True
    weights: str = "int8"
    device: str = USUAL
    outputs: bool = False
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    embeddings: bool = True
    recurrent: bool = True
    study: bool = False
    checkpoint: str = ""

    def apply(self, graph: Graph, stats: Counter[str], context: Context) -> None:
        """Quantize the top graph."""
        if context.calibration is None:
            raise InputError("quantize-search needs data.", hint="Give some with --calibration, or use quantize.")
        if any(op.op_type == "DequantizeLinear" for op in graph.walk()):
            # Codes that the model was trained with are not up for trial; what it left in float is completed.
            plain = Quantize(
                "static", weights=self.weights, device=self.device, exclude=self.exclude, outputs=self.outputs
            )
            plain.apply(graph, stats, context)
            return
        if self.weights not in DTYPES:
            raise InputError(f"quantize-search has no weights {self.weights!r}.", hint="There are: int8, uint8.")
        device = load_device(self.device)
        codes = Codes(
            DTYPES[self.weights],
            device.weight_bits(self.weights),
            device,
            self.percentile,
            frozenset(self.exclude),
            self.embeddings,
            self.recurrent,
            self.outputs,
        )
        join_biases(graph, codes.excluded, stats)
        layers = name_layers(graph, codes)
        if not layers:
            stats["left: nothing to quantize"] += 1
            return
        _Search(self, graph, layers, codes, stats, context).run()


class _Search:
    """One run of the pass."""

    def __init__(
        self,
        asked: QuantizeSearch,
        graph: Graph,
        layers: dict[str, Op],
        codes: Codes,
        stats: Counter[str],
        context: Context,
    ) -> None:
        self.asked, self.graph, self.layers, self.codes = asked, graph, layers, codes
        self.stats, self.context = stats, context
        self.folder = Path(context.scratch)
        self.variants: dict[tuple[Pass, ...], Variant] = {}
        metric = context.metric
        if metric is None and asked.max_loss is not None:
            metric = top1
        path = self.folder / "float.onnx"
        files = write_into(graph, path)
        data = context.validation if context.validation is not None else context.calibration
        self.examiner = Examiner(path, data, metric)
        for file in files:
            file.unlink()
        self.trials = Trials(self.examiner, self.folder)

    def variant(self, recoveries: tuple[Pass, ...]) -> Variant:
        """The graph after these recoveries, made once."""
        if recoveries not in self.variants:
            graph, stats = self.graph.clone(), Counter[str]()
            for pass_ in recoveries:
                pass_.apply(graph, stats, replace(self.context, decisions=[], warnings=[]))
            codes = replace(self.codes, excluded=self.codes.excluded | names_of_split(graph))
            kept = Path(self.asked.checkpoint) / "-".join(["search", *(p.name for p in recoveries)])
            checkpoint = kept if self.asked.checkpoint else None
            self.variants[recoveries] = Variant(graph, self.context, codes, checkpoint, stats)
        return self.variants[recoveries]

    def run(self) -> None:
        """Search, then put the result into the graph."""
        setting = self.recovered()
        chosen: Sequence[Move] = ()
        quality = self.trials.full(self.variant(setting.recoveries).quantized(setting))
        found: list[Layer] = []
        met = self.good(quality)
        if not met or self.asked.study:
            found = sensitivities(self.variant(setting.recoveries), setting, self.layers, self.trials)
        if not met:
            chosen, quality = self.choose(setting, found, quality)
        self.note(setting, found, chosen, quality)
        done = self.quantized(setting, chosen, self.stats)
        imports = dict(done.info.opset_imports)
        self.graph.become(done)
        self.graph.info.opset_imports.update(imports)
        self.stats["trials"] = self.trials.count

    def recovered(self) -> Setting:
        """Try one recovery after the other; each stays if the output gains from it."""
        best = Setting()
        if not self.asked.recover:
            return best
        level = self.trials.quick(self.variant(()).quantized(best)).mean_db
        for what, tries in self.options():
            start = best
            for change in tries(start):
                tried = replace(start, **change)
                recovered = self.variant(tried.recoveries)
                if tried.recoveries != start.recoveries and not any(k.startswith("moved") for k in recovered.stats):
                    continue
                reached = self.trials.quick(recovered.quantized(tried)).mean_db
                if reached > level + _WORTH:
                    self.decide(what, str(tried), f"the output gains {reached - level:.1f} dB on the data")
                    best, level = tried, reached
        return best

    @staticmethod
    def options() -> Iterator[tuple[str, Callable[[Setting], list[dict[str, Any]]]]]:
        """What is tried, in order; all of one line start from the same setting."""
        both = (Equalize(), Smooth())
        yield "equalize, smooth", lambda start: [{"recoveries": r} for r in (both[:1], both[1:], both)]
        yield "split-outliers", lambda start: [{"recoveries": (*start.recoveries, SplitOutliers())}]
        yield "ranges", lambda start: [{"method": m} for m in OBSERVERS]
        yield "clip-weights", lambda start: [{"clip": True}]
        yield "rounding", lambda start: [{"rounding": True}]
        yield "correct-bias", lambda start: [{"bias": True}]

    def good(self, quality: Quality) -> bool:
        """Whether what was asked for is met."""
        if self.asked.min_sqnr is not None and quality.sqnr_db < self.asked.min_sqnr:
            return False
        return self.asked.max_loss is None or self.loss(quality) <= self.asked.max_loss + 1e-12

    def loss(self, quality: Quality) -> float:
        """How much of the metric is lost."""
        assert quality.metric is not None
        assert self.examiner.metric is not None
        return self.examiner.metric - quality.metric

    def quantized(self, setting: Setting, chosen: Sequence[Move], stats: Counter[str] | None = None) -> Graph:
        """Quantize with some layers in other states."""
        found = states(chosen)
        excluded = [name for name, state in found.items() if state == FLOAT]
        decoded = [name for name, state in found.items() if state == WEIGHTS]
        return self.variant(setting.recoveries).quantized(setting, excluded, decoded, stats)

    def choose(self, setting: Setting, layers: Sequence[Layer], before: Quality) -> tuple[Sequence[Move], Quality]:
        """Choose the layers that leave the integers."""
        if not self.asked.fallback:
            return (), self.refuse(before, layers)
        last = before

        def good(chosen: Sequence[Move]) -> bool:
            nonlocal last
            graph = self.quantized(setting, chosen)
            if self.asked.min_sqnr is not None and self.trials.quick(graph).sqnr_db < self.asked.min_sqnr - 1:
                return False
            last = self.trials.full(graph)
            return self.good(last)

        chosen = shortest(moves(layers), good)
        if chosen is None:
            return (), self.refuse(last, layers)
        return chosen, self.trials.full(self.quantized(setting, chosen))

    def refuse(self, reached: Quality, layers: Sequence[Layer]) -> Quality:
        """Give up, or with `--force` only say so."""
        asked = self.asked
        wanted, got = [], []
        if asked.min_sqnr is not None:
            wanted.append(f"{asked.min_sqnr:g} dB")
            got.append(f"{reached.sqnr_db:.1f} dB")
        if asked.max_loss is not None:
            wanted.append(f"a loss of {asked.max_loss:g}")
            got.append(f"a loss of {self.loss(reached):.4g}")
        worst = sorted(layers, key=lambda layer: -layer.worst)[:3]
        names = ", ".join(f"{la.name} ({decibels(la.worst):.1f} dB alone)" for la in worst)
        message = f"{' and '.join(wanted)} was asked for, {' and '.join(got)} was reached; what costs most: {names}."
        if not self.context.force:
            hint = "Leave --no-fallback out, so that such layers stay in float." if not asked.fallback else ""
            raise GateError(message, hint=hint or "Ask for less, or use --force.")
        self.context.warnings.append(f"{message} Written all the same (--force).")
        return reached

    def decide(self, step: str, what: str, why: str, gain: int | None = None) -> None:
        """Note a decision for the report."""
        self.context.decisions.append(Decision(step, what, why, gain))

    def note(self, setting: Setting, layers: Sequence[Layer], chosen: Sequence[Move], quality: Quality) -> None:
        """Tell the report what was decided for each layer, and what came of it."""
        state = states(chosen)
        rows = []
        for layer in layers:
            decision = state.get(layer.name, INTEGER)
            rows.append(
                {
                    "layer": layer.name,
                    "op": layer.op_type,
                    "bytes": layer.nbytes,
                    "alone_db": decibels(layer.worst),
                    "weights_alone_db": decibels(max(layer.weights.values(), default=0.0)),
                    "measured": layer.measured,
                    "decision": decision,
                }
            )
            if decision != INTEGER:
                why = f"{decibels(layer.worst):.1f} dB with this layer alone on integers"
                self.decide("mixed precision", f"{layer.name}: {decision}", why)
        reached = {"sqnr_db": quality.sqnr_db, "samples": quality.samples, "setting": str(setting)}
        if quality.metric is not None:
            reached |= {"metric_before": self.examiner.metric, "metric": quality.metric}
        self.context.results["precision"] = {"layers": rows, "reached": reached}
        kept = len(self.layers) - len(state)
        self.decide(
            "quantize-search",
            f"{kept} of {len(self.layers)} layers on 8-bit integers: {setting}",
            f"{quality.sqnr_db:.1f} dB reached on {quality.samples} samples",
        )
