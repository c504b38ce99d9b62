"""quantize-weights: weights as 4 or 8 bits in small blocks, each with its own scale; activations stay float32."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Graph
from memoptc.ir.diagnostics import InputError
from memoptc.pass_base import Context, Pass
from memoptc.passes._quantize.places import CONVOLUTIONS, Site, Weight, find_weights
from memoptc.passes._quantize.reading import in_groups, moments_of, why_not
from memoptc.passes._quantize.weight_only import WINDOW, Plan, Writer
from memoptc.report.model import Decision
from memoptc.runtime.blas import one_thread
from memoptc.runtime.moments import Moments

BLOCKS = (16, 32, 64, 128, 256)
FORMS = ("nbits", "dq")
MINIMUM_IR_VERSION = 10
"""IR version from which ONNX has 4-bit tensors."""

_LISTED = 20


class QuantizeWeights(Pass):
    """Code the weights of products, convolutions and lookup tables in blocks; needs no data, and is better with some.

    Scales and zero points are searched for the least squared error of each block (see `_quantize/blocks.py`). With
    calibration data, weights of products and convolutions are then rounded to the same grid for the least error of
    their product (see `_quantize/rounding.py`), each only where that shows on data kept aside. A
    weight is coded once for all that read it, and stays float32 when something else reads it, too. Every weight that
    stays is named, with the reason, in the report's decisions.

    Args:
        bits: 4 or 8.
        block: Weights that share a scale: 16, 32, 64, 128 or 256. Convolutions take the nearest size that divides
            the weights of a channel.
        symmetric: Code 0 as the middle code everywhere, which saves the zero points and costs about half a decibel.
        form: "nbits" for onnxruntime's MatMulNBits and GatherBlockQuantized, which decode a few weights at a time;
            "dq" for standard operators: DequantizeLinear with blocks (opset 21), and lookups of int8 rows. Weights of
            convolutions are decoded as a whole in both, when they are needed.
        smallest: Bytes below which a weight stays as it is.
        search: Search for the scales; without it every block's range is rounded plainly (to compare with).
        rounding: Round by calibration data, where there is any.
        exclude: Node names or operators to leave in float.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    form: str = "nbits"
    smallest: int = 8192
    search: bool = True
    rounding: bool = True
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bits", self.bits, (4, 8)),
            ("block", self.block, BLOCKS),
            ("form", self.form, FORMS),
        ):
            if value not in known:
                raise InputError(
                    f"quantize-weights has no {name}={value!r}.", hint=f"There are: {', '.join(map(str, known))}."
                )

    def apply(self, graph: Graph, stats: Counter[str], context: Context) -> None:
        """Code what can be coded, and say what was left and why."""
        plan = Plan(self.bits, self.block, self.symmetric, self.form, ops.opset_of(graph) or 0, self.search)
        writer = Writer(plan, stats)
        left: list[str] = []
        chosen: list[Weight] = []
        small = 0
        for weight in list(find_weights(graph, frozenset(self.exclude))):
            if weight.bytes < self.smallest:
                small += 1
                continue
            reason = self._why_not(weight, plan)
            if reason:
                stats["weights left"] += 1
                left.append(f"%{weight.value.name} stays float32: {reason}")
                continue
            chosen.append(weight)
        if chosen and self.bits == 4:
            graph.info.ir_version = max(graph.info.ir_version, MINIMUM_IR_VERSION)
        before = after = 0
        with one_thread():
            for weight, moments in self._observed(graph, chosen, context):
                before += weight.bytes
                after += writer.write(weight, moments)
        stats["weights quantized"] += len(chosen)
        self._report(context, writer, (len(chosen), small, before, after), left)

    def _observed(
        self, graph: Graph, weights: Sequence[Weight], context: Context
    ) -> Iterator[tuple[Weight, Mapping[int, Moments]]]:
        """Give weights with the moments of what they meet, group by group.

        A group is observed when those before it are coded: it makes up for what their codes have shifted.
        """
        needs = [_readers(weight, graph) for weight in weights]
        if context.calibration is None or not self.rounding or not any(needs):
            yield from ((weight, {}) for weight in weights)
            return
        for group in in_groups([[site.op for site in sites] for sites in needs]):
            seen = moments_of(graph, [site.op for i in group for site in needs[i]], context)
            for i in group:
                found: dict[int, Moments] = {}
                for site in needs[i]:
                    if site.op in seen:
                        at = WINDOW if site.op.op_type in CONVOLUTIONS else site.columns
                        found[at] = found[at].add(seen[site.op]) if at in found else seen[site.op]
                yield weights[i], found

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        """Code without facts about the compile."""
        self.apply(graph, stats, Context())

    def _why_not(self, weight: Weight, plan: Plan) -> str:
        if weight.obstacle:
            return weight.obstacle
        for site in weight.sites:
            reason = plan.why_not(weight, site)
            if reason:
                return reason
        if not weight.sites:
            return "nothing uses it"
        content, largest = weight.numpy(), float(np.finfo(np.float32).max)
        if not np.isfinite(content).all():
            return "it holds NaN or Inf, which no code stands for"
        if float(np.abs(content).max(initial=0.0)) * max(abs(s.factor) for s in weight.sites) > largest:
            return "times alpha it leaves the range of float32"
        return ""

    def _report(self, context: Context, writer: Writer, sums: tuple[int, int, int, int], left: list[str]) -> None:
        count, small, before, after = sums
        if count:
            exact = not writer.noise
            decibels = math.inf if exact else 10 * math.log10(max(writer.signal, 1e-300) / writer.noise)
            zero = "symmetric" if self.symmetric else "with zero points"
            what = f"{count} weights in {self.bits} bits, blocks of {self.block} {zero}: {before} -> {after} bytes"
            why = "their codes are exact" if exact else f"weights keep {decibels:.1f} dB over what rounding changed"
            context.decisions.append(Decision(self.name, what, why, gain_bytes=before - after))
        elif not left:
            context.decisions.append(
                Decision(
                    self.name,
                    "no weight was quantized",
                    f"{small} weights of products, convolutions and tables are below {self.smallest} bytes each, where "
                    "scales and nodes cost what codes save (option smallest)",
                )
            )
        gained = [r for r in writer.rounded if r.after < r.before]
        if gained:
            middle = 10 * math.log10(statistics.median(r.before / max(r.after, 1e-3 * r.before) for r in gained))
            what = (
                f"{len(gained)} of {len(writer.rounded)} weights observed are rounded for their products, same scales"
            )
            why = f"error of the products falls by {middle:.1f} dB (median) on data kept aside"
            context.decisions.append(Decision("rounding", what, why))
        for line in left[:_LISTED]:
            what, _, why = line.partition(": ")
            context.decisions.append(Decision(self.name, what, why))
        if len(left) > _LISTED:
            context.decisions.append(
                Decision(self.name, f"{len(left) - _LISTED} further weights stay float32", "for the same reasons")
            )


def _readers(weight: Weight, graph: Graph) -> list[Site]:
    """All that reads a weight, where all of it can be observed; else nothing."""
    return [] if any(why_not(site.op, graph) for site in weight.sites) else weight.sites
