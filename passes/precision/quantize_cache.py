"""quantize-cache: keys and values that a decoder keeps between steps, in codes of 8 bits that attention reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from memoptc.coded_interface import Coded, read_coded_interface, write_coded_interface
from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.passes.precision._quantize.observe import observe
from memoptc.report.model import Decision
from memoptc.runtime.channels import Channels, channel_statistics

Array = npt.NDArray[np.float32]

_PAST = (3, 4)
"""Operands of GroupQueryAttention that hold keys and values of the past; results 1 and 2 hold those of all steps."""
_SCALES = 12
"""The first operand that is a scale."""
_HIGHEST = 127.0
_OLDEST = (1, 32)
"""The first onnxruntime whose CPU kernel takes a cache of int8."""


@dataclass(frozen=True)
class CodableCache:
    """Attention over a cache that can be kept in codes.

    Args:
        attention: A GroupQueryAttention over inputs of the graph, whose present keys and values are outputs.
        past: Inputs: keys and values.
        present: Keys and values of all steps, as the graph gives them: of the attention, or of the If around it.
        other: The If's other branch, where there is one.
    """

    attention: Op
    past: tuple[Value, Value]
    present: tuple[Value, Value]
    other: Graph | None


class QuantizeCache(Pass):
    """Keep the cache of GroupQueryAttention as int8: a quarter of its bytes, and of what a step reads of it.

    Codes are symmetric, with one scale for each channel of each key/value head, from the largest magnitude in the
    calibration data; onnxruntime's kernel (1.32 or newer, on CPU) codes new steps and reads old ones without decoding
    the whole. Where an If chooses between that and the original ops, these get the cache decoded and give it back
    coded. Past and present become int8; the scales stand in the model's metadata (`memoptc.io`). Caches of any other
    attention stay as they are, and the report says so.
    """

    changes_numbers: ClassVar[bool] = True
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        """Code what can be coded; without calibration data nothing is."""
        if context.calibration is None:
            context.stats["left: no calibration data"] += 1
            return
        if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < _OLDEST:
            raise InputError(
                f"onnxruntime {onnxruntime.__version__} has no attention over a cache in codes.",
                hint="Install onnxruntime 1.32 or newer, which the model then needs, too, or leave --cache out.",
            )
        context.shapes(graph)
        found = list(kept(graph))
        scales = _scales(graph, [v for site in found for v in site.present], context)
        interface = read_coded_interface(graph)
        for site in found:
            if any(v not in scales for v in site.present):
                context.stats["left: no steps in the data"] += 1
                continue
            codes = tuple(_coded(scales[v]) for v in site.present)
            _code(graph, site, codes)
            for past, present, coded in zip(site.past, site.present, codes, strict=True):
                interface.inputs[past.name] = interface.outputs[_name(graph, present)] = coded
                context.stats["caches coded"] += 1
        write_coded_interface(graph, interface)
        if context.stats["caches coded"]:
            what = f"{context.stats['caches coded']} caches are int8"
            context.decisions.append(Decision("quantize-cache", what, "a scale for each channel of each head"))
        else:
            context.warnings.append("No cache is kept in codes: no GroupQueryAttention reads one from an input.")


def kept(graph: Graph) -> Iterator[CodableCache]:
    """Give every attention whose past and present are the model's own inputs and outputs, and nothing else's.

    Of two in the branches of one If that read the same past, the first; the other one is what computes with floats.
    """
    taken: set[Value] = set()
    for attention in graph.walk("com.microsoft::GroupQueryAttention"):
        region = attention.graph
        if region is None or any(attention.input(i) is None for i in _PAST):
            continue
        keys, values = (attention.operands[i] for i in _PAST)
        other, present = None, (attention.results[1], attention.results[2])
        if region is not graph:
            outer = region.parent
            if (
                outer is None
                or outer.graph is not graph
                or len(outer.regions) != 2
                or "then_branch" not in outer.regions
            ):
                continue
            places = [i for r in present for i, v in enumerate(region.outputs) if v is r]
            if len(places) != len(_PAST):
                continue
            present = (outer.results[places[0]], outer.results[places[1]])
            other = next(r for r in outer.regions.values() if r is not region)
        site = CodableCache(attention, (keys, values), present, other)
        if taken.isdisjoint(site.past) and _alone(graph, site):
            taken.update(site.past)
            yield site


def _alone(graph: Graph, site: CodableCache) -> bool:
    """True if nothing else reads the past, but how long it is, and nothing but the caller the present."""
    for value in site.past:
        shape = value.shape
        if value not in graph.inputs or value in graph.defaults or value.dtype != DType.FLOAT:
            return False
        if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            return False
        for user in value.users:
            if user is not site.attention and user.key not in ops.EXTENTS and user.graph is not site.other:
                return False
    returned = (v.use_count == 1 and v.is_output and v.graph is graph for v in site.present)
    return all(returned) and site.past[0] is not site.past[1]


def _name(graph: Graph, present: Value) -> str:
    return next(info.name for v, info in zip(graph.outputs, graph.outputs_info, strict=True) if v is present)


def _coded(scale: Array) -> Coded:
    return Coded(DType.INT8, tuple(float(s) for s in scale.reshape(-1)), shape=scale.shape)


def _scales(graph: Graph, presents: list[Value], context: Context) -> dict[Value, Array]:
    """A scale for each channel of each head, [1, heads, 1, width], as float32."""
    b = Builder(graph)
    flat: dict[Value, Value] = {}
    for value in presents:  # heads and channels as one axis, to look at
        heads, width = _heads(value)
        flat[value] = b.Reshape(b.Transpose(value, perm=[0, 2, 1, 3]), np.asarray([0, 0, heads * width], np.int64))

    def look(path: Path, names: dict[str, Value]) -> dict[str, Channels]:
        return channel_statistics(path, dict.fromkeys(names, 2), context.calibration)

    try:
        seen = observe(graph, flat.values(), context, look)
    finally:
        for value in flat.values():
            view = value.op
            assert view is not None
            turned = view.operand.op
            assert turned is not None
            view.erase()
            turned.erase()
    found = {}
    for value in presents:
        channels = seen.get(flat[value])
        if channels is not None:
            heads, width = _heads(value)
            largest = np.maximum(np.abs(channels.low), np.abs(channels.high))
            # a channel that is 0 in all data gets a small scale of its tensor's: 0 would be none
            floor = max(float(largest.max()), 1e-30) * 1e-4
            scale = (np.maximum(largest, floor) / _HIGHEST).astype(np.float32)
            found[value] = scale.reshape(1, heads, 1, width)
    return found


def _heads(value: Value) -> tuple[int, int]:
    """Key/value heads and their width."""
    shape = value.shape or ()
    heads, width = shape[1], shape[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    return heads, width


def _code(graph: Graph, site: CodableCache, codes: tuple[Coded, ...]) -> None:
    """Make past and present codes, here and in the branch that computes with floats."""
    op = site.attention
    assert op.graph is not None
    b = Builder(op.graph, before=op)
    operands = [*op.operands, *(op.graph.absent() for _ in range(_SCALES - len(op.operands)))][:_SCALES]
    op.set_operands([*operands, *(b.const(coded.scales()) for coded in codes)])
    for name in ("k_quant_type", "v_quant_type"):
        op.set_attr(name, "PER_CHANNEL")
    op.set_attr("kv_cache_bit_width", 8)
    for past, present, result, coded in zip(site.past, site.present, op.results[1:3], codes, strict=True):
        if site.other is not None:
            _around(site.other, past, present.index, coded)
        for value in (past, present, result):
            value.type = TensorType(DType.INT8, value.shape)
    inside = [r for r in (op.graph, site.other) if r is not None and r is not graph]
    for place in (graph, *inside):
        for index, info in enumerate(place.outputs_info):
            given = place.outputs[index] if place is graph else op.graph.outputs[index]
            if given in (*site.present, *op.results[1:3]):
                info.type = TensorType(DType.INT8, info.shape)


def _around(region: Graph, past: Value, output: int, coded: Coded) -> None:
    """Decode the past for a branch, and code what it gives."""
    uses = [(op, i) for op, i in past.uses if op.graph is region and op.key not in ops.EXTENTS]
    real = coded.convert(Builder(region, before=region.first), past, DType.FLOAT)
    for op, i in uses:
        op.set_operand(i, real)
    outputs = list(region.outputs)
    outputs[output] = coded.convert(Builder(region), outputs[output], DType.INT8)
    region.set_outputs(outputs)
