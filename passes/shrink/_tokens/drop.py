"""Fewer tokens behind a hidden state: the ops that choose which stay, take them, and give all of them back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, KnownDim, floordiv
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType, TensorType
from memoptc.passes.shrink._tokens.merge import Pairs, TokenCounts, integers, left_over, pair_tokens, rows_of, sums
from memoptc.passes.shrink._tokens.region import TokenRegion

PARTS = 16
"""Tokens go in sixteenths of their number, rounded down."""

_TO_END = np.iinfo(np.int64).max
_FIRST = np.inf
"""Score of the tokens that have to stay: none is larger, and of equal ones TopK takes the first."""


@dataclass(frozen=True)
class TokenDrop:
    """Number of tokens that are dropped behind one hidden state.

    Args:
        parts: So many sixteenths of the tokens.
        probabilities: Attention probabilities `[batch, heads, tokens, tokens]` (or heads in the batch) of the layer
            before; `None` to score tokens by the norm of their hidden state.
        from_first: Score tokens by the attention of token 0 alone, not of all.
        merge: Average tokens with their most similar ones, instead of dropping those with the lowest scores.
    """

    parts: int
    probabilities: Value | None = None
    from_first: bool = False
    merge: bool = False


def drop_tokens(region: TokenRegion, drop: TokenDrop, sizes: TokenCounts, rule: str) -> None:
    """Let some tokens go, the others keep their order.

    Args:
        region: What computes per token behind the hidden state.
        drop: How many go, and which.
        sizes: Of the tokens that come here; of those that go on, afterwards.
        rule: Name that the new ops carry as their origin.
    """
    value = region.value
    assert value.op is not None
    assert value.op.graph is not None
    drop = replace(drop, parts=_possible(region, drop))
    graph, anchor = value.op.graph, value.op.next
    readers = [(op, i) for op in region.ops for i, v in enumerate(op.operands) if v is value]
    b = Builder(graph, before=anchor, loc=value.op.loc.union(rule=rule))
    kept = _dim_kept(region.extent, drop.parts)
    count = _count(b, region, drop.parts)
    pairs = _pairs(b, region, drop, count) if drop.merge else None
    order = _chosen(b, region, drop, count) if pairs is None else left_over(b, region, pairs, count, kept)
    taker = _Taker(b, order, kept, value)
    thin = taker.take(value, (1,), 3) if pairs is None else _averaged(b, value, pairs, sizes, taker)
    if pairs is None and sizes.value is not None:
        sizes.value = taker.take(sizes.value, (1,), 3)
    for value_, axes in region.carried.items():
        if value_ is not value:
            value_.type = _with_extent(value_, axes, kept)
    for op, index in readers:
        op.set_operand(index, thin)
    for (op, index), axes in region.sides.items():
        if op not in sizes.counted:
            b.before = op
            op.set_operand(index, taker.take(op.operands[index], axes, len(op.results[0].shape or ())))
    for (op, index), places in region.shapes.items():
        b.before = op
        for at in places:
            op.set_operand(index, _shape(b, op, index, at, count))
    for op in region.measured:
        b.before = op.next
        _extents_of_all(b, op, region)
    b.before = anchor
    sizes.weigh(b, region, kept)
    rows = rows_of(b, region, pairs, order) if pairs is not None and region.returned else None
    whole: dict[Value, Value] = {}
    for op, index in region.returned:
        part = op.operands[index]
        if part not in whole:
            assert part.op is not None
            b.before = part.op.next
            if rows is not None:
                whole[part] = b.GatherND(part, rows, batch_dims=1, _type=value.type)
            else:
                places = b.Expand(b.Unsqueeze(order, integers(2)), b.Shape(part))
                whole[part] = b.ScatterElements(value, places, part, axis=1, _type=value.type)
        op.set_operand(index, whole[part])


def _possible(region: TokenRegion, drop: TokenDrop) -> int:
    """As many sixteenths of those that were asked for as leave the leading tokens."""
    most = region.most_gone(merged=drop.merge)
    if most is None or not isinstance(region.extent, int):
        return drop.parts
    return max(parts for parts in range(drop.parts + 1) if region.extent * parts // PARTS <= max(most, 0))


def _pairs(b: Builder, region: TokenRegion, drop: TokenDrop, count: Value) -> Pairs:
    """Pair tokens to merge, as many as go (`count` stay)."""
    gone = b.Sub(b.Slice(b.Shape(region.value), *map(integers, (1, 2, 0))), count)
    received = None
    if drop.probabilities is not None:
        received = _scores(b, region.value, replace(drop, from_first=False))
    return pair_tokens(b, region, gone, _dim_gone(region.extent, drop.parts), received)


def _averaged(b: Builder, value: Value, pairs: Pairs, sizes: TokenCounts, taker: _Taker) -> Value:
    """The means of the tokens that go on, with their sizes as weights."""
    rows = b.Slice(b.Shape(value), *map(integers, (0, 2, 0)))
    ones = b.Expand(np.ones((1, 1, 1), np.float32), b.Concat(rows, integers(1), axis=0))
    shape, dtype = value.shape or (), value.dtype
    assert dtype is not None
    before = ones if sizes.value is None else sizes.value
    before.type = TensorType(DType.FLOAT, (*shape[:2], 1))
    hidden = value if dtype is DType.FLOAT else b.Cast(value, to=int(DType.FLOAT))
    total = taker.take(sums(b, b.Mul(hidden, before), pairs), (1,), 3)
    sizes.value = taker.take(sums(b, before, pairs), (1,), 3)
    mean: Value = b.Div(total, sizes.value)
    return mean if dtype is DType.FLOAT else b.Cast(mean, to=int(dtype))


def _dim_kept(extent: Dim, parts: int) -> KnownDim:
    """Number of tokens that stay."""
    assert extent is not None
    return extent - _dim_gone(extent, parts)


def _dim_gone(extent: Dim, parts: int) -> KnownDim:
    """Number of tokens that go."""
    assert extent is not None
    return floordiv(extent * parts, PARTS)


def _count(b: Builder, region: TokenRegion, parts: int) -> Value:
    """Number of tokens that stay, int64 `[1]`."""
    if isinstance(region.extent, int):
        return b.const(np.array([_dim_kept(region.extent, parts)], np.int64), "kept")
    whole = b.Slice(b.Shape(region.value), *map(integers, (1, 2, 0)))
    gone = b.Div(b.Mul(whole, integers(parts)), integers(PARTS))
    found: Value = b.Sub(whole, gone, _name="kept")
    return found


def _chosen(b: Builder, region: TokenRegion, drop: TokenDrop, count: Value) -> Value:
    """Indices of the tokens that stay, int64 `[batch, kept]`, ascending."""
    score = _scores(b, region.value, drop)
    if region.leading and isinstance(region.extent, int):
        # Scores are not negative.
        least = np.where(np.arange(region.extent) < region.leading, _FIRST, 0).astype(np.float32)
        score = b.Max(score, least[None])
    elif region.leading:
        first, rest = (b.Slice(score, *map(integers, bounds)) for bounds in ((0, 1, 1), (1, _TO_END, 1)))
        first = b.Max(first, np.array(_FIRST, np.float32))
        score = b.Concat(first, rest, axis=1)
    best = b.op("TopK", [score, count], {"axis": 1, "largest": 1, "sorted": 1}, outputs=2).results[1]
    order = b.op("TopK", [best, count], {"axis": 1, "largest": 0, "sorted": 1}, outputs=2).results[0]
    batch = (region.value.shape or (None,))[0]
    for index in (best, order):
        index.type = TensorType(DType.INT64, (batch, _dim_kept(region.extent, drop.parts)))
    return order


def _scores(b: Builder, value: Value, drop: TokenDrop) -> Value:
    """Importance of each token, float32 `[batch, tokens]`."""
    given = drop.probabilities
    rank = len(given.shape or ()) if given is not None else 0
    if given is None:
        found = b.ReduceL2(b.Cast(value, to=int(DType.FLOAT)), integers(2), keepdims=0)
    elif rank == 4 and not drop.from_first:
        found = b.ReduceMean(b.Cast(given, to=int(DType.FLOAT)), integers(1, 2), keepdims=0)
    else:
        if drop.from_first:
            given = b.Gather(given, np.int64(0), axis=rank - 2)
        else:
            given = b.ReduceMean(given, integers(rank - 2), keepdims=0)
        if rank == 3:
            batch = b.Slice(b.Shape(value), *map(integers, (0, 1, 0)))
            tokens = b.Slice(b.Shape(value), *map(integers, (1, 2, 0)))
            given = b.Reshape(given, b.Concat(batch, integers(-1), tokens, axis=0))
        found = b.ReduceMean(b.Cast(given, to=int(DType.FLOAT)), integers(1), keepdims=0)
    found.type = TensorType(DType.FLOAT, (value.shape or (None, None))[:2])
    result: Value = found
    return result


class _Taker:
    """Takes the tokens that stay, the same ones of every value; each value once, before its first use.

    Args:
        b: Where ops are made.
        order: Which stay, int64 `[batch, kept]`.
        kept: How many that are.
        value: The hidden state `[batch, tokens, width]`.
    """

    def __init__(self, b: Builder, order: Value, kept: Dim, value: Value) -> None:
        self.b, self.order, self.kept, self.value = b, order, kept, value
        self.index: Value = b.Unsqueeze(order, integers(2))
        self.made: dict[tuple[Value, tuple[int, ...], int], Value] = {}

    def take(self, value: Value, axes: tuple[int, ...], rank: int) -> Value:
        """Take them along the axes of a value that broadcasts to a rank, axis 0 of which is the batch."""
        key = (value, axes, rank)
        if key not in self.made:
            found = value
            for axis in axes:
                found = self._along(found, axis + rank - len(value.shape or ()), rank)
            self.made[key] = found
        return self.made[key]

    def _along(self, value: Value, axis: int, rank: int) -> Value:
        b, shape = self.b, value.shape or ()
        if len(shape) < rank:
            value = b.Unsqueeze(value, np.arange(rank - len(shape), dtype=np.int64))
            shape = (*(1,) * (rank - len(shape)), *shape)
        batch = (self.value.shape or (None,))[0]
        if shape[0] != batch:
            batches = b.Slice(b.Shape(self.value), *map(integers, (0, 1, 0)))
            value = b.Expand(value, b.Concat(batches, np.ones(rank - 1, np.int64), axis=0))
            shape = (batch, *shape[1:])
        swapped = list(range(rank))
        swapped[1], swapped[axis] = axis, 1
        moved = value if axis == 1 else b.Transpose(value, perm=swapped)
        taken = b.GatherND(moved, self.index, batch_dims=1)
        dtype = value.dtype
        assert dtype is not None
        taken.type = TensorType(dtype, (shape[0], self.kept, *(shape[swapped[i]] for i in range(2, rank))))
        found: Value = taken if axis == 1 else b.Transpose(taken, perm=swapped)
        return found


def _with_extent(value: Value, axes: tuple[int, ...], extent: Dim) -> TensorType:
    shape, dtype = list(value.shape or ()), value.dtype
    assert dtype is not None
    for axis in axes:
        shape[axis] = extent
    return TensorType(dtype, tuple(shape))


def _extents_of_all(b: Builder, op: Op, region: TokenRegion) -> None:
    """Let those who read a shape see as many tokens as there were."""
    rank = len(op.operand.shape or ())
    start, end, _ = slice(op.attrs.get("start", 0), op.attrs.get("end", rank)).indices(rank)
    axes = [axis - start for axis in region.carried[op.operand] if start <= axis < end]
    if not axes:
        return
    uses = list(op.result.uses)
    tokens = b.Slice(b.Shape(region.value), *map(integers, (1, 2, 0)))
    whole = b.ScatterElements(
        op.result, integers(*axes), b.Expand(tokens, integers(len(axes))), axis=0, _type=op.result.type
    )
    for user, index in uses:
        user.set_operand(index, whole)


def _shape(b: Builder, op: Op, index: int, at: int, count: Value) -> Value:
    """The extents of a result, with as many tokens as stay."""
    given = op.operands[index]
    known = ints(given.tensor)
    rank = len(op.results[0].shape or ())
    if known is not None:
        if known[at] == -1 or (known[at] == 0 and not op.attrs.get("allowzero", 0)):
            return given
        counts = ints(count.tensor)
        if counts is not None:
            return b.const(np.array([*known[:at], counts[0], *known[at + 1 :]], np.int64), "extents")
    zero = integers(0)
    parts: list[Value] = []
    if at:
        parts.append(b.Slice(given, zero, integers(at), zero))
    parts.append(count)
    if at + 1 < rank:
        parts.append(b.Slice(given, integers(at + 1), integers(_TO_END), zero))
    found: Value = b.Concat(*parts, axis=0) if len(parts) > 1 else count
    return found
