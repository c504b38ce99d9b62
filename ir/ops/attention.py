"""Attention."""

from __future__ import annotations

from math import prod
from typing import Any

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import SUMMED, Along, Axis, Form, dtype_of, extents, given, shape
from memoptc.ir.ops.definition import Family, Operator, ShapeOf, define
from memoptc.ir.ops.matmul import matmul_terms
from memoptc.ir.ops.schema import MICROSOFT, opset_of, since


def _attention(op: Op) -> list[Axis]:
    """`MultiHeadAttention`: batches, rows of the query, and heads, as long as nothing else has rows."""
    if len(op.results) > 1 or any(op.input(i) is not None for i in range(4, len(op.operands))):
        return []
    q, k, v = (extents(op, i) for i in range(3))
    if len(q) != 3 or not k or not v or op.attrs.get("unidirectional"):
        return []
    found = [given(op, 0, *[(i, Along(0)) for i in range(3)]), given(op, 1, (0, Along(1)), reorders=True)]
    heads, y = int(op.attrs.get("num_heads", 0)), shape(op.results[0])
    wide, out = q[2], y[2] if y is not None and len(y) == 3 else None
    if len(k) == len(v) == 3 and heads > 1 and isinstance(wide, int) and isinstance(out, int) and op.input(3) is None:
        each, grain = wide // heads, out // heads
        wider = Along(2) if each == grain else Along(2, each, grain, 0, each - grain)
        cut = [(0, wider), (1, wider), (2, Along(2))]
        found.append(given(op, 2, *cut, form=Form.HEADS, grain=grain, reorders=True))
    return found


def weights_axis(op: Op) -> Axis | None:
    """The axis along which a softmax sums to one, where all it gives are the weights of one product's sums over it.

    The product can then be computed piece by piece along that axis, the softmax with it: each piece's exponentials are
    taken beside its own largest element, and the sums scaled when they are added up ("Online normalizer calculation
    for softmax", Milakov and Gimelshein 2018; "Self-attention does not need O(n^2) memory", Rabe and Staats 2021).
    """
    if op.key != "Softmax" or not op.result.single_use or dtype_of(op, 0) not in SUMMED or not since(op, 8):
        return None  # before opset 8, Max does not broadcast
    rank = len(extents(op, 0))
    ((user, index),) = op.result.uses
    recent = op.graph is not None and (opset_of(op.graph) or 13) >= 13
    if rank < 2 or int(op.attrs.get("axis", -1 if recent else 1)) % rank != rank - 1:
        return None
    if user.key != "MatMul" or index or not matmul_terms(user):
        return None
    return Axis((rank - 1,), (Along(rank - 1),), Form.EXPONENTIALS, reorders=True)


def _multiplications(op: Op, shape_of: ShapeOf) -> float:
    q, k = shape_of(op.operands[0]), shape_of(op.operands[1])
    return 2.0 * prod(q) * (k[1] if len(k) > 1 else 1)


_FACTS: dict[str, Any] = {"family": Family.ATTENTION}

OPERATORS: tuple[Operator, ...] = (
    *define("Attention", packs_weights=True, **_FACTS),
    *define("LinearAttention RotaryEmbedding", **_FACTS),
    *define(
        "MultiHeadAttention",
        MICROSOFT,
        space=_attention,
        packs_weights=True,
        multiplications=_multiplications,
        **_FACTS,
    ),
    *define("Attention QAttention", MICROSOFT, packs_weights=True, **_FACTS),
    *define(
        "DecoderMaskedMultiHeadAttention GroupQueryAttention PackedAttention PackedMultiHeadAttention "
        "RelativePositionBias RotaryEmbedding",
        MICROSOFT,
        **_FACTS,
    ),
)
