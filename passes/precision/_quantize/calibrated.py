"""A graph with its calibration statistics, from which quantized copies are made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from memoptc.ir.core import Graph, Value
from memoptc.pass_base import Context
from memoptc.passes.precision._migrate.sites import read_axis
from memoptc.passes.precision._quantize import embedding
from memoptc.passes.precision._quantize.coding import MINIMUM_IR_VERSION, SMALLEST, write_all
from memoptc.passes.precision._quantize.correct import Correction, output_axis, spread_inputs
from memoptc.passes.precision._quantize.layer_precision import Assignment, LayerPrecision
from memoptc.passes.precision._quantize.layers import int4_format, int8_format, weights_read_by
from memoptc.passes.precision._quantize.numerics import Codes, Scale, activation_scale, weight_codes
from memoptc.passes.precision._quantize.observation import moments_within_budget
from memoptc.passes.precision._quantize.observe import observe, warn_of_infinite
from memoptc.passes.precision._quantize.recurrent import quantize_recurrent, recurrent
from memoptc.passes.precision._quantize.rounding import Dampings, round_channels
from memoptc.passes.precision._quantize.settings import QuantizationConfig, Setting
from memoptc.passes.precision._quantize.static import Memo, StaticQuantizer
from memoptc.passes.precision._quantize.static_choice import Choice, is_float32, may_code_at_run_time, share_scales
from memoptc.passes.precision._quantize.tables import Table
from memoptc.passes.precision._quantize.weight_coder import Memo as BlockMemo
from memoptc.passes.precision._quantize.weight_coder import WeightCoder
from memoptc.passes.precision._quantize.weight_only import Writer
from memoptc.runtime.blas import one_thread
from memoptc.runtime.calibrate import Range, calibrate
from memoptc.runtime.channels import Channels, channel_statistics
from memoptc.runtime.observers import covered_range

ALL_INTEGER: Assignment = {}
"""Every layer on integers."""


@dataclass
class CalibratedGraph:
    """A graph after recoveries, with what calibration saw in it.

    Args:
        graph: The graph in float.
        context: Of the compile.
        codes: What codes weights have.
        checkpoint: A folder for interrupted calibration, or `None`.
        stats: What the recoveries did.
        memo: Codes of weights, for the next copy.
        blocks: The same of weights in blocks of 4 bits.
        bytes: The same of weights in blocks of 8 bits.
        tables: The same of weights that are decoded while loading.
    """

    graph: Graph
    context: Context
    codes: QuantizationConfig
    checkpoint: Path | None = None
    stats: Counter[str] = field(default_factory=Counter)
    memo: Memo = field(default_factory=dict)
    blocks: BlockMemo = field(default_factory=dict)
    bytes: BlockMemo = field(default_factory=dict)
    tables: dict[tuple[int, int], Table] = field(default_factory=dict)
    _rounded: dict[bool, dict[Value, Codes]] = field(default_factory=dict)
    _covers: dict[str, dict[Value, Scale]] = field(default_factory=dict)

    @cached_property
    def choice(self) -> Choice:
        """All that can be quantized."""
        return self.codes.choose(self.graph, self.codes.excluded, Counter())

    @cached_property
    def run_time_products(self) -> frozenset[str]:
        """Names of the products that can find the range of what they read in each run."""
        return frozenset() if self.codes.outputs else frozenset(op.name for op in may_code_at_run_time(self.choice))

    @cached_property
    def ranges(self) -> dict[Value, Range]:
        """Ranges of activations, as calibration saw them."""
        wanted = [v for v in self.choice.tensors if is_float32(v)]
        data, kept = self.context.calibration, self.checkpoint

        def look(path: Path, names: dict[str, Value]) -> dict[str, Range]:
            return calibrate(path, names, data, "auto", checkpoint=kept, infinite=infinite)

        infinite: dict[str, str] = {}
        found = observe(self.graph, wanted, self.context, look)
        warn_of_infinite(infinite, self.context)
        return found

    @cached_property
    def channels(self) -> dict[Value, Channels]:
        """Statistics of the channels that products and convolutions read."""
        axes = {op.operand: read_axis(op) for op in self.choice.heavy if is_float32(op.operand)}

        def look(path: Path, names: dict[str, Value]) -> dict[str, Channels]:
            return channel_statistics(
                path, {n: axes[v] for n, v in names.items()}, self.context.calibration, infinite={}
            )

        return observe(self.graph, axes, self.context, look)

    def drop_unused_codes(self, setting: Setting | None) -> None:
        """Forget codes that this setting does not use; all of them for `None`."""
        for clip in list(self._rounded):
            if setting is None or not setting.rounding or clip != setting.clip:
                del self._rounded[clip]
        for key in list(self.memo):
            if setting is None or setting.rounding or key[2] != setting.clip:
                del self.memo[key]

    def was_rounded(self, clip: bool) -> bool:
        """True if `rounded` has been asked for these."""
        return clip in self._rounded

    def rounded(self, clip: bool) -> dict[Value, Codes]:
        """Codes of weights, rounded for the least error of their products; those of much work are left out."""
        if clip not in self._rounded:
            found, dampings = dict[Value, Codes](), Dampings()
            with one_thread():
                for op, moments in moments_within_budget(self.graph, self.choice.heavy, self.context):
                    weight, seen = op.operands[1], self.channels.get(op.operand) if clip else None
                    assert weight.tensor is not None
                    floats = weight.tensor.numpy()
                    energy = None if seen is None else spread_inputs(op, seen.mean_square)
                    codes = weight_codes(floats, output_axis(op), self.codes.dtype, self.codes.bits, energy)
                    found[weight] = round_channels(floats, codes, moments, self.codes.bits, dampings)
            self._rounded[clip] = found
        return self._rounded[clip]

    def scales(self, method: str) -> dict[Value, Scale]:
        """Codes of all activations, by one method."""
        if method not in self._covers:
            found = {}
            for value, seen in self.ranges.items():
                assert seen.histogram is not None
                ends = (seen.min, seen.max)
                if method != "auto":
                    ends, _ = covered_range(seen.histogram, seen.extremes, method, self.codes.percentile)
                found[value] = activation_scale(*seen.with_headroom(ends))
            self._covers[method] = found
        return self._covers[method]

    def quantized(self, setting: Setting, states: Assignment = ALL_INTEGER, stats: Counter[str] | None = None) -> Graph:
        """Give a quantized copy.

        Args:
            setting: How.
            states: Name of a node -> its state (see `tradeoff`), where that is not `LayerPrecision.INT8`.
            stats: Counts what was done.
        """
        stats = Counter() if stats is None else stats
        mapping: dict[Value, Value] = {}
        graph = self.graph.clone(mapping)
        weights = frozenset(n for n, state in states.items() if state == LayerPrecision.INT8_WEIGHTS)
        left = self.codes.excluded | frozenset(
            n for n, state in states.items() if state in (LayerPrecision.FLOAT, LayerPrecision.INT4_WEIGHTS)
        )
        elsewhere = weights & (self.codes.wide | self.codes.tabled)
        left, decoded = left | elsewhere, weights - elsewhere
        choice = self.codes.choose(
            graph, left, stats, decoded, self.run_time_products if setting.run_time else frozenset()
        )
        covers = self.scales(setting.method)
        scales = {mapping[v]: scale for v, scale in covers.items() if mapping[v] in choice.tensors}
        share_scales(choice, scales)
        correction = Correction()
        if setting.clip or setting.bias:
            channels = {mapping[v]: c for v, c in self.channels.items()}
            correction = Correction(channels, setting.clip, setting.bias)
        if setting.rounding:
            rounded = {mapping[v]: codes for v, codes in self.rounded(setting.clip).items()}
            correction = replace(correction, codes=rounded)
        StaticQuantizer(
            graph, choice, scales, self.codes.dtype, self.codes.bits, stats, correction=correction, memo=self.memo
        ).emit()
        if self.codes.embeddings:
            embedding.quantize_tables(graph, left, stats, self.memo)
        for op in list(recurrent(graph, left)) if self.codes.recurrent else ():
            quantize_recurrent(op)
            stats["quantized LSTM"] += 1
        self._write_blocks(graph, states, stats)
        return graph

    def _write_blocks(self, graph: Graph, states: Assignment, stats: Counter[str]) -> None:
        """Put weights in blocks of 4 bits, and those of nodes that have no other place for codes of 8."""
        narrow = {n for n, state in states.items() if state == LayerPrecision.INT4_WEIGHTS}
        writer = Writer(WeightCoder(int4_format(graph), memo=self.blocks), stats)
        if narrow and not self.blocks:
            self._code_blocks()
        for weight in weights_read_by(graph, narrow, self.codes.weight_only):
            writer.write(weight)
        left = {n for n, state in states.items() if state in (LayerPrecision.FLOAT, LayerPrecision.INT4_WEIGHTS)}
        wide = {n for n, state in states.items() if state == LayerPrecision.INT8_WEIGHTS} & self.codes.wide
        for weight in weights_read_by(graph, (self.codes.weight_only - left) | wide, self.codes.weight_only):
            blocks = int8_format(graph, weight)
            if blocks is None:
                writer.write(weight, channels=True)
            else:
                Writer(WeightCoder(blocks, memo=self.bytes), stats).write(weight)
        tabled = {n for n, state in states.items() if state == LayerPrecision.INT8_WEIGHTS} & self.codes.tabled
        loading = WeightCoder(replace(int4_format(graph), decode="load"), tables=self.tables)
        for weight in (w for w in weights_read_by(graph, tabled) if w.bytes >= SMALLEST):
            Writer(loading, stats).write(weight, channels=True)
        if narrow:
            graph.info.ir_version = max(graph.info.ir_version, MINIMUM_IR_VERSION)

    def _code_blocks(self) -> None:
        """Code all weights in blocks once, each knowing the codes of those before it."""
        graph = self.graph.clone()
        writer = Writer(WeightCoder(int4_format(graph), memo=self.blocks), Counter())
        for _ in write_all(graph, weights_read_by(graph, self.codes.narrow), writer, self.context):
            pass
