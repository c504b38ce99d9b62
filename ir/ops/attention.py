"""Attention."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import same
from memoptc.ir.ops.axis import SUMMED, Along, Axis, Form, axis_of_result, dtype_of, extents, shape
from memoptc.ir.ops.definition import Family, Operator, ShapeOf, also, define
from memoptc.ir.ops.double import NoDouble, OpBuilder, i64, rank_of
from memoptc.ir.ops.matmul import matmul_terms
from memoptc.ir.ops.parameters import Index
from memoptc.ir.ops.sample import Rng, Sample, floats
from memoptc.ir.ops.schema import MICROSOFT, opset_of, since
from memoptc.ir.ops.sizes import FLOAT, Sizes, width


def _attention(op: Op) -> list[Axis]:
    """`MultiHeadAttention`: batches, rows of the query, and heads, as long as nothing else has rows."""
    if len(op.results) > 1 or any(op.input(i) is not None for i in range(4, len(op.operands))):
        return []
    q, k, v = (extents(op, i) for i in range(3))
    if len(q) != 3 or not k or not v or op.attrs.get("unidirectional"):
        return []
    found = [
        axis_of_result(op, 0, *[(i, Along(0)) for i in range(3)]),
        axis_of_result(op, 1, (0, Along(1)), reorders=True),
    ]
    heads, y = int(op.attrs.get("num_heads", 0)), shape(op.results[0])
    wide, out = q[2], y[2] if y is not None and len(y) == 3 else None
    if len(k) == len(v) == 3 and heads > 1 and isinstance(wide, int) and isinstance(out, int) and op.input(3) is None:
        each, grain = wide // heads, out // heads
        wider = Along(2) if each == grain else Along(2, each, grain, 0, each - grain)
        cut = [(0, wider), (1, wider), (2, Along(2))]
        found.append(axis_of_result(op, 2, *cut, form=Form.HEADS, grain=grain, reorders=True))
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


_SECOND_CACHE = 1 << 20
"""Bytes of a core's second-level cache, which a flash kernel reads from the machine; plans take the usual."""


def _scores(s: Sizes) -> int:
    """All scores of all heads (llm/attention.cc, without a flash kernel)."""
    query, key = s.operand(0), s.operand(1)
    element = width(s.op.operands[0])
    if len(query) == 4:
        return element * query[0] * query[1] * query[2] * key[2]
    heads = int(s.op.attrs["q_num_heads"])
    copies = sum(s.operand_bytes(i) for i in range(3))
    return element * query[0] * heads * query[1] * key[1] + copies


def _packed_attention(s: Sizes) -> int:
    """Queries, keys and values, all scores, and the result with heads outside (contrib_ops/cpu/bert/attention.cc)."""
    batch, length, _ = s.operand(0)
    hidden = s.result[-1]
    heads = int(s.op.attrs["num_heads"])
    return FLOAT * (4 * batch * length * hidden + batch * heads * length * length + length)


