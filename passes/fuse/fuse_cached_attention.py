"""fuse-cached-attention: attention over a cache as the one operator that keeps neither scores nor repeated heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value, clone_op
from memoptc.ir.dims import Dim, same
from memoptc.ir.ops import opset_of
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.passes.fuse._decoder.cached import HIDDEN, Cached, Masking, agreeing, cached_attention
from memoptc.passes.fuse._decoder.merged_heads import unmerge_heads
from memoptc.passes.fuse._fuse.core import LOWEST, shape_of
from memoptc.passes.fuse._fuse.heads import inside, is_inside, merged_again, outside, source, unsplit
from memoptc.runtime.memory.branches import LIKELY

SHOWN = -4e3
"""A score to which more is added counts as shown. Between this and HIDDEN is room for what scores differ by."""

_HEADS_INSIDE = (0, 2, 1, 3)
_STEPS = 2
"""The axis of a cache that grows."""


class FuseCachedAttention(Pass):
    """Turn Softmax(Q K^T * scale + mask) V over a cache into GroupQueryAttention; the cache keeps its form.

    onnxruntime's kernel computes it by tiles: scores never exist whole, nor heads repeated for their group. It hides
    what comes later by itself, takes several steps after a past for one sequence only, and no empty one. So the
    operator stands in one branch of an If, what was there in the other; which of them runs is decided once per mask, at
    run time: by whether the mask hides all later steps and shows each step something. Where all is hidden, the original
    weighs all keys alike; that stays. Outputs may differ by float noise.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look at every Softmax."""
        context.shapes(graph)
        for inner in dict.fromkeys(op.graph for op in graph.walk() if op.graph is not None):
            products = unmerge_heads(inner) if (opset_of(inner) or 0) >= 13 else 0
            if products:
                context.stats["products with heads taken apart from the batch"] += products
        guards: dict[Value, list[Guard]] = {}
        for softmax in list(graph.walk("Softmax")):
            if softmax.graph is None or _is_fallback(softmax.graph):
                continue
            core = cached_attention(softmax)
            if core is None:
                continue
            if (opset_of(softmax.graph) or 0) < 13:
                context.stats["declined: opset below 13"] += 1
            elif _replace(core, softmax.graph, guards):
                context.stats["fused"] += 1
            else:
                context.stats["declined: the mask depends on the cache"] += 1


@dataclass(frozen=True)
class Guard:
    """Values that all attention under one mask shares.

    Args:
        owner: The graph that it stands in.
        masks: What is done to the scores.
        dims: Extents batch, steps and past, as types say.
        extents: The same at run time, as vectors of one, by name.
        bias: What is added to the scores: [batch or 1, heads or 1, steps, all].
        lengths: Number of keys less one for each sequence, int32.
        total: Number of keys, int32.
        fast: Whether the operator computes the same.
    """

    owner: Graph
    masks: list[Masking]
    dims: tuple[Dim, ...]
    extents: dict[str, Value]
    bias: Value
    lengths: Value
    total: Value
    fast: Value


def _is_fallback(graph: Graph) -> bool:
    """True if a graph is the branch for what the operator cannot do."""
    owner = graph.parent
    return owner is not None and owner.metadata.get(LIKELY) == "then_branch" and owner.regions["else_branch"] is graph


def _replace(core: Cached, graph: Graph, guards: dict[Value, list[Guard]]) -> bool:
    last = core.result.op
    assert last is not None
    merged = merged_again(core.result)
    results = merged or [core.result]
    for value in merged:
        assert value.op is not None
        core.ops |= {value.op, *core.result.users}
    for concat in core.present:
        _extents_of_parts(concat, graph)
    anchor = max((r.op for r in results if r.op is not None), key=lambda op: _order(graph)[op])
    if not _settle(core, graph, anchor):
        return False
    loc = last.loc.union(*(op.loc for op in core.ops), rule="fuse-cached-attention")
    b = Builder(graph, before=anchor, loc=loc)
    guard = _guard(b, core, guards)
    then, other = Graph("tiled"), Graph("whole")
    present = [c.result for c in core.present]
    made = b.op(
        "If", [_agrees(b, core, guard)], outputs=3, type=[results[0].type, *(p.type for p in present)],
        regions={"then_branch": then, "else_branch": other},
    )  # fmt: skip
    made.metadata[LIKELY] = "then_branch"
    _operator(Builder(then, loc=loc), core, guard, bool(merged))
    _original(other, core, graph, results[0])
    for old, new in zip((results[0], *present), made.results, strict=True):
        old.replace_by(new, where=lambda op, _: op.graph is not other and op not in core.ops)
    for again in results[1:]:
        again.replace_by(made.result)
    for op in sorted(core.ops, key=lambda op: -_order(graph)[op]):
        if not any(r.has_uses for r in op.results):
            op.erase()
    _sink(made, other)
    return True


def _order(graph: Graph) -> dict[Op, int]:
    return graph.analysis(_numbered)


def _numbered(graph: Graph) -> dict[Op, int]:
    return {op: i for i, op in enumerate(graph.ops)}


def _extents_of_parts(concat: Op, graph: Graph) -> None:
    """Read extents of an appended cache off its parts: masks are often as long as it, and must not need it whole."""
    past, new = concat.operands
    whole = shape_of(concat.result)
    agree = [same(a, b) for a, b in zip(shape_of(past), shape_of(new), strict=True)]
    for user in concat.result.users:
        if not user.is_a("Shape") or user.graph is not graph or not all(agree[:2] + agree[3:]):
            continue
        b = Builder(graph, before=concat, loc=user.loc)
        axes = range(len(whole))[slice(user.attrs.get("start", 0), user.attrs.get("end"))]
        parts = [b.Add(_extent(b, past, i), _extent(b, new, i)) if i == _STEPS else _extent(b, new, i) for i in axes]
        if parts:
            user.result.replace_by(b.Concat(*parts, axis=0) if len(parts) > 1 else parts[0])
            user.erase()


def _settle(core: Cached, graph: Graph, anchor: Op) -> bool:
    """Put what uses the appended cache, but is no part of attention, behind it; `False` where attention needs that."""
    number = _order(graph)
    start = min(number[op] for op in core.present)
    dependent: dict[Value, None] = dict.fromkeys(c.result for c in core.present)
    inner = set(core.ops)
    late: list[Op] = []
    for op in graph.ops:
        if number[op] < start or number[op] > number[anchor]:
            continue
        used = [*op.operands, *(v for region in op.regions.values() for v in region.captures())]
        if any(v in dependent for v in used):
            dependent.update(dict.fromkeys(op.results))
            if op not in inner:
                late.append(op)
    needed = [core.query, core.keys, core.values, *core.past, *(m.value for m in core.masks)]
    if any(v in dependent for v in needed):
        return False
    for op in reversed(late):  # what computes the shape of repeated heads belongs to attention
        if any(user in inner for r in op.results for user in r.users):
            inner.add(op)
            core.ops.add(op)
    late = [op for op in late if op not in inner]
    behind = anchor
    for op in late:
        op.move_after(behind)
        behind = op
    return True


def _guard(b: Builder, core: Cached, guards: dict[Value, list[Guard]]) -> Guard:
    known = guards.setdefault(core.masks[0].value, [])
    for guard in known:
        if guard.owner is b.graph and guard.masks == core.masks:
            return guard
    known.append(_new_guard(b, core))
    return known[-1]


def _dims(core: Cached) -> tuple[Dim, ...]:
    query = shape_of(core.query)
    return query[0], query[2], shape_of(core.past[0])[2]


def _new_guard(b: Builder, core: Cached) -> Guard:
    origin, axes = _origin(core)
    batch, steps = (_extent(b, origin, axis) for axis in axes)
    past = _extent(b, core.past[0], 2)
    total = b.Add(past, steps)
    one = np.asarray([1], np.int64)
    new = steps if same(shape_of(core.keys)[2], shape_of(core.query)[2]) else _extent(b, core.keys, 2)
    keys = total if new is steps else b.Add(past, new)  # as long as scores are, also where the operator is not taken
    bias = _bias(b, core, steps, keys)
    short = b.Cast(b.Sub(total, one), to=int(DType.INT32))
    lengths = b.Expand(short, batch)
    count = b.Squeeze(b.Cast(total, to=int(DType.INT32)))
    zero = np.asarray([0], np.int64)
    alone = b.Or(b.Or(b.Equal(batch, one), b.Equal(steps, one)), b.Equal(past, zero))
    taken = b.And(alone, b.Greater(b.Mul(steps, batch), zero))
    fast = b.And(b.Squeeze(taken), _suits(b, bias, steps, past, keys))
    for axis, wanted, known in (
        (0, batch, shape_of(core.query)[0]),
        (1, b.const(np.asarray([core.heads])), core.heads),
    ):
        dim = shape_of(bias)[axis : axis + 1]
        if dim != (1,) and not same(dim[0] if dim else None, known):
            extent = b.Gather(b.Shape(bias), np.asarray([axis], np.int64), axis=0)
            fast = b.And(fast, b.Squeeze(b.Or(b.Equal(extent, wanted), b.Equal(extent, one))))
    extents = {"batch": batch, "steps": steps, "past": past}
    return Guard(b.graph, core.masks, _dims(core), extents, bias, lengths, count, fast)


def _agrees(b: Builder, core: Cached, guard: Guard) -> Value:
    """True if the operator computes the same here: all extents that types do not show to be equal are compared."""
    compared = [(v, axis, name) for v, axis, name in agreeing(core)]
    mine = zip(
        guard.extents, guard.dims, _dims(core), ((core.query, 0), (core.query, 2), (core.past[0], 2)), strict=True
    )
    compared += [(v, axis, name) for name, one, other, (v, axis) in mine if not same(one, other)]
    fast = guard.fast
    seen: set[tuple[Value, int]] = set()
    for value, axis, name in compared:
        if (value, axis) not in seen:
            seen.add((value, axis))
            fast = b.And(fast, b.Squeeze(b.Equal(_extent(b, value, axis), guard.extents[name])))
    return fast


def _origin(core: Cached) -> tuple[Value, tuple[int, int]]:
    """The value that the queries' heads are split from, and its axes for batch and steps."""
    at = source(core.query, _HEADS_INSIDE, core.query.graph)
    before = unsplit(at.value, core.heads * core.width) if is_inside(at) else None
    return (before, (0, 1)) if before is not None else (at.value, (at.axes[0], at.axes[1]))


