"""Which weights of a graph take 2, 4 or 8 bits, or stay in float, by accuracy or by bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from memoptc.ir import ops
from memoptc.ir.core import Graph
from memoptc.ir.decoder import recognised
from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Context, Precision
from memoptc.passes.precision._quantize.accuracy_check import AccuracyCheck
from memoptc.passes.precision._quantize.coding import CodableWeights, find, obstacle, write_all
from memoptc.passes.precision._quantize.coding_errors import coding_errors, is_table, names_of, reaching_shares
from memoptc.passes.precision._quantize.effort import Effort
from memoptc.passes.precision._quantize.grouped_heads import of_shared_heads
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.remaining_time import Pace
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
from memoptc.passes.precision._quantize.weight_coder import CodedMatrix, CodeKey, Memo, WeightCoder
from memoptc.passes.precision._quantize.weight_format import DECODER_BLOCK, WeightFormat, byte_shares
from memoptc.passes.precision._quantize.weight_only import Writer
from memoptc.passes.precision._quantize.weight_operands import Weight
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

_LEAST = 0.01
"""Part of the noise at an output that a group of weights counts with which adds less to it."""

_GROUP_SAMPLES = 2
"""On how many samples groups are measured: several in more groups say more than one in few."""


class _Asked(Protocol):
    """Options of `mix-weights`, whose docstring says what they are."""

    @property
    def name(self) -> str: ...
    @property
    def min_sqnr(self) -> float | None: ...
    @property
    def tables_sqnr(self) -> float | None: ...
    @property
    def max_loss(self) -> float | None: ...
    @property
    def fallback(self) -> bool: ...
    @property
    def block(self) -> int: ...
    @property
    def smallest(self) -> int: ...
    @property
    def rounding(self) -> bool: ...
    @property
    def decode(self) -> str: ...
    @property
    def exclude(self) -> tuple[str, ...]: ...
    @property
    def study(self) -> bool: ...
    @property
    def size(self) -> float | None: ...
    @property
    def effort(self) -> float: ...


class BitSearch:
    """One run of `mix-weights`."""

    def __init__(self, asked: _Asked, graph: Graph, context: Context) -> None:
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

    def write(
        self, graph: Graph, states: Assignment, coder: WeightCoder, stats: Counter[str], *, plain: Memo | None = None
    ) -> tuple[int, int]:
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
        # rounded by data behind those in 4 bits, which they make up for
        memo = self.narrow_memo if plain is None else plain
        seen = self.context if self.asked.rounding and plain is None and not memo else None
        coarse = Writer(WeightCoder(self.narrow, memo=memo, rounded=coder.rounded), stats)
        after += sum(write_all(graph, narrow, coarse, seen))
        fine = Writer(WeightCoder(replace(self.plan, bits=8, block=DECODER_BLOCK, symmetric=True)), stats)
        for i, weight in enumerate(chosen):
            if state[i] == LayerPrecision.INT8_WEIGHTS:
                in_blocks = self.decodes and not any(site.decoded for site in weight.sites)
                after += fine.write(weight) if in_blocks else writer.write(weight, channels=True)
        coder.signal += fine.coder.signal + coarse.coder.signal
        coder.noise += fine.coder.noise + coarse.coder.noise
        return before, after

    def copy(self, states: Assignment, *, plain: Memo | None = None) -> Graph:
        """A copy of the graph with its weights in these states; 4 bits for those not named.

        Args:
            states: By name.
            plain: Takes the codes of weights in 2 bits, which are then not rounded by data.
        """
        graph = self.graph.clone()
        self.write(graph, states, self.coder(), Counter(), plain=plain)
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
        # bytes were asked for, not the metric: the proof measures that, in scores of all steps where it takes them
        context = self.context if asked.size is None else replace(self.context, metric=None)
        limits = (self.least(), asked.max_loss) if asked.size is None else (None, None)
        try:
            wanted = AccuracyCheck(self.graph, context, *limits, fallback=asked.fallback)
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
        """Choose what fits into so much of the bytes: larger blocks before fewer bits."""
        whole = sum(weight.bytes for weight in self.found.chosen)
        room = int(size * whole)
        self.widen_blocks(room)
        errors = self.errors()
        narrow, noise = self.noise_in_2_bits(wanted)
        layers, passed = [], reaching_shares([(narrow[name], outputs) for name, outputs in noise.items()])
        for name, weight in zip(self.names, self.found.chosen, strict=True):
            own = {
                LayerPrecision.INT2_WEIGHTS: narrow.get(name),
                LayerPrecision.INT4_WEIGHTS: errors[LayerPrecision.INT4_WEIGHTS][name],
                LayerPrecision.INT8_WEIGHTS: errors[LayerPrecision.INT8_WEIGHTS][name],
            }
            part = {
                k: noise[name][k] / narrow[name] if k in noise.get(name, {}) and narrow[name] else p
                for k, p in passed.items()
            }
            states_of = {s: {k: p * e for k, p in part.items()} for s, e in own.items() if e is not None}
            layers.append(Layer(name, weight.sites[0].op.op_type, weight.bytes, 0.0, states_of, name in noise))
        weights = dict(zip(self.names, self.found.chosen, strict=True))
        states = within(layers, room, lambda name, state: self.bytes_in(weights[name], state))
        taken = sum(self.bytes_in(weights[name], state) for name, state in states.items())
        if taken > room + 1:  # sums of parts of bytes
            least = math.ceil(1000 * taken / whole) / 1000
            self.context.warnings.append(
                f"The weights, in their fewest bits, need at least {least:g} of their bytes; size={size:g} was asked "
                f"for. Ask for size={least:g}, or for a larger block than {self.plan.block}."
            )
        quality = wanted.trials.full(self.copy(states))
        setting = f"weights in {size:g} of their bytes, blocks of {self.plan.block}"
        self.note(layers, states, setting, wanted, quality)
        return states

    def widen_blocks(self, room: int) -> None:
        """Take the smallest blocks in which all weights fit in 4 bits; else those in which they take least.

        Half of the weights in 2 bits err far more than all of them in blocks of twice the size.
        """
        blocks, sizes = [self.asked.block * n for n in (1, 2, 4)], []
        for block in blocks:
            self.plan, self.narrow = replace(self.plan, block=block), replace(self.narrow, block=block)
            sizes.append(sum(self.bytes_in(w, LayerPrecision.INT4_WEIGHTS) for w in self.found.chosen))
            if sizes[-1] <= room:
                return
        block = blocks[sizes.index(min(sizes))]
        self.plan, self.narrow = replace(self.plan, block=block), replace(self.narrow, block=block)

    def bytes_in(self, weight: Weight, state: LayerPrecision) -> float:
        """Bytes of a weight in a state, with scales, zero points, and what fills up the last block of each row."""
        bits = {LayerPrecision.INT2_WEIGHTS: 2, LayerPrecision.INT4_WEIGHTS: 4}.get(state)
        site, tensor = weight.sites[0], weight.value.tensor
        if bits is None or site.decoded or tensor is None:
            return weight.bytes * byte_shares(self.plan.block, self.decodes)[state]
        return replace(self.plan, bits=bits).bytes_of(tuple(tensor.shape.numpy()), site.columns)

    def noise_in_2_bits(self, wanted: AccuracyCheck) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Measure what 2 bits change, in groups of neighbours while all others have 4 bits.

        So each copy is as small as what is looked for, and runs as fast.

        Returns:
            By weight: its own error, noise to signal, and its part of what its group adds at each output. Weights that
            cannot have 2 bits, or that onnxruntime does not run so, are in neither.
        """
        everywhere = dict.fromkeys(self.names, LayerPrecision.INT4_WEIGHTS)
        weights = dict(zip(self.names, self.found.chosen, strict=True))
        members = [name for name, weight in weights.items() if not obstacle(weight, self.narrow)]
        before = wanted.trials.quick(self.copy(everywhere), _GROUP_SAMPLES).noise
        group = -(-len(members) // self.looks(wanted, 1.0, _GROUP_SAMPLES)) or 1
        narrow, noise, pace = dict[str, float](), dict[str, dict[str, float]](), Pace(-(-len(members) // group))
        for number, start in enumerate(range(0, len(members), group)):
            self.context.say(f"weights in 2 bits, {pace.at(number)}")
            together, coded = members[start : start + group], dict[CodeKey, CodedMatrix]()
            copy = self.copy({**everywhere, **dict.fromkeys(together, LayerPrecision.INT2_WEIGHTS)}, plain=coded)
            found = wanted.trials.quick(copy, _GROUP_SAMPLES).noise
            if FAILED in found:  # onnxruntime does not run them so
                continue
            for name in together:
                narrow[name] = self.error_in_2_bits(weights[name], coded)
            whole = sum(narrow[name] for name in together) or 1.0
            for key, n in found.items():
                added = max(min(n, _MOST) - min(before.get(key, 0.0), _MOST), _LEAST * min(n, _MOST))
                for name in together:
                    noise.setdefault(name, {})[key] = added * narrow[name] / whole
        return narrow, noise

    def error_in_2_bits(self, weight: Weight, coded: Memo) -> float:
        """Noise to signal of a weight in 2 bits, as it was coded, where it was."""
        found = next((c for key, c in coded.items() if key.tensor == id(weight.value.tensor)), None)
        if found is None:
            return coding_errors(weight, self.narrow)[0]
        return found.noise / found.signal if found.signal else 0.0

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

    def looks(self, wanted: AccuracyCheck, part: float = _ALONE, samples: int = SAMPLES) -> int:
        """Number of weights, or groups of them, that are measured alone, in a part of the time that there is."""
        return min(max(self.effort(wanted).looks(part, samples), _FEWEST), EXACT)

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
