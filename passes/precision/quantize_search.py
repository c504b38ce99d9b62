"""quantize-search: 8-bit integers by trial, with the recoveries that help and what accuracy needs left in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from memoptc.ir.core import Graph, Op
from memoptc.ir.decoder import recognised
from memoptc.ir.diagnostics import InputError
from memoptc.ir.tensors import nbytes
from memoptc.pass_base import Context, Pass, Precision
from memoptc.passes.precision._quantize.accuracy_check import AccuracyCheck, further
from memoptc.passes.precision._quantize.bias import join_biases
from memoptc.passes.precision._quantize.coding import SMALLEST
from memoptc.passes.precision._quantize.decoder_blocks import code_decoder_in_blocks
from memoptc.passes.precision._quantize.effort import Effort
from memoptc.passes.precision._quantize.existing_codes import is_quantized
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.layers import quantizable_layers
from memoptc.passes.precision._quantize.recovered_graphs import RecoveredGraphs
from memoptc.passes.precision._quantize.recovery_settings import recovery_settings
from memoptc.passes.precision._quantize.replay import adopt, search_memoized, take_over
from memoptc.passes.precision._quantize.sensitivity import EXACT, SAMPLES, sensitivities
from memoptc.passes.precision._quantize.settings import QuantizationConfig, Setting
from memoptc.passes.precision._quantize.slow_convolutions import (
    FINE_ENOUGH,
    SMALL_GAIN,
    WORTH,
    large_on_integers,
    slow_on_integers,
)
from memoptc.passes.precision._quantize.tradeoff import (
    CHOICES,
    GIVE_BACK,
    Layer,
    greedy_moves,
    layer_row,
)
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, GATHER
from memoptc.passes.precision._quantize.without_data import better_without_data, states_without_data
from memoptc.passes.precision.quantize import DTYPES, Quantize
from memoptc.passes.precision.quantize_weights import QuantizeWeights
from memoptc.report.model import Decision
from memoptc.runtime.devices import USUAL, load_device
from memoptc.runtime.quality import Quality, decibels

_WRITTEN = {
    LayerPrecision.INT4_WEIGHTS: "with weights in 4 bits",
    LayerPrecision.INT8_WEIGHTS: "with weights in 8 bits",
    LayerPrecision.FLOAT: "in float",
}

_RECOVERIES, _ALONE = 0.7, 0.85
"""Parts of what a search may look that are spent when recoveries are tried, and when layers were measured alone."""

_LINE = 0.25
"""Part that the tries of one recovery may take; else only the last of them is tried."""

_FEWEST = 4
"""Layers that are measured alone in any case."""

_SURE, _WORTH_OF_FEW = 16, 3.0
"""Samples from which channels are known well enough, and decibels that factors of channels must gain with fewer: all
channels then reach the end of the code, and whatever goes further in a sample that was not seen is cut off."""

_FACTORS = ("equalize", "smooth")
"""Recoveries that move factors of channels."""

_UNSEEN, _UNSEEN_OF_FEW = 1.0, 3.0
"""Decibels that ranges of each run may cost on the data, and where few samples are held out: they cut off nothing of
samples that were not seen."""


class QuantizeSearch(Pass):
    """Quantize as `quantize` does from data, choose how by trial, and keep in float what accuracy needs there.

    Copies of the graph are quantized and held against the graph in float on data: validation data where there is
    any, else that of the calibration. First the recoveries: `equalize`, `smooth`, `split-outliers`, how ranges are
    found (by calibration, or of products in each run), where weights are clipped, weights rounded by data, corrected
    biases; each stays if the output gains from it. Convolutions among floats that do little of the work, or all of a
    model whose convolutions are too small to gain time from integers and too coarse in codes, compute in float if the
    output gains from that; their weights are decoded while onnxruntime loads them. So do those whose integer kernel
    alone takes far more scratch than the whole graph in float. If what was asked for is not met
    then, each layer's effect
    on the output is measured alone, and layers leave the integers, those first that bring most for the bytes and the
    work they cost: first their activations (weights stay integers), then the weights, too. With `mixed`, weights in
    blocks of 4 bits are one more state of a layer, and each layer starts in its cheapest: tables and products whose
    bytes weigh more than their work in 4 bits.
    Activations of 16 bits are no state: onnxruntime computes with them in float, so float activations on integer
    weights cost the same bytes and less time.

    Of a decoder with a cache only the weights are coded, in blocks that MatMulNBits reads as codes: weights for integer
    products that fall back to float would be decoded anew at every step. Where single outputs err too much so, as keys
    or values of a cache do, the small products before them stay in float; where that does not do, layers are searched
    as in any model.

    Args:
        min_sqnr: Least signal to difference of every output, in decibels; `none` for any.
        max_loss: Largest accepted loss of the metric (top-1 accuracy of labelled data, or the user's own).
        mixed: Also choose weights in 4 bits, in each layer for which that is smaller or faster and accurate enough.
        fallback: Whether layers may leave the integers; with `mixed`, whether layers may stay in float.
        recover: Whether recoveries are tried.
        weights: Element type of weight codes, "int8" or "uint8".
        device: Profile of the device to write for, as for `quantize`.
        outputs: Whether outputs shall be codes, too, as for `quantize`.
        percentile: For ranges by percentile, in percent.
        exclude: Node names or operators to leave in float.
        embeddings: Also code the tables of Gather, per column.
        recurrent: Also code the weights of LSTM, whose products then code their left sides at run time.
        study: Measure each layer alone even when accuracy is met without.
        weights_only: Code weights alone, as tables that onnxruntime decodes while loading: the file is small, need and
            latency are those of float. Tried where integers need more or are slower.
        decode: Whether weights that no kernel takes in codes are stored so all the same, and decoded while onnxruntime
            "load"s them; with "run" they stay in float.
        effort: How many times as long the search may take as it does by itself, for large models and much data.
    """

    changes_numbers: ClassVar[bool] = True
    min_sqnr: float | None = 20.0
    max_loss: float | None = None
    mixed: bool = False
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
    weights_only: bool = False
    decode: str = "load"
    effort: float = 1.0

    def stricter(self, missing: float | None = None) -> Pass | None:
        """With more layers in float: as data held out showed, what was searched on says too little."""
        more = self.fallback and not self.weights_only and self.min_sqnr is not None
        return replace(self, min_sqnr=(self.min_sqnr or 0.0) + further(missing)) if more else None

    def weaker(self) -> Pass | None:
        """Weights alone, where layers may leave the integers."""
        return replace(self, weights_only=True) if self.fallback and not self.weights_only else None

    def run(self, graph: Graph, context: Context) -> None:
        """Quantize the top graph."""
        if context.calibration is None:
            raise InputError("quantize-search needs data.", hint="Give some with --calibration, or use quantize.")
        if is_quantized(graph):
            # Codes that the model was trained with are not up for trial; what it left in float is completed.
            plain = Quantize(
                "static", weights=self.weights, device=self.device, exclude=self.exclude, outputs=self.outputs
            )
            plain.run(graph, context)
            return
        if self.weights_only:
            self._code_weights(graph, context, rest=False)
            return
        asks_more = self.mixed or self.outputs or not self.embeddings
        if not asks_more and recognised(graph) is not None:
            wanted = AccuracyCheck(graph, context, self.min_sqnr, self.max_loss, fallback=self.fallback)
            if code_decoder_in_blocks(self.name, graph, context, wanted, self.exclude):
                return
        if self.weights not in DTYPES:
            raise InputError(f"quantize-search has no weights {self.weights!r}.", hint="There are: int8, uint8.")
        device = load_device(self.device)
        codes = QuantizationConfig(
            DTYPES[self.weights],
            device.weight_bits(self.weights),
            device,
            self.percentile,
            frozenset(self.exclude),
            self.embeddings,
            self.recurrent,
            self.outputs,
        )
        join_biases(graph, codes.excluded, context.stats)
        layers, codes = quantizable_layers(graph, codes, narrow=self.mixed, load=self.decode == "load")
        if self.fallback and self.device == USUAL:
            large = large_on_integers(layers, graph, context.dims)
            context.decisions += [Decision(self.name, f"{name}: in float", why) for name, why in large.items()]
            if large:
                codes = replace(codes, excluded=codes.excluded | set(large))
                layers, codes = quantizable_layers(graph, codes, narrow=self.mixed, load=self.decode == "load")
        if layers:
            search_memoized(self, graph, context, lambda counting: _Search(self, graph, layers, codes, counting).run())
        else:
            context.stats["left: nothing to quantize"] += 1
        self._code_weights(graph, context, rest=True, chosen=(*layers, *(() if self.embeddings else (GATHER,))))

    def _code_weights(self, graph: Graph, context: Context, *, rest: bool, chosen: Sequence[str] = ()) -> None:
        """Code weights in 8 bits, if that is accurate enough; all, or only those that the search left.

        Args:
            graph: The graph.
            context: Of the compile.
            rest: Whether a search has run.
            chosen: Names of nodes that it has chosen a state for.
        """
        exclude = (*self.exclude, *chosen, *(() if self.decode == "load" else CONVOLUTIONS))
        coding = QuantizeWeights(
            bits=8, symmetric=True, rounding=False, activations=8, decode=self.decode, rest=rest, exclude=exclude
        )
        copy, trial = graph.clone(), Context()
        coding.run(copy, trial)
        if not trial.stats["weights quantized"]:
            return
        wanted = AccuracyCheck(graph, context, self.min_sqnr, self.max_loss, fallback=self.fallback)
        if wanted.good(wanted.trials.full(copy)):
            take_over(graph, copy, context, trial)
        else:
            left = "weights without integer kernels" if rest else "all weights"
            context.stats[f"left: {left}, for accuracy"] += trial.stats["weights quantized"]


class _Search:
    """One run of the pass."""

    def __init__(
        self,
        asked: QuantizeSearch,
        graph: Graph,
        layers: dict[str, Op],
        codes: QuantizationConfig,
        context: Context,
    ) -> None:
        self.asked, self.graph, self.layers, self.codes = asked, graph, layers, codes
        self.stats, self.context = context.stats, context
        self.wanted = AccuracyCheck(graph, context, asked.min_sqnr, asked.max_loss, fallback=asked.fallback)
        self.trials = self.wanted.trials
        few, _ = self.wanted.examiner.samples
        self.effort = Effort.of(layers.values(), context.dims, few, sum(1 for _ in context.calibration))
        self.effort.most, self.effort.factor = context.left_for_numbers, asked.effort
        self.graphs = RecoveredGraphs(asked.name, graph, context, codes, self.effort)

    def run(self) -> None:
        """Search, then put the result into the graph."""
        setting = self.recovered()
        chosen = self.without_slow(setting)
        quality = None if self.asked.mixed else self.wanted.look(self.quantized(setting, chosen))
        found: list[Layer] = []
        if quality is None or not self.wanted.good(quality) or self.asked.study:
            self.context.say("each layer alone")
            exact = EXACT if self.asked.study else min(max(self.effort.looks(_ALONE, SAMPLES) // 2, _FEWEST), EXACT)
            found = sensitivities(self.graphs[setting.recoveries], setting, self.layers, self.trials, exact)
            self.effort.spend(2 * exact * self.effort.look(SAMPLES))
        if quality is None or not self.wanted.good(quality):
            self.context.say("which layers")
            chosen, quality = self.choose(setting, found, quality)
        chosen = {name: self.as_written(name, state) for name, state in chosen.items()}
        counted = Counter[str]()
        done = self.quantized(setting, chosen, counted)
        other = self.without_data(done, chosen)
        if other is not None:
            done, quality = other
            chosen = states_without_data(self.layers)
        else:
            self.stats.update(counted)
        self.note("the form that needs no data" if other else str(setting), found, chosen, quality)
        adopt(self.graph, done)
        self.stats["trials"] = self.trials.count

    def without_data(self, done: Graph, chosen: Assignment) -> tuple[Graph, Quality] | None:
        """The form that needs no data and its quality, where that is more exact and costs a run no more."""
        asked = self.asked
        if asked.mixed or asked.outputs or not asked.fallback or self.codes.narrow or self.codes.weight_only:
            return None
        self.context.say("the form that needs no data")
        form = Quantize(
            "dynamic", weights=asked.weights, device=asked.device, exclude=asked.exclude, embeddings=asked.embeddings
        )
        return better_without_data(form, self.graph, done, self.layers, chosen, self.codes.tabled, self.wanted)

    def as_written(self, name: str, state: LayerPrecision) -> LayerPrecision:
        """The state of a layer in the result: small weights that would be decoded while loading stay as they are."""
        weight = self.layers[name].operands[1].tensor if name in self.codes.tabled else None
        small = weight is not None and nbytes(weight) < SMALLEST
        return LayerPrecision.FLOAT if small and state == LayerPrecision.INT8_WEIGHTS else state

    @property
    def all_integers(self) -> dict[str, LayerPrecision]:
        """Every layer where it is cheapest with 8 bits."""
        return dict.fromkeys(self.layers, LayerPrecision.INT8)

    def without_slow(self, setting: Setting) -> Assignment:
        """All on integers, but for convolutions that gain next to no time from that, if the output gains otherwise."""
        best, variant = self.all_integers, self.graphs[setting.recoveries]
        if not self.asked.fallback or self.asked.mixed or self.asked.outputs:
            return best
        level = None
        for names, worth, why in slow_on_integers(self.layers, self.context.dims, setting, variant):
            states = {**self.all_integers, **dict.fromkeys(names, LayerPrecision.INT8_WEIGHTS)}
            level = self.trials.quick(self.quantized(setting, best)).mean_db if level is None else level
            if worth == SMALL_GAIN and level >= FINE_ENOUGH:
                continue
            reached = self.trials.quick(self.quantized(setting, states)).mean_db
            if reached > level + worth:
                gain = f"codes before and after them cost {reached - level:.1f} dB on the data, and {why}"
                self.decide("quantize-search", f"{', '.join(names)}: {_WRITTEN[LayerPrecision.INT8_WEIGHTS]}", gain)
                best, level = states, reached
        return best

    def recovered(self) -> Setting:
        """Try one recovery after the other; each stays if the output gains from it."""
        best = Setting()
        if not self.asked.recover:
            return best
        level = self.trials.quick(self.graphs[()].quantized(best)).mean_db
        left: list[str] = []
        for what, tries in recovery_settings():
            start = best
            self.context.say(f"trying {what}")
            options = [replace(start, **change) for change in tries(start)]
            whole = sum(self.graphs.cost(tried) for tried in options)
            if whole > _LINE * self.effort.allowed or not self.effort.affords(whole, _RECOVERIES):
                options = [tried for tried in options[-1:] if self.effort.affords(self.graphs.cost(tried), _RECOVERIES)]
                left += [] if options else [what]
            for tried in options:
                self.effort.spend(self.graphs.cost(tried))
                recovered = self.graphs[tried.recoveries]
                if tried.run_time and not recovered.run_time_products:
                    continue
                if tried.recoveries != start.recoveries and not any(k.startswith("moved") for k in recovered.stats):
                    continue
                reached = self.trials.quick(recovered.quantized(tried)).mean_db
                worth = WORTH
                if tried.run_time and not start.run_time:
                    worth = -(_UNSEEN_OF_FEW if self.wanted.few_held_out else _UNSEEN)
                if self.effort.many < _SURE and any(
                    p.name in _FACTORS for p in tried.recoveries[len(start.recoveries) :]
                ):
                    worth = _WORTH_OF_FEW
                if reached > level + worth:
                    gain = f"the output gains {reached - level:.1f} dB on the data"
                    if reached < level:
                        gain = f"no sample reaches past such ranges; on the data they cost {level - reached:.1f} dB"
                    self.decide(what, str(tried), gain)
                    best, level = tried, reached
            self.graphs.keep(best)
        self.graphs.drop_unused_codes(best)
        if left:
            why = f"for {self.effort.nbytes / 1e6:.0f} MB of weights and {self.effort.many} samples they take too long"
            why += f" (--set {self.asked.name}.effort={2 * self.asked.effort:g} gives the search twice the time)"
            self.decide("quantize-search", f"not tried: {', '.join(left)}", why)
        return best

    def quantized(self, setting: Setting, states: Assignment, stats: Counter[str] | None = None) -> Graph:
        """Quantize with layers in these states."""
        return self.graphs[setting.recoveries].quantized(setting, states, stats)

    def choose(self, setting: Setting, layers: Sequence[Layer], before: Quality | None) -> tuple[Assignment, Quality]:
        """Choose the states of layers; `before` is the quality of all of them on integers, where that is no choice."""
        if before is not None and not self.asked.fallback:
            return self.all_integers, self.wanted.refuse(before, layers)
        steps = greedy_moves(layers, floats=self.asked.fallback)
        if self.asked.fallback and not all(layer.measured for layer in layers):
            # estimates can rank layers wrongly: floats cost bytes, so they are left out where integers do without
            coded = greedy_moves(layers, floats=False)
            if coded.moves and self.wanted.good(self.wanted.look(self.quantized(setting, coded.states(coded.moves)))):
                steps = coded
        first = before or self.wanted.look(self.quantized(setting, steps.states()))
        if before is None and self.wanted.good(first):
            return steps.states(), first
        looks = self.effort.looks(1.0)
        return self.wanted.choose(
            steps,
            layers,
            lambda states: self.quantized(setting, states),
            first,
            min(looks, GIVE_BACK),
            max(looks, CHOICES),
        )

    def decide(self, step: str, what: str, why: str, gain: int | None = None) -> None:
        """Note a decision for the report."""
        self.context.decisions.append(Decision(step, what, why, gain))

    def note(self, setting: str, layers: Sequence[Layer], state: Assignment, quality: Quality) -> None:
        """Tell the report what was decided for each layer, and what came of it."""
        usual = Counter(state.values()).most_common(1)[0][0] if self.asked.mixed else LayerPrecision.INT8
        for layer in layers:
            if state[layer.name] != usual:
                alone = "on integers" if LayerPrecision.INT8 in layer.noise else f"with {LayerPrecision.INT8_WEIGHTS}"
                why = (
                    f"{decibels(layer.alone(LayerPrecision.INT8) or layer.worst):.1f} dB with this layer alone {alone}"
                )
                self.decide("mixed precision", f"{layer.name}: {state[layer.name]}", why)
        rows = [layer_row(layer, state[layer.name]) for layer in layers]
        self.context.artefacts.precision = Precision(rows, self.wanted.reached(quality, setting))
        counts = Counter(state.values())
        others = "".join(
            f", {counts[s]} {_WRITTEN[s]}"
            for s in (LayerPrecision.INT4_WEIGHTS, LayerPrecision.INT8_WEIGHTS, LayerPrecision.FLOAT)
            if counts[s]
        )
        self.decide(
            "quantize-search",
            f"{counts[LayerPrecision.INT8]} of {len(self.layers)} layers on 8-bit integers{others}: {setting}",
            f"{quality.sqnr_db:.1f} dB reached on {quality.samples} samples",
        )