def _multi_head(s: Sizes) -> int:
    """Heads are brought outside; a flash kernel, where nothing is masked, then keeps tiles of the scores instead of all
    (contrib_ops/cpu/bert/multihead_attention.cc). It is not for keys and values that have their heads outside."""
    batch, length, hidden = s.operand(0)
    key = s.operand(1) if s.has(1) else (batch, length, hidden)
    heads, outside = int(s.op.attrs["num_heads"]), len(key) == 4
    keys, width_out = key[2 if outside else 1], s.result[-1]
    each, out = hidden // heads, width_out // heads
    copies = FLOAT * batch * (length * hidden + (0 if outside else keys * (hidden + width_out)))
    if outside or s.op.attrs.get("unidirectional") or any(s.has(i) for i in (4, 5, 6, 7)) or len(s.op.results) > 1:
        causal = batch * length * keys if s.op.attrs.get("unidirectional") else 0
        return copies + FLOAT * causal + FLOAT * (batch * heads * length * keys + batch * length * width_out)
    columns = max(1, _SECOND_CACHE // (4 * FLOAT * (each + out)))
    rows = min(columns, each + out, length)
    return copies + s.threads * FLOAT * rows * (2 + min(columns, keys) + out)


def _rotary(op: Op) -> list[Axis]:
    """Batches, steps and heads: each row of a head is rotated by the angles of its step."""
    x, caches, positions = extents(op, 0), extents(op, 1), op.input(3)
    if len(x) not in (3, 4) or shape(op.results[0]) is None:
        return []
    angles = (3,) if positions is not None else (1, 2)  # which operands have a batch and a step of their own
    if len(caches) != (2 if positions is not None else 3):
        return []
    found = [axis_of_result(op, 1, (0, Along(1)), reorders=True)] if len(x) == 4 else []
    for axis, of_angles in ((0, 0), (len(x) - 2, 1)):
        if all(same(extents(op, i)[of_angles], x[axis]) for i in angles):
            found.append(
                axis_of_result(op, axis, (0, Along(axis)), *[(i, Along(of_angles)) for i in angles], reorders=True)
            )
    return found


def _rotary_double(b: OpBuilder, op: Op) -> Sequence[Value]:
    """Both halves, or the even and the odd elements, of what is rotated in each head."""
    x, angles = op.operands[0], op.operands[1:3]
    outside, heads = rank_of(x, op) == 4, int(op.attrs.get("num_heads", 0))
    half = extents(op, 1)[-1] if extents(op, 1) else None
    if not isinstance(half, int) or not (outside or heads):
        raise NoDouble(f"RotaryEmbedding {op.name!r} whose angles have no known shape")
    if (positions := op.input(3)) is not None:
        angles = tuple(b.Gather(cache, positions, axis=0) for cache in angles)
    cos, sin = (b.Unsqueeze(part, i64(1 if outside else 2)) for part in angles)
    split = x if outside else b.Reshape(x, i64(0, 0, heads, -1))
    last, end = i64(-1), np.iinfo(np.int64).max
    rotated = b.Slice(split, i64(0), i64(2 * half), last)
    interleaved = bool(op.attrs.get("interleaved"))
    ranges = ((0, 2 * half), (1, 2 * half)) if interleaved else ((0, half), (half, 2 * half))
    first, second = (b.Slice(rotated, i64(s), i64(e), last, i64(1 + interleaved)) for s, e in ranges)
    parts = [b.Sub(b.Mul(cos, first), b.Mul(sin, second)), b.Add(b.Mul(sin, first), b.Mul(cos, second))]
    if interleaved:
        pairs = b.Concat(*(b.Unsqueeze(part, last) for part in parts), axis=-1)
        whole = b.Reshape(pairs, b.Shape(rotated))
    else:
        whole = b.Concat(*parts, axis=-1)
    if op.attrs.get("rotary_embedding_dim"):
        whole = b.Concat(whole, b.Slice(split, i64(2 * half), i64(end), last), axis=-1)
    return [whole if outside else b.Reshape(whole, b.Shape(x))]


def _rotary_sample(r: Rng) -> Sample:
    """Four axes or three, angles by position or for each step, all of a head rotated or its beginning."""
    batch, heads, steps, half, rest = (int(d) for d in r.integers(1, 5, 5))
    rest = 2 * rest if r.random() < 0.5 else 0
    width = 2 * half + rest
    attrs = {"interleaved": int(r.integers(2)), "rotary_embedding_dim": 2 * half if rest else 0, "num_heads": heads}
    x = floats(r, batch, heads, steps, width) if r.random() < 0.5 else floats(r, batch, steps, heads * width)
    if r.random() < 0.5:
        positions = np.asarray(r.integers(0, 9, (batch, steps)), np.int64)
        return Sample((x, floats(r, 9, half), floats(r, 9, half), positions), attrs, frozenset({1, 2}), opset=23)
    return Sample((x, *(floats(r, batch, steps, half) for _ in range(2))), attrs, opset=23)


_FACTS: dict[str, Any] = {"family": Family.ATTENTION}

OPERATORS: tuple[Operator, ...] = (
    *define("Attention", packs_weights=True, workspace=_scores, **_FACTS),
    *define("LinearAttention", **_FACTS),
    *define("RotaryEmbedding", space=_rotary, double=_rotary_double, sample=_rotary_sample, **_FACTS),
    *define(
        "MultiHeadAttention",
        MICROSOFT,
        space=_attention,
        packs_weights=True,
        multiplications=_multiplications,
        workspace=_multi_head,
        **_FACTS,
    ),
    *define("Attention", MICROSOFT, packs_weights=True, workspace=_packed_attention, **_FACTS),
    *define("QAttention", MICROSOFT, packs_weights=True, **_FACTS),
    *define(
        "DecoderMaskedMultiHeadAttention GroupQueryAttention PackedAttention PackedMultiHeadAttention "
        "RelativePositionBias RotaryEmbedding",
        MICROSOFT,
        **_FACTS,
    ),
)
OPERATORS = also(OPERATORS, "Attention QAttention", MICROSOFT, packed=(1,))
OPERATORS = also(OPERATORS, "QAttention", MICROSOFT, on_codes=True)
OPERATORS = also(OPERATORS, "RotaryEmbedding", parameters={3: Index(1)})
OPERATORS = also(OPERATORS, "RotaryEmbedding", MICROSOFT, parameters={1: Index(2)})
