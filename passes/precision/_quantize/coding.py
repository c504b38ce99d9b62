"""Quantize the weights of a graph in blocks, one after the other, with data for the products that read them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.not_finite import behind_infinite_weights, magnitude_of
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.cached_codes import CodeCache
from memoptc.passes.precision._quantize.numerics import SMALLEST_CODED
from memoptc.passes.precision._quantize.operand_moments import in_groups, moments_of, why_not
from memoptc.passes.precision._quantize.remaining_time import Pace
from memoptc.passes.precision._quantize.weight_coder import WINDOW, WeightCoder
from memoptc.passes.precision._quantize.weight_format import WeightFormat
from memoptc.passes.precision._quantize.weight_only import Writer
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, GATHER, Weight, WeightUse, find_weights
from memoptc.report.model import Decision
from memoptc.runtime.blas import one_thread
from memoptc.runtime.moments import Moments

MINIMUM_IR_VERSION = 10
"""IR version from which ONNX has 4-bit tensors."""

SMALLEST = 8192
"""Bytes below which scales and nodes cost what codes save."""

_LISTED = 20


@dataclass
class CodableWeights:
    """Weights of a graph that can be quantized, and those that cannot.

    Args:
        chosen: Those that can be coded, in the order of the graph.
        left: Those that cannot, each with the reason, as text.
        smallest: Bytes below which it is not worth it.
        small: How many are smaller.
    """

    smallest: int

    chosen: list[Weight] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    small: int = 0


def find(graph: Graph, plan: WeightFormat, smallest: int, excluded: frozenset[str]) -> CodableWeights:
    """Find the weights of a graph that can be coded."""
    found = CodableWeights(smallest)
    for weight in find_weights(graph, excluded):
        if weight.bytes < smallest:
            found.small += 1
            continue
        reason = obstacle(weight, plan)
        if reason:
            found.left.append(f"%{weight.value.name} stays float32: {reason}")
        else:
            found.chosen.append(weight)
    return found


def obstacle(weight: Weight, plan: WeightFormat) -> str:
    """Say why a weight has to stay as it is; `""` when it need not."""
    if weight.obstacle:
        return weight.obstacle
    for site in weight.sites:
        reason = plan.why_not(weight, site)
        if reason:
            return reason
    if not weight.sites:
        return "nothing uses it"
    assert weight.value.tensor is not None
    if any(_reads_spoiled(site.op) for site in weight.sites):
        return "what it meets may be Inf, which times a code of 0 is NaN"
    found, largest = magnitude_of(weight.value.tensor), float(np.finfo(np.float32).max)
    if not math.isfinite(found):
        return "it holds NaN or Inf, which no code stands for"
    if found * max(abs(s.factor) for s in weight.sites) > largest:
        return "times alpha it leaves the range of float32"
    if 0 < found < SMALLEST_CODED:
        return "it is too small for a scale"
    return ""


def _reads_spoiled(op: Op) -> bool:
    spoiled = frozenset[Value]() if op.graph is None else op.graph.root.analysis(behind_infinite_weights)
    return any(value in spoiled for value in op.operands)


def write_all(graph: Graph, weights: Sequence[Weight], writer: Writer, context: Context | None) -> Iterator[int]:
    """Code weights, rounded for their products where a context has data for that; give the bytes of each."""
    if weights and writer.coder.format.bits == 4:
        graph.info.ir_version = max(graph.info.ir_version, MINIMUM_IR_VERSION)
    with one_thread():
        for weight, moments in _observed(graph, weights, writer.coder, context):
            yield writer.write(weight, moments)


def _observed(
    graph: Graph, weights: Sequence[Weight], coder: WeightCoder, context: Context | None
) -> Iterable[tuple[Weight, Mapping[int, Moments]]]:
    """Give weights with the moments of what they meet, group by group; without, where their codes were kept.

    A group is observed when those before it are coded: it makes up for what their codes have shifted.
    """
    needs = [_readers(weight, graph) for weight in weights]
    if context is None or context.calibration is None or not any(needs):
        yield from ((weight, {}) for weight in weights)
        return
    keeps = context.checkpoint is not None and coder.memo is not None
    cache = CodeCache(graph, coder, context) if keeps else None
    pace, done = Pace(len(weights)), 0
    for group in in_groups([[site.op for site in sites] for sites in needs], single=True):
        members = [weights[i] for i in group]
        key = cache.read(members) if cache is not None else ""
        if cache is not None and not key:
            yield from ((weight, {}) for weight in members)
            done += len(group)
            pace.skip(len(group))
            continue
        with cache.keeping(key, members) if cache is not None else nullcontext():
            seen = moments_of(graph, [site.op for i in group for site in needs[i]], context, single=True)
            for i in group:
                context.say(f"rounding weights, {pace.at(done)}")
                found: dict[int, Moments] = {}
                for site in needs[i]:
                    if site.op in seen:
                        at = WINDOW if site.op.op_type in CONVOLUTIONS else site.columns
                        found[at] = found[at].add(seen[site.op]) if at in found else seen[site.op]
                looked_up = len(needs[i]) < len(weights[i].sites)
                yield weights[i], {at: _with_rows(weights[i], m) for at, m in found.items()} if looked_up else found
                done += 1
            del seen  # before the next are added up


def _readers(weight: Weight, graph: Graph) -> list[WeightUse]:
    """The products that read a weight, where all of them can be observed, beside lookups of its rows; else nothing."""
    products = [site for site in weight.sites if site.op.op_type != GATHER]
    if len(products) < len(weight.sites) and any(site.columns != 1 for site in products):
        return []
    return [] if any(site.whole or why_not(site.op, graph) for site in products) else products


def _with_rows(weight: Weight, moments: Moments) -> Moments:
    """Moments that make the sum of relative errors least: of the products, and of the rows that are looked up.

    `d M d^T` over all rows d of what coding changes is then `|d X^T|^2 / |W X^T|^2 + |d|^2 / |W|^2`.
    """
    content = weight.numpy()
    square = float(np.square(content, dtype=np.float64).sum())

    def sum_of_both(seen: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        product = float(np.einsum("ij,ji->", content.T @ content, seen))
        if not (square > 0 and product > 0):
            return np.asarray(seen, np.float64)
        return np.asarray(seen / product + np.eye(len(seen)) / square, np.float64)

    return Moments(sum_of_both(moments.fit), sum_of_both(moments.check), moments.rows)


def report(
    name: str, context: Context, coder: WeightCoder, found: CodableWeights, count: int, sums: tuple[int, int]
) -> None:
    """Say what was coded in blocks, how well, and what stays and why.

    Args:
        name: Of the pass.
        context: Gets the decisions.
        coder: With what coding changed.
        found: All weights.
        count: How many were coded in blocks.
        sums: Bytes of those that were coded, before and after.
    """
    plan, (before, after) = coder.format, sums
    if count:
        exact = not coder.noise
        decibels = math.inf if exact else 10 * math.log10(max(coder.signal, 1e-300) / coder.noise)
        zero = "symmetric" if plan.symmetric else "with zero points"
        tables = " (convolutions and recurrent operators: tables, decoded while loading)" if coder.tables else ""
        what = f"{count} weights in {plan.bits} bits, blocks of {plan.block} {zero}{tables}: {before} -> {after} bytes"
        why = "their codes are exact" if exact else f"weights keep {decibels:.1f} dB over what rounding changed"
        context.decisions.append(Decision(name, what, why, gain_bytes=before - after))
    elif not found.left and not found.chosen:
        why = (
            f"{found.small} weights of products, convolutions and tables are below {found.smallest} bytes each, where "
            "scales and nodes cost what codes save (option smallest)"
        )
        context.decisions.append(Decision(name, "no weight was quantized", why))
    gained = [r for r in coder.rounded if r.after < r.before]
    if gained:
        middle = 10 * math.log10(statistics.median(r.before / max(r.after, 1e-3 * r.before) for r in gained))
        observed = f"{len(gained)} of {len(coder.rounded)} weights observed"
        what = f"{observed} are rounded for their products, and scales of blocks are fitted to that"
        why = f"error of the products falls by {middle:.1f} dB (median) on data kept aside"
        context.decisions.append(Decision("rounding", what, why))
    for line in found.left[:_LISTED]:
        what, _, why = line.partition(": ")
        context.decisions.append(Decision(name, what, why))
    if len(found.left) > _LISTED:
        more = f"{len(found.left) - _LISTED} further weights stay float32"
        context.decisions.append(Decision(name, more, "for the same reasons"))