def _extent(b: Builder, value: Value, axis: int) -> Value:
    """An extent as a vector of one."""
    dim = shape_of(value)[axis]
    if isinstance(dim, int):
        return b.const(np.asarray([dim], np.int64))
    return b.Gather(b.Shape(value), np.asarray([axis], np.int64), axis=0)  # type: ignore[no-any-return]


def _bias(b: Builder, core: Cached, steps: Value, total: Value) -> Value:
    """Bias of the scores, with all rows and keys."""
    bias: Value | None = None
    for mask in core.masks:
        value = mask.value
        if mask.shown is not None:
            low, zero = np.asarray(max(mask.low, LOWEST), np.float32), np.asarray(0.0, np.float32)
            value = b.Where(value, *((zero, low) if mask.shown else (low, zero)))
        bias = value if bias is None else b.Add(bias, value)
    assert bias is not None
    shape = shape_of(bias)
    if len(shape) < 4:
        bias = b.Unsqueeze(bias, np.asarray(range(4 - len(shape)), np.int64)) if shape else bias
    query, keys = shape_of(core.query), shape_of(core.present[0].result)
    known = shape_of(bias)
    if len(known) == 4 and _is(known[2], query[2]) and _is(known[3], keys[2]):
        return bias
    ones = np.asarray([1, 1], np.int64)
    wide: tuple[Dim, ...] = (*(known[:2] if len(known) == 4 else (None, None)), query[2], keys[2])
    return b.Expand(bias, b.Concat(ones, steps, total, axis=0), _type=TensorType(DType.FLOAT, wide))  # type: ignore[no-any-return]


