"""One way to quantize a graph, tried on a copy: settings, calibrated variants, the outcome on data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.pool import WeightPool
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._migrate.sites import read_axis
from memoptc.passes.precision._quantize import embedding
from memoptc.passes.precision._quantize.coding import MINIMUM_IR_VERSION, SMALLEST, obstacle, write_all
from memoptc.passes.precision._quantize.correct import Correction, output_axis, spread_inputs
from memoptc.passes.precision._quantize.numerics import Codes, Scale, activation_scale, weight_codes
from memoptc.passes.precision._quantize.observe import observe
from memoptc.passes.precision._quantize.places import GATHER, PRODUCTS, Weight, find_weights
from memoptc.passes.precision._quantize.reading import columns_of, in_groups, moments_of, why_not
from memoptc.passes.precision._quantize.recurrent import quantize_recurrent, recurrent
from memoptc.passes.precision._quantize.rounding import Dampings, round_channels
from memoptc.passes.precision._quantize.static import Memo, StaticQuantizer
from memoptc.passes.precision._quantize.static_choice import Choice, choose, is_float32, share_scales
from memoptc.passes.precision._quantize.tradeoff import BLOCKS, FLOAT, WEIGHTS
from memoptc.passes.precision._quantize.weight_only import Memo as BlockMemo
from memoptc.passes.precision._quantize.weight_only import WeightFormat, Writer
from memoptc.runtime.blas import one_thread
from memoptc.runtime.calibrate import Range, calibrate
from memoptc.runtime.channels import Channels, channel_statistics
from memoptc.runtime.devices import Device
from memoptc.runtime.kernels import gathers_codes, multiplies_codes
from memoptc.runtime.moments import Moments
from memoptc.runtime.observers import covered_range
from memoptc.runtime.quality import FAILED, Examiner, Quality
from memoptc.runtime.result_cache import ResultCache
from memoptc.runtime.spool import trim

ALL_INTEGER: Mapping[str, str] = {}
"""Every layer on integers."""

BLOCK = 32
"""Weights that share a scale where they are in 4 bits."""

INT8_BLOCK_MIN_BYTES = 1 << 18
"""Bytes from which a weight with float activations is read in blocks: where it were decoded in each run, the floats
would take their room and time all the same."""

INT8_BLOCK_SIZES = (128, 64, 32)
"""The same in 8 bits: that of least bytes is taken."""

WORK = 3e11
"""Multiplications that rounding weights by data may take, half a minute or so."""


@dataclass(frozen=True)
class Setting:
    """Setting by which scales and zero points are chosen.

    Args:
        recoveries: Passes that prepare the graph.
        method: Ranges of activations; see `memoptc.runtime.observers`.
        clip: Clip weights where the error of the product is least.
        bias: Correct biases.
        rounding: Round weights for the least error of their products.
    """

    recoveries: tuple[Pass, ...] = ()
    method: str = "auto"
    clip: bool = False
    bias: bool = False
    rounding: bool = False

    def __str__(self) -> str:
        parts = [p.name for p in self.recoveries] + [f"ranges by {self.method}"]
        parts += ["clipped weights"] if self.clip else []
        parts += ["weights rounded by data"] if self.rounding else []
        return ", ".join(parts + (["corrected biases"] if self.bias else []))


@dataclass(frozen=True)
class QuantizationConfig:
    """Quantization configuration of weights, whatever the setting.

    Args:
        dtype: Element type.
        bits: Bits.
        device: What has integer kernels.
        percentile: For the method of that name, in percent.
        excluded: Node names and operators that stay in float.
        embeddings: Also code tables of Gather.
        recurrent: Also code weights of LSTM.
        outputs: Whether outputs shall be codes, too.
        narrow: Names of nodes whose weights can be in blocks of 4 bits.
        apart: Names of those among them that have no integer kernel.
        wide: Names of products whose weights, in float activations, are read in blocks of 8 bits.
    """

    dtype: DType
    bits: int
    device: Device
    percentile: float = 99.99
    excluded: frozenset[str] = frozenset()
    embeddings: bool = True
    recurrent: bool = True
    outputs: bool = False
    narrow: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()

    def choose(self, graph: Graph, excluded: frozenset[str], stats: Counter[str], decoded: frozenset[str]) -> Choice:
        """Decide what to quantize in a graph, as `static.choose`."""
        return choose(graph, excluded, stats, self.device, outputs=self.outputs, decoded=decoded)


@dataclass
class Variant:
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
    """

    graph: Graph
    context: Context
    codes: QuantizationConfig
    checkpoint: Path | None = None
    stats: Counter[str] = field(default_factory=Counter)
    memo: Memo = field(default_factory=dict)
    blocks: BlockMemo = field(default_factory=dict)
    bytes: BlockMemo = field(default_factory=dict)
    _rounded: dict[bool, dict[Value, Codes]] = field(default_factory=dict)
    _covers: dict[str, dict[Value, Scale]] = field(default_factory=dict)

    @cached_property
    def choice(self) -> Choice:
        """All that can be quantized."""
        return self.codes.choose(self.graph, self.codes.excluded, Counter(), frozenset())

    @cached_property
    def ranges(self) -> dict[Value, Range]:
        """Ranges of activations, as calibration saw them."""
        wanted = [v for v in self.choice.tensors if is_float32(v)]
        data, kept = self.context.calibration, self.checkpoint

        def look(path: Path, names: dict[str, Value]) -> dict[str, Range]:
            return calibrate(path, names, data, "auto", checkpoint=kept)

        return observe(self.graph, wanted, self.context, look)

    @cached_property
    def channels(self) -> dict[Value, Channels]:
        """Statistics of the channels that products and convolutions read."""
        axes = {op.operand: read_axis(op) for op in self.choice.heavy if is_float32(op.operand)}

        def look(path: Path, names: dict[str, Value]) -> dict[str, Channels]:
            return channel_statistics(path, {n: axes[v] for n, v in names.items()}, self.context.calibration)

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
                for op, moments in _observed(self.graph, self.choice.heavy, self.context):
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
                found[value] = activation_scale(*ends)
            self._covers[method] = found
        return self._covers[method]

    def quantized(
        self, setting: Setting, states: Mapping[str, str] = ALL_INTEGER, stats: Counter[str] | None = None
    ) -> Graph:
        """Give a quantized copy.

        Args:
            setting: How.
            states: Name of a node -> its state (see `tradeoff`), where that is not `INTEGER`.
            stats: Counts what was done.
        """
        stats = Counter() if stats is None else stats
        mapping: dict[Value, Value] = {}
        graph = self.graph.clone(mapping)
        weights = frozenset(n for n, state in states.items() if state == WEIGHTS)
        left = self.codes.excluded | frozenset(n for n, state in states.items() if state in (FLOAT, BLOCKS))
        left, decoded = left | (weights & self.codes.wide), weights - self.codes.wide
        choice = self.codes.choose(graph, left, stats, decoded)
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

    def _write_blocks(self, graph: Graph, states: Mapping[str, str], stats: Counter[str]) -> None:
        """Put weights in blocks of 4 bits, and those of nodes that have no other place for codes of 8."""
        narrow = {n for n, state in states.items() if state == BLOCKS}
        writer = Writer(_plan(graph), stats, memo=self.blocks)
        if narrow and not self.blocks:
            self._code_blocks()
        for weight in _readable_by(graph, narrow, self.codes.apart):
            writer.write(weight)
        left = {n for n, state in states.items() if state in (FLOAT, BLOCKS)}
        wide = {n for n, state in states.items() if state == WEIGHTS} & self.codes.wide
        for weight in _readable_by(graph, (self.codes.apart - left) | wide, self.codes.apart):
            blocks = _byte_plan(graph, weight)
            if blocks is None:
                writer.write(weight, channels=True)
            else:
                Writer(blocks, stats, memo=self.bytes).write(weight)
        if narrow:
            graph.info.ir_version = max(graph.info.ir_version, MINIMUM_IR_VERSION)

    def _code_blocks(self) -> None:
        """Code all weights in blocks once, each knowing the codes of those before it."""
        graph = self.graph.clone()
        writer = Writer(_plan(graph), Counter(), memo=self.blocks)
        for _ in write_all(graph, _readable_by(graph, self.codes.narrow), writer, self.context):
            pass


