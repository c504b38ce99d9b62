"""Merging tokens: similar ones are paired and averaged, and attention counts how many each one stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim
from memoptc.ir.types import DType, TensorType
from memoptc.passes.shrink._tokens.region import TokenRegion

MOST_MERGED = 7
"""Sixteenths that can be merged: half of the tokens have a partner, and one of them may have to stay by itself."""

_TO_END = np.iinfo(np.int64).max
_UNPAIRED = np.array(-8, np.float32)
"""Similarity to no token; cosines are at least -1."""

_PADDING = np.array(4, np.float32)
"""Taken from the similarity of two tokens of which one gets no attention: padding is merged with padding."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of tokens to merge: `sources` into `targets`, int64 `[batch, merged]`."""

    sources: Value
    targets: Value


@dataclass
class TokenCounts:
    """Token counts: how many original tokens each remaining one stands for, carried from layer to layer.

    Args:
        value: float32 `[batch, tokens, 1]`; `None` as long as each stands for itself.
        counted: Adds that weigh attention scores with it.
    """

    value: Value | None = None
    counted: set[Op] = field(default_factory=set)

    def weigh(self, b: Builder, region: TokenRegion, extent: Dim) -> None:
        """Let attention to a token count as often as tokens went into it, by the logarithm added to its scores.

        Attention over `[batch * heads, tokens, tokens]` stays as it is: which row is of which batch is not known.
        """
        if self.value is None:
            return
        bias: dict[DType, Value] = {}
        for op in region.attention:
            scores = op.operands[0]
            shape, dtype = scores.shape or (), scores.dtype
            if dtype is None or len(shape) != 4 or 3 not in region.carried.get(scores, ()):
                continue
            if dtype not in bias:
                row = b.Unsqueeze(b.Transpose(b.Log(self.value), perm=[0, 2, 1]), integers(1))
                bias[dtype] = row if dtype is DType.FLOAT else b.Cast(row, to=int(dtype))
                batch = (region.value.shape or (None,))[0]
                bias[dtype].type = TensorType(dtype, (batch, 1, 1, extent))
            if scores.op in self.counted:
                scores.op.set_operand(1, bias[dtype])
                continue
            here = Builder(b.graph, before=op, loc=b.loc)
            weighed = here.Add(scores, bias[dtype], _type=scores.type)
            self.counted.add(weighed.op)
            op.set_operand(0, weighed)


def pair_tokens(b: Builder, region: TokenRegion, count: Value, extent: Dim, received: Value | None) -> Pairs:
    """Pair tokens by bipartite soft matching (Bolya et al., "Token Merging: Your ViT but Faster", 2022).

    Every second token is held against all the others by the cosine of their hidden states; those with the most similar
    partner go into it. Leading tokens stay as they are, neither sources nor targets.

    Args:
        b: Where ops are made.
        region: What computes per token behind the hidden state.
        count: How many go, int64 `[1]`.
        extent: The same, as far as it is known.
        received: Attention that each token gets, float32 `[batch, tokens]`, to tell padding by; `None` if not known.
    """
    hidden = b.Cast(region.value, to=int(DType.FLOAT))
    length = b.ReduceL2(hidden, integers(2), keepdims=1)
    even, odd = _halves(b, b.Div(hidden, b.Max(length, np.array(1e-30, np.float32))))
    alike = b.MatMul(even, b.Transpose(odd, perm=[0, 2, 1]))
    if received is not None:
        seen = b.Unsqueeze(b.Cast(b.Greater(received, np.array(0, np.float32)), to=int(DType.FLOAT)), integers(2))
        here, there = _halves(b, seen)
        alike = b.Sub(alike, b.Mul(b.Abs(b.Sub(here, b.Transpose(there, perm=[0, 2, 1]))), _PADDING))
    # One partner more, whom nobody takes: a single token has no other, and the largest of nothing is refused.
    whole = region.leading // 2
    if whole:
        alike = b.Slice(alike, integers(whole), integers(_TO_END), integers(2))
    alike = b.Pad(alike, integers(0, 0, whole, 0, 0, 1), _UNPAIRED)
    likeness, partner = b.ReduceMax(alike, integers(2), keepdims=0), b.ArgMax(alike, axis=2, keepdims=0)
    stay = (region.leading + 1) // 2
    if stay:
        others = b.Slice(likeness, integers(stay), integers(_TO_END), integers(1))
        likeness = b.Pad(others, integers(0, stay, 0, 0), _UNPAIRED)
    best = b.op("TopK", [likeness, count], {"axis": 1, "largest": 1, "sorted": 1}, outputs=2).results[1]
    sources = b.Mul(best, np.int64(2))
    targets = b.Add(b.Mul(b.GatherElements(partner, best, axis=1), np.int64(2)), np.int64(1))
    for index in (sources, targets):
        index.type = TensorType(DType.INT64, ((region.value.shape or (None,))[0], extent))
    return Pairs(sources, targets)


def left_over(b: Builder, region: TokenRegion, pairs: Pairs, count: Value, extent: Dim) -> Value:
    """Give which tokens go on, int64 `[batch, kept]`, ascending.

    Args:
        b: Where ops are made.
        region: What computes per token behind the hidden state.
        pairs: What is merged.
        count: How many go on, int64 `[1]`.
        extent: The same, as far as it is known.
    """
    everywhere = b.Expand(np.array(1, np.int64), b.Slice(b.Shape(region.value), *map(integers, (0, 2, 0))))
    stays = b.ScatterElements(everywhere, pairs.sources, b.Mul(pairs.sources, np.int64(0)), axis=1)
    # Of equal ones TopK gives the first first.
    order: Value = b.op("TopK", [stays, count], {"axis": 1, "largest": 1, "sorted": 1}, outputs=2).results[1]
    order.type = TensorType(DType.INT64, ((region.value.shape or (None,))[0], extent))
    return order


def sums(b: Builder, value: Value, pairs: Pairs) -> Value:
    """Add the rows of sources to those of their targets: `[batch, tokens, width]`, rows of sources as they were."""
    rows = b.GatherND(value, b.Unsqueeze(pairs.sources, integers(2)), batch_dims=1)
    where = b.Expand(b.Unsqueeze(pairs.targets, integers(2)), b.Shape(rows))
    found: Value = b.ScatterElements(value, where, rows, axis=1, reduction="add", _type=value.type)
    return found


def rows_of(b: Builder, region: TokenRegion, pairs: Pairs, order: Value) -> Value:
    """Give, for every token, the row among those that go on which it stands in, int64 `[batch, tokens, 1]`."""
    nothing = b.Expand(np.array(0, np.int64), b.Slice(b.Shape(region.value), *map(integers, (0, 2, 0))))
    kept = b.Squeeze(b.Slice(b.Shape(order), *map(integers, (1, 2, 0))), integers(0))
    counted = b.Expand(b.Range(np.int64(0), kept, np.int64(1)), b.Shape(order))
    rows = b.ScatterElements(nothing, order, counted, axis=1)
    rows = b.ScatterElements(rows, pairs.sources, b.GatherElements(rows, pairs.targets, axis=1), axis=1)
    found: Value = b.Unsqueeze(rows, integers(2))
    return found


def integers(*values: int) -> npt.NDArray[np.int64]:
    """A list of axes, bounds or extents."""
    return np.array(values, np.int64)


def _halves(b: Builder, value: Value) -> Sequence[Value]:
    """Tokens 0, 2, … and tokens 1, 3, …"""
    return [b.Slice(value, integers(start), integers(_TO_END), integers(1), integers(2)) for start in (0, 1)]