def _is(a: Dim, b: Dim) -> bool:
    return same(a, b)


def _suits(b: Builder, bias: Value, steps: Value, past: Value, total: Value) -> Value:
    """True if all later steps are hidden, and each step is shown something."""
    rows, keys = shape_of(bias)[2:] if len(shape_of(bias)) == 4 else (None, None)
    numbers = b.Unsqueeze(b.Add(_counted(b, steps, rows), past), np.asarray([1], np.int64))
    later = b.Greater(_counted(b, total, keys), numbers)
    shown = b.Greater(bias, np.asarray(HIDDEN, np.float32))
    nothing = np.asarray(0.0, np.float32)
    # bytes, since there is one for each score
    wrong = _largest(b, b.Cast(b.And(later, shown), to=int(DType.UINT8)))
    wrong = b.ReduceSum(b.Cast(wrong, to=int(DType.FLOAT)), keepdims=0)
    best = _largest(b, bias)
    blind = b.ReduceSum(b.Cast(b.LessOrEqual(best, np.asarray(SHOWN, np.float32)), to=int(DType.FLOAT)), keepdims=0)
    return b.Equal(b.Add(wrong, blind), nothing)  # type: ignore[no-any-return]


def _largest(b: Builder, bias: Value) -> Value:
    if (opset_of(b.graph) or 13) >= 18:
        return b.ReduceMax(bias, np.asarray([3], np.int64))  # type: ignore[no-any-return]
    return b.ReduceMax(bias, axes=[3])  # type: ignore[no-any-return]