class Trials:
    """Runs copies of a graph against it.

    Args:
        examiner: Holds them against the graph in float.
        pool: Where a copy lies while it runs, with the weights that it has in common with others.
        cache: Where outcomes are kept for a compile that begins anew, if anywhere.
        about: What they follow from besides the copy: graph, data, metric.
    """

    def __init__(self, examiner: Examiner, pool: WeightPool, cache: ResultCache | None = None, about: str = "") -> None:
        self.examiner, self._pool, self._cache, self._about = examiner, pool, cache, about
        self.count = 0

    def quick(self, graph: Graph, most: int | None = None) -> Quality:
        """Compare on few samples."""
        return self._with(graph, lambda path: self.examiner.quick(path, most), f"quick {most}")

    def full(self, graph: Graph) -> Quality:
        """Compare on all, and measure the metric."""
        return self._with(graph, self.examiner.full, "full")

    def _with(self, graph: Graph, look: Callable[[Path], Quality], how: str) -> Quality:
        self.count += 1
        path = self._pool.write(graph, "trial.onnx")
        try:
            if self._cache is None:
                return look(path)
            key = ResultCache.key(self._about, how, self._pool.digest(graph))
            known = self._cache.get_record(key)
            if known is None:
                known = vars(look(path))
                self._cache.put_record(key, known)
            return Quality(**known)
        except MemoptcError:  # what onnxruntime does not run is no candidate
            return Quality({FAILED: math.inf}, 0, -math.inf)
        finally:
            path.unlink()
            trim(collect=False)


