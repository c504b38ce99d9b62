"""Tensors that weights are multiplied with, and their second moments in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import layout_of
from memoptc.pass_base import Context
from memoptc.passes.precision._quantize.steps import observe_steps
from memoptc.runtime.moments import Moments, Reading, Window, second_moments

WIDEST = 4096
"""Columns beyond which nothing is observed: a few square matrices of that many columns take 0.5 GB."""

ROOM = 192 << 20
"""Bytes of second moments that are held at once (one pair may be larger)."""


def columns_of(op: Op) -> int:
    """Number of terms that a product or convolution sums up for one element of its result."""
    shape, layout = _shape(op), layout_of(op)
    return shape[layout.input_axis] * prod(shape[axis] for axis in layout.taps)


def _shape(op: Op) -> tuple[int, ...]:
    shape = op.operands[1].static_shape
    assert shape is not None
    return shape


def why_not(op: Op, graph: Graph) -> str:
    """Say why what an op reads cannot be observed as rows; "" when it can."""
    if op.graph is not graph or op.op_type not in ("MatMul", "Gemm", "Conv"):
        return "it stands in a subgraph" if op.graph is not graph else f"{op.op_type} reads it"
    if columns_of(op) > WIDEST:
        return f"it sums up more than {WIDEST} numbers"
    if op.op_type == "Conv":
        return "its convolution has groups" if op.attrs.get("group", 1) != 1 else ""
    return "Gemm transposes its left side" if op.attrs.get("transA", 0) else ""


def window_of(op: Op) -> Window | None:
    """Window of a convolution; `None` for products."""
    if op.op_type != "Conv":
        return None
    kernel = _shape(op)[2:]
    ones = (1,) * len(kernel)
    auto_pad = op.attrs.get("auto_pad", "NOTSET")
    auto_pad = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
    pads = tuple(op.attrs.get("pads", ())) if auto_pad == "NOTSET" else ()
    strides, dilations = tuple(op.attrs.get("strides", ones)), tuple(op.attrs.get("dilations", ones))
    named = auto_pad if auto_pad.startswith("SAME") else ""
    return Window(kernel, strides, dilations, pads or (0,) * 2 * len(kernel), named)


def moments_of(graph: Graph, ops: Iterable[Op], context: Context, *, single: bool = False) -> dict[Op, Moments]:
    """Observe what these ops of the top graph read; those that saw nothing are left out.

    Args:
        graph: The graph.
        ops: Products and convolutions.
        context: Its calibration data is used. Of a decoder that scores its last step only, all steps are observed.
        single: Sum up in float32.
    """
    wanted: dict[Value, list[Op]] = {}
    for op in ops:
        wanted.setdefault(op.operand, []).append(op)

    def look(path: Path, names: dict[str, Value]) -> dict[str, dict[Op, Moments]]:
        readings = {op: Reading(name, window_of(op)) for name, value in names.items() for op in wanted[value]}
        seen = second_moments(path, readings.values(), context.calibration, dtype=np.float32 if single else np.float64)
        return {
            name: {op: seen[readings[op]] for op in wanted[value] if readings[op] in seen}
            for name, value in names.items()
        }

    return {op: m for found in observe_steps(graph, wanted, context, look).values() for op, m in found.items()}


def in_groups(needs: Sequence[Sequence[Op]], room: int = ROOM, *, single: bool = False) -> Iterator[list[int]]:
    """Part indices of sets of ops into groups whose second moments fit into memory together."""
    group: list[int] = []
    known: dict[tuple[Value, Window | None], int] = {}
    for index, ops in enumerate(needs):
        more = {(op.operand, window_of(op)): (8 if single else 16) * columns_of(op) ** 2 for op in ops}
        if group and sum((known | more).values()) > room:
            yield group
            group, known = [], {}
        group.append(index)
        known |= more
    if group:
        yield group