def _counted(b: Builder, count: Value, extent: Dim) -> Value:
    zero, one = np.asarray(0, np.int64), np.asarray(1, np.int64)
    return b.Range(zero, b.Squeeze(count), one, _type=TensorType(DType.INT64, (extent,)))  # type: ignore[no-any-return]


def _operator(b: Builder, core: Cached, guard: Guard, merged: bool) -> None:
    query, keys, values = (inside(b, source(v, _HEADS_INSIDE, v.graph)) for v in (core.query, core.keys, core.values))
    operands = [query, keys, values, *core.past, guard.lengths, guard.total, None, None, None, guard.bias]
    attrs = {"num_heads": core.heads, "kv_num_heads": core.groups, "scale": core.scale, "softcap": core.softcap}
    if not core.softcap:
        del attrs["softcap"]
    made = b.op("GroupQueryAttention", operands, attrs, domain="com.microsoft", outputs=3)
    result = made.result if merged else outside(b, made.result, core.heads, core.width)
    b.graph.set_outputs([result, *made.results[1:]])


def _original(region: Graph, core: Cached, graph: Graph, wanted: Value) -> None:
    """The ops as they were."""
    number = _order(graph)
    mapping: dict[Value, Value] = {}
    for op in sorted(core.ops, key=lambda op: number[op]):
        copy = clone_op(op, mapping)
        copy.name = ""
        for result in copy.results:
            result.name = "" if result.omitted else region.fresh_name(f"{result.name}_whole")
        region.append(copy)
    region.set_outputs([mapping[v] for v in (wanted, *(c.result for c in core.present))])


def _sink(made: Op, region: Graph) -> None:
    """Move what only the other branch needs into it: it runs rarely."""
    todo = [v for op in region.ops for v in op.operands]
    while todo:
        op = todo.pop().op
        if op is None or op.graph is not made.graph or op.is_const or op.regions or op.op_type not in _CHEAP:
            continue
        if all(user.graph is region for r in op.results for user in r.users):
            first = region.first
            assert first is not None
            op.move_before(min((u for r in op.results for u in r.users), key=lambda u: _order(region)[u]))
            todo += op.operands


_CHEAP = frozenset(["Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity"])