def name_layers(
    graph: Graph, codes: QuantizationConfig, *, narrow: bool = False
) -> tuple[dict[str, Op], QuantizationConfig]:
    """Give everything with weights that can be quantized a name of its own, and list it, in order.

    Args:
        graph: The graph.
        codes: What codes weights have.
        narrow: Also list subgraphs, and let weights be in blocks of 4 bits.

    Returns:
        The nodes, and the codes with the names of those that can be in blocks.
    """
    found = set(codes.choose(graph, codes.excluded, Counter(), frozenset()).heavy)
    found |= set(embedding.tables(graph, codes.excluded, Counter())) if codes.embeddings else set()
    found |= set(recurrent(graph, codes.excluded)) if codes.recurrent else set()
    plan, blocks, whole, wide = _plan(graph), set[Op](), set[Op](), set[Op]()
    for weight in find_weights(graph, codes.excluded):
        if (
            weight.bytes >= INT8_BLOCK_MIN_BYTES
            and all(site.op in found for site in weight.sites)
            and not obstacle(weight, plan)
        ):
            wide |= {site.op for site in weight.sites} if _byte_plan(graph, weight) is not None else set()
        together = _tied(weight, graph) and codes.embeddings
        if (narrow or together) and weight.bytes >= SMALLEST and not obstacle(weight, plan):
            if together:  # one code for all that read it, and one layer
                blocks.add(weight.sites[0].op)
                whole |= {site.op for site in weight.sites}
            else:
                blocks |= {site.op for site in weight.sites if codes.embeddings or site.op.op_type != GATHER}
    found -= whole
    layers: dict[str, Op] = {}
    taken: set[str] = set()
    for op in graph.walk():
        if op in found or op in blocks or op in whole:
            number, name = 1, op.name
            while not op.name or op.name in taken:
                op.name = (
                    f"{name or f'{op.op_type}_{op.result.name}'}{'' if number == 1 and not name else f'_{number}'}"
                )
                number += 1
            taken.add(op.name)
            if op in found or op in blocks:
                layers[op.name] = op
    named = replace(
        codes,
        narrow=frozenset(op.name for op in blocks if narrow),
        apart=frozenset(op.name for op in blocks - found),
        wide=frozenset(op.name for op in (wide & found)),
        excluded=codes.excluded | frozenset(op.name for op in whole),
    )
    return layers, named


