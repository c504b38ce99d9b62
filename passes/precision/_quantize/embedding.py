"""Tables of Gather: int8 codes with one scale per column, decoded after the lookup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op
from memoptc.ir.not_finite import magnitude_of
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._quantize.numerics import weight_codes
from memoptc.passes.precision._quantize.static import Memo

SMALLEST = 65536
"""Tables below this many bytes are not worth two more nodes."""


def tables(graph: Graph, excluded: frozenset[str], stats: Counter[str]) -> Iterator[Op]:
    """Find Gathers (axis 0) of float32 matrices that nobody else reads and that are worth it."""
    for op in list(graph.walk("Gather")):
        table = op.operand.tensor
        if op.name in excluded or "Gather" in excluded or table is None or op.attrs.get("axis", 0) != 0:
            continue
        if table.dtype != DType.FLOAT or len(table.shape) != 2 or table.nbytes < SMALLEST:
            continue
        if not op.operand.single_use or not np.isfinite(magnitude_of(table)):
            stats["left Gather: its table has other users"] += 1
            continue
        yield op


def quantize_tables(graph: Graph, excluded: frozenset[str], stats: Counter[str], memo: Memo | None = None) -> None:
    """Code the tables of Gather; `memo` as for the emitter of codes."""
    memo = {} if memo is None else memo
    domain = "" if (ops.opset_of(graph) or 0) >= 13 else ops.MICROSOFT
    for op in list(tables(graph, excluded, stats)):
        _quantize(op, domain, memo)
        stats["quantized Gather"] += 1


def _quantize(op: Op, domain: str, memo: Memo) -> None:
    assert op.graph is not None
    table = op.operand
    assert table.tensor is not None
    key = (id(table.tensor), 1, False)
    if key not in memo:
        memo[key] = weight_codes(table.tensor.numpy(), 1, DType.INT8)
    codes = memo[key]
    builder = Builder(op.graph, before=op, loc=op.loc.union(rule="quantize"))
    shape = op.result.shape
    looked_up = builder.op(
        "Gather",
        [builder.const(codes.codes, f"{table.name}_q"), op.operands[1]],
        {"axis": 0},
        type=TensorType(DType.INT8, shape),
    ).result
    rank = len(shape) if shape is not None else -1
    scales = builder.const(codes.scales, f"{table.name}_s")
    zeros = builder.const(codes.zero_points, f"{table.name}_zp")
    attrs = {"axis": rank - 1 if rank > 0 else -1}
    real = builder.op("DequantizeLinear", [looked_up, scales, zeros], attrs, domain=domain, type=op.result.type).result
    op.replace_by(real)
