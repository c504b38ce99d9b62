"""mix-weights: each weight in blocks of 4 bits, in 8 bits, or in float, as small as the accuracy asked for allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from memoptc.ir import ops
from memoptc.ir.core import Graph
from memoptc.ir.decoder import recognised
from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Context, Pass, Precision
from memoptc.passes.precision._quantize.accuracy_check import STRICTER, AccuracyCheck
from memoptc.passes.precision._quantize.coding import SMALLEST, CodableWeights, find, obstacle, report, write_all
from memoptc.passes.precision._quantize.coding_errors import coding_errors, is_table, names_of, reaching_shares
from memoptc.passes.precision._quantize.effort import Effort
from memoptc.passes.precision._quantize.grouped_heads import of_shared_heads
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.remaining_time import Pace
from memoptc.passes.precision._quantize.replay import search_memoized
from memoptc.passes.precision._quantize.rounding import Rounded
from memoptc.passes.precision._quantize.sensitivity import EXACT, SAMPLES
from memoptc.passes.precision._quantize.tables import Table
from memoptc.passes.precision._quantize.tradeoff import (
    CHOICES,
    GIVE_BACK,
    Layer,
    greedy_moves,
    layer_row,
    needed,
    within,
)
from memoptc.passes.precision._quantize.weight_coder import Memo, WeightCoder
from memoptc.passes.precision._quantize.weight_format import DECODER_BLOCK, WeightFormat, byte_shares
from memoptc.passes.precision._quantize.weight_only import Writer
from memoptc.report.model import Decision
from memoptc.runtime.quality import FAILED, Quality, decibels

_ALONE, _FEWEST = 0.5, 4
"""Part of what a search may look that is spent on measuring weights alone, and how many are measured in any case."""

_BITS = {
    LayerPrecision.INT2_WEIGHTS: "in 2 bits",
    LayerPrecision.INT4_WEIGHTS: "in 4 bits",
    LayerPrecision.INT8_WEIGHTS: "in 8 bits",
    LayerPrecision.FLOAT: "in float",
}
"""States as the report names them."""

_MOST = 10.0
"""Noise to signal above which more says nothing."""


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

    def stricter(self) -> Pass | None:
        """With more layers in float: as data held out showed, what was searched on says too little."""
        more = self.fallback and self.by == "outputs" and self.min_sqnr is not None and self.size is None
        return replace(self, min_sqnr=(self.min_sqnr or 0.0) + STRICTER) if more else None

    def run(self, graph: Graph, context: Context) -> None:
        """Code the weights of the graph."""
        if self.by == "weights":
            self._search(graph, context)
        else:
            search_memoized(self, graph, context, lambda counting: self._search(graph, counting))

    def _search(self, graph: Graph, context: Context) -> None:
        search = _Search(self, graph, context)
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


class _Search:
    """One run of the pass."""

    def __init__(self, asked: MixWeights, graph: Graph, context: Context) -> None:
        self.asked, self.graph, self.context = asked, graph, context
        self.facts = recognised(graph)
        self.decodes = self.facts is not None
        activations = 8 if self.decodes else 32
        opset = ops.opset_of(graph) or 0
        self.plan = WeightFormat(4, asked.block, False, "nbits", opset, activations=activations, decode=asked.decode)
        self.found = self.find(graph)
        self.names = names_of(self.found.chosen)
        self.shared = of_shared_heads(graph, self.facts, self.found.chosen)
        self.memo: Memo = {}
        self.narrow = replace(self.plan, bits=2, activations=8)
        self.narrow_memo: Memo = {}
        self.tables: dict[tuple[int, int], Table] = {}
        self.rounded: list[Rounded] = []

    def coder(self) -> WeightCoder:
        """Gives codes of 4 bits and tables, which all copies of the graph have in common."""
        return WeightCoder(self.plan, memo=self.memo, tables=self.tables, rounded=self.rounded)

    def find(self, graph: Graph) -> CodableWeights:
        """The weights of the graph or of a copy; the same ones in the same order."""
        return find(graph, self.plan, self.asked.smallest, frozenset(self.asked.exclude))

    def write(self, graph: Graph, states: Assignment, coder: WeightCoder, stats: Counter[str]) -> tuple[int, int]:
        """Code the weights of the graph or of a copy; give the bytes of those that are coded, before and after."""
        writer = Writer(coder, stats)
        state = {i: states.get(name, LayerPrecision.INT4_WEIGHTS) for i, name in enumerate(self.names)}
        chosen = self.find(graph).chosen
        blocks = [weight for i, weight in enumerate(chosen) if state[i] == LayerPrecision.INT4_WEIGHTS]
        before = sum(weight.bytes for i, weight in enumerate(chosen) if state[i] != LayerPrecision.FLOAT)
        # rounded by data once, and known from then on
        observed = self.context if self.asked.rounding and not (self.memo or self.tables) else None
        after = sum(write_all(graph, blocks, writer, observed))
        narrow = [weight for i, weight in enumerate(chosen) if state[i] == LayerPrecision.INT2_WEIGHTS]
        coarse = Writer(WeightCoder(self.narrow, memo=self.narrow_memo, rounded=coder.rounded), stats)
        after += sum(write_all(graph, narrow, coarse, observed))
        fine = Writer(WeightCoder(replace(self.plan, bits=8, block=DECODER_BLOCK, symmetric=True)), stats)
        for i, weight in enumerate(chosen):
            if state[i] == LayerPrecision.INT8_WEIGHTS:
                in_blocks = self.decodes and not any(site.decoded for site in weight.sites)
                after += fine.write(weight) if in_blocks else writer.write(weight, channels=True)
        coder.signal += fine.coder.signal + coarse.coder.signal
        coder.noise += fine.coder.noise + coarse.coder.noise
        return before, after

    def copy(self, states: Assignment) -> Graph:
        """A copy of the graph with its weights in these states; 4 bits for those not named."""
        graph = self.graph.clone()
        self.write(graph, states, self.coder(), Counter())
        return graph

    def least(self) -> float | None:
        """Least SQNR of the outputs, in decibels."""
        bytes_ = Counter[bool]()
        for weight in self.found.chosen:
            bytes_[any(is_table(site, self.plan) for site in weight.sites)] += weight.bytes
        limits = [self.asked.min_sqnr, self.asked.tables_sqnr if bytes_[True] > bytes_[False] else None]
        return max((limit for limit in limits if limit is not None), default=None)

    def by_weights(self) -> dict[str, LayerPrecision]:
        """Choose by what coding changes in the weights."""
        limit = self.asked.min_sqnr
        assert limit is not None
        layers = self.layers({LayerPrecision.INT4_WEIGHTS: {}, LayerPrecision.INT8_WEIGHTS: {}}, self.errors())
        steps = greedy_moves(layers, floats=self.asked.fallback)
        states = steps.states(steps.moves[: needed(layers, steps, 10 ** (-limit / 10))])
        self.note(layers, states, "estimated from weights alone, without data")
        return states

    def by_outputs(self) -> dict[str, LayerPrecision]:
        """Choose by what coding changes in the outputs."""
        asked = self.asked
        try:
            wanted = AccuracyCheck(self.graph, self.context, self.least(), asked.max_loss, fallback=asked.fallback)
        except InputError as error:
            if self.context.calibration is not None or asked.min_sqnr is None or asked.max_loss is not None:
                raise
            self.context.warnings.append(f"{error.message} What 4 bits cost is estimated from the weights alone.")
            return self.by_weights()
        if asked.size is not None:
            return self.by_size(asked.size, wanted)
        states: Assignment = {
            **dict.fromkeys(self.names, LayerPrecision.INT4_WEIGHTS),
            **{self.names[i]: LayerPrecision.INT8_WEIGHTS for i in self.shared},
        }
        quality, layers = wanted.trials.full(self.copy(states)), []
        if not wanted.good(quality) or asked.study:
            layers = self.sensitivities(wanted)
        if not wanted.good(quality):
            if not asked.fallback:
                quality = wanted.refuse(quality, layers)
            else:
                effort = self.effort(wanted)
                effort.spend(sum(layer.measured for layer in layers) * effort.look(SAMPLES))
                left = effort.looks(1.0)
                steps, back = greedy_moves(layers), min(left, GIVE_BACK)
                states, quality = wanted.choose(steps, layers, self.copy, quality, back, max(left, CHOICES))
        setting = "weights in 4 bits, rounded by data" if self.rounded else "weights in 4 bits"
        setting += ", activations coded by the kernel" if self.plan.activations == 8 else ""
        self.note(layers, states, setting, wanted, quality)
        return dict(states)

    def by_size(self, size: float, wanted: AccuracyCheck) -> dict[str, LayerPrecision]:
        """Choose what fits into so much of the bytes."""
        errors, narrow = self.errors(), {}
        for name, weight in zip(self.names, self.found.chosen, strict=True):
            if not obstacle(weight, self.narrow):
                narrow[name] = coding_errors(weight, self.narrow)[0]
        group = -(-len(narrow) // self.looks(wanted)) or 1
        members, noise, failed = list(narrow), dict[str, dict[str, float]](), set[str]()
        pace = Pace(-(-len(narrow) // group))
        for number, start in enumerate(range(0, len(members), group)):
            self.context.say(f"weights in 2 bits, {pace.at(number)}")
            together, graph = members[start : start + group], self.graph.clone()
            writer, named = (
                Writer(WeightCoder(self.narrow), Counter()),
                dict(zip(self.names, self.find(graph).chosen, strict=True)),
            )
            for name in together:
                writer.write(named[name])
            found = wanted.trials.quick(graph, SAMPLES).noise
            if FAILED in found:  # onnxruntime does not run them so
                failed.update(together)
                continue
            whole = sum(narrow[name] for name in together) or 1.0
            for key, n in found.items():
                for name in together:
                    noise.setdefault(name, {})[key] = min(n, _MOST) * narrow[name] / whole
        layers, passed = [], reaching_shares([(narrow[name], outputs) for name, outputs in noise.items()])
        for name, weight in zip(self.names, self.found.chosen, strict=True):
            two = narrow.get(name) if name not in failed else None
            own = {
                LayerPrecision.INT2_WEIGHTS: two,
                LayerPrecision.INT4_WEIGHTS: errors[LayerPrecision.INT4_WEIGHTS][name],
                LayerPrecision.INT8_WEIGHTS: errors[LayerPrecision.INT8_WEIGHTS][name],
            }
            part = {
                k: noise[name][k] / narrow[name] if k in noise.get(name, {}) and narrow[name] else p
                for k, p in passed.items()
            }
            states_of = {s: {k: p * e for k, p in part.items()} for s, e in own.items() if e is not None}
            layers.append(
                Layer(name, weight.sites[0].op.op_type, weight.bytes, 0.0, states_of, name in noise and group == 1)
            )
        sizes, parts = {layer.name: layer.nbytes for layer in layers}, byte_shares(self.asked.block, self.decodes)
        room = int(size * sum(sizes.values()))
        states = within(layers, room, lambda name, state: sizes[name] * parts[state])
        taken = sum(sizes[name] * parts[state] for name, state in states.items())
        if taken > room + 1:  # sums of parts of bytes
            least = math.ceil(1000 * taken / sum(sizes.values())) / 1000
            self.context.warnings.append(
                f"The weights, in their fewest bits, need at least {least:g} of their bytes; size={size:g} was asked "
                f"for. Ask for size={least:g}, or for a larger block than {self.asked.block}."
            )
        quality = wanted.trials.full(self.copy(states))
        self.note(layers, states, f"weights in {size:g} of their bytes", wanted, quality)
        return states

    def errors(self) -> dict[LayerPrecision, dict[str, float]]:
        """By state and weight: what coding changes in it, noise to signal."""
        states = (LayerPrecision.INT4_WEIGHTS, LayerPrecision.INT8_WEIGHTS)
        found: dict[LayerPrecision, dict[str, float]] = {state: {} for state in states}
        for name, weight in zip(self.names, self.found.chosen, strict=True):
            for state, error in zip(states, coding_errors(weight, self.plan), strict=True):
                found[state][name] = error
        return found

    def effort(self, wanted: AccuracyCheck) -> Effort:
        """Cost of a measurement, and the budget of the search."""
        few, _ = wanted.examiner.samples
        effort = Effort.of((site.op for w in self.found.chosen for site in w.sites), self.context.dims, few, few)
        effort.most, effort.factor = self.context.left_for_numbers, self.asked.effort
        return effort

    def looks(self, wanted: AccuracyCheck) -> int:
        """Number of weights, or groups of them, that are measured alone."""
        return min(max(self.effort(wanted).looks(_ALONE, SAMPLES), _FEWEST), EXACT)

    def sensitivities(self, wanted: AccuracyCheck) -> list[Layer]:
        """Measure each weight alone in 4 bits, the coarsest first and exactly; 8 bits follow from their errors."""
        errors = self.errors()
        everywhere = dict.fromkeys(self.names, LayerPrecision.FLOAT)
        count = EXACT if self.asked.study else self.looks(wanted)
        exact = sorted(self.names, key=lambda name: -errors[LayerPrecision.INT4_WEIGHTS][name])[:count]
        noise, pace = {}, Pace(len(exact))
        for number, name in enumerate(exact):
            self.context.say(f"each weight alone, {pace.at(number)}")
            noise[name] = wanted.trials.quick(
                self.copy({**everywhere, name: LayerPrecision.INT4_WEIGHTS}), SAMPLES
            ).noise
        return self.layers({LayerPrecision.INT4_WEIGHTS: noise, LayerPrecision.INT8_WEIGHTS: {}}, errors)

    def layers(
        self,
        measured: Mapping[LayerPrecision, Mapping[str, Mapping[str, float]]],
        errors: Mapping[LayerPrecision, Mapping[str, float]],
    ) -> list[Layer]:
        """Noise of each layer in each state: measured, or estimated from its weights' own errors."""
        passed = reaching_shares(
            [
                (errors[LayerPrecision.INT4_WEIGHTS][name], noise)
                for name, noise in measured[LayerPrecision.INT4_WEIGHTS].items()
            ]
        )
        found = []
        for name, weight in zip(self.names, self.found.chosen, strict=True):
            coarse = measured[LayerPrecision.INT4_WEIGHTS].get(name)
            if coarse is None:
                coarse = {key: part * errors[LayerPrecision.INT4_WEIGHTS][name] for key, part in passed.items()}
            ratio = errors[LayerPrecision.INT8_WEIGHTS][name] / max(errors[LayerPrecision.INT4_WEIGHTS][name], 1e-30)
            noise = {
                LayerPrecision.INT4_WEIGHTS: coarse,
                LayerPrecision.INT8_WEIGHTS: {key: n * min(ratio, 1.0) for key, n in coarse.items()},
            }
            op_type = weight.sites[0].op.op_type
            found.append(Layer(name, op_type, weight.bytes, 0.0, noise, name in measured[LayerPrecision.INT4_WEIGHTS]))
        return found

    def note(
        self,
        layers: Sequence[Layer],
        states: Assignment,
        setting: str,
        wanted: AccuracyCheck | None = None,
        quality: Quality | None = None,
    ) -> None:
        """Tell the report what was decided for each weight, and what came of it."""
        context, name = self.context, self.asked.name
        for layer in layers:
            if states[layer.name] != LayerPrecision.INT4_WEIGHTS:
                worst = max(layer.noise, key=layer.alone)
                why = f"{decibels(layer.worst):.1f} dB with this weight alone {_BITS[worst]}"
                why += "" if layer.measured else ", estimated"
                context.decisions.append(Decision("mixed precision", f"{layer.name}: {states[layer.name]}", why))
        sqnr = -10 * math.log10(max(sum(layer.alone(states[layer.name]) for layer in layers), 1e-30))
        reached: dict[str, object] = {"sqnr_db": sqnr, "samples": 0, "setting": setting}
        why = f"{sqnr:.1f} dB expected if all that coding changes in weights reached the outputs"
        if wanted is not None and quality is not None:
            reached = wanted.reached(quality, setting)
            what = "made-up inputs" if wanted.made_up else "samples"
            why = f"{quality.sqnr_db:.1f} dB reached on {quality.samples} {what}"
        rows = [layer_row(layer, states[layer.name]) for layer in layers]
        context.artefacts.precision = Precision(rows, reached)
        counts = Counter(states.values())
        what = ", ".join(f"{counts[state]} {text}" for state, text in _BITS.items() if counts[state])
        context.decisions.append(Decision(name, f"of {len(self.names)} weights {what}", why))