def _plan(graph: Graph) -> WeightFormat:
    return WeightFormat(4, BLOCK, False, "nbits", ops.opset_of(graph) or 0)


def _tied(weight: Weight, graph: Graph) -> bool:
    """True if lookups and products of the top graph share a weight, which then has one code."""
    kinds = {site.op.op_type for site in weight.sites}
    top = all(site.op.graph is graph for site in weight.sites)
    return top and GATHER in kinds and len(kinds) > 1 and not weight.obstacle


def _byte_plan(graph: Graph, weight: Weight) -> WeightFormat | None:
    """Blocks of 8 bits for a weight; `None` where not all that reads it has a kernel for them."""
    lookups = {site.op.op_type == GATHER for site in weight.sites}
    known = (gathers_codes(8) or True not in lookups) and (multiplies_codes(8) or False not in lookups)
    if not known or any(site.op.op_type not in (*PRODUCTS, GATHER) for site in weight.sites):
        return None
    columns = weight.numpy().shape[weight.sites[0].columns]
    block = min(INT8_BLOCK_SIZES, key=lambda b: -(-columns // b) * (b + 4))
    plan = replace(_plan(graph), bits=8, block=block, symmetric=True, search=False)
    return None if any(plan.why_not(weight, site) for site in weight.sites) else plan


def _readable_by(graph: Graph, names: Set[str], apart: Set[str] = frozenset()) -> list[Weight]:
    """Weights as far as nodes of these names read them; one whose first reader is a layer apart, wholly."""
    found = []
    for weight in find_weights(graph, frozenset()) if names else ():
        whole = bool(weight.sites) and weight.sites[0].op.name in names & apart
        weight.sites = [site for site in weight.sites if whole or site.op.name in names]
        if weight.sites:
            found.append(weight)
    return found


def _observed(graph: Graph, ops: Iterable[Op], context: Context) -> Iterator[tuple[Op, Moments]]:
    """Ops whose weights nobody else reads, with the moments of what they read; in all of bounded work, cheap first."""
    alone = [op for op in ops if op.operands[1].single_use and not why_not(op, graph)]
    left, chosen = WORK, set()
    for op in sorted(alone, key=_effort):
        left -= _effort(op)
        if left < 0:
            break
        chosen.add(op)
    kept = [op for op in alone if op in chosen]
    for group in in_groups([[op] for op in kept], single=True):
        members = [kept[i] for i in group]
        seen = moments_of(graph, members, context, single=True)
        yield from ((op, seen[op]) for op in members if op in seen)
        del seen  # before the next are added up


def rounding_work(heavy: Iterable[Op]) -> tuple[int, float]:
    """Passes over the data, and multiplications, that rounding the weights of these layers takes."""
    alone = [op for op in heavy if op.operands[1].single_use]
    chosen, work = [], 0.0
    for op in sorted(alone, key=_effort):
        work += _effort(op)
        if work > WORK:
            break
        chosen.append(op)
    return sum(1 for _ in in_groups([[op] for op in chosen], single=True)), min(work, WORK)


def _effort(op: Op) -> float:
    tensor = op.operands[1].tensor
    assert tensor is not None
    return 3.0 * columns_of(op) * (float(tensor.size) + columns_of(op) ** 2)
