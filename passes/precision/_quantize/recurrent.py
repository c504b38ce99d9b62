"""LSTM with integer weights, whose products code their left sides by their own range in each step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType
from memoptc.passes.precision._quantize.numerics import weight_codes

_ATTRS = frozenset({"activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size"})


def recurrent(graph: Graph, excluded: frozenset[str]) -> Iterator[Op]:
    """Find LSTMs of the top graph that onnxruntime's DynamicQuantizeLSTM can take the place of."""
    for op in graph.ops:
        if op.key != "LSTM" or op.name in excluded or "LSTM" in excluded:
            continue
        tensors = [v.tensor for v in op.operands[1:3]]
        plain = all(t is not None and t.dtype == DType.FLOAT and np.isfinite(t.numpy()).all() for t in tensors)
        known = all(name in _ATTRS or not value for name, value in op.attrs.items())
        if plain and known and op.operand.tensor is None:
            yield op


def quantize_recurrent(op: Op) -> None:
    """Put integers in the place of both weights: `[directions, inputs, gates]`, one scale per gate and unit."""
    assert op.graph is not None
    builder = Builder(op.graph, before=op, loc=op.loc.union(rule="quantize"))
    codes: list[Value] = []
    scales: list[Value] = []
    for value in op.operands[1:3]:
        assert value.tensor is not None
        weight = np.asarray(value.tensor.numpy()).transpose(0, 2, 1)
        parts = [weight_codes(one, 1, DType.INT8) for one in weight]
        codes.append(builder.const(np.stack([p.codes for p in parts]), f"{value.name}_q"))
        scales += [
            builder.const(np.stack([p.scales for p in parts]), f"{value.name}_s"),
            builder.const(np.stack([p.zero_points for p in parts]), f"{value.name}_zp"),
        ]
    rest = [op.input(i) for i in range(3, 8)]
    made = builder.op(
        "DynamicQuantizeLSTM",
        [op.operand, *codes, *rest, *scales],
        {k: v for k, v in op.attrs.items() if k in _ATTRS},
        domain=ops.MICROSOFT,
        outputs=len(op.results),
        type=[r.type for r in op.results],
    )
    made.name = op.name
    op.replace_by(*made.results)
