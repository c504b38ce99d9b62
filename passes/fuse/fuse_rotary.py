"""fuse-rotary: rotary embedding, in halves or in pairs, of all or a part of each head, as one operator."""

from __future__ import annotations

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import opset_of
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.passes.fuse._decoder.rotary import Known, Rotary, rotary
from memoptc.passes.fuse._fuse.core import shape_of
from memoptc.passes.fuse._fuse.heads import inside, is_inside, outside, source

_HEADS_INSIDE = (0, 2, 1, 3)


class FuseRotary(Pass):
    """Turn x * cos + swapped(x) * sin into RotaryEmbedding, with heads where they lie.

    The operator looks cosines and sines up by position. Those that the model computes, one row for each step of each
    sequence, become its table, and the steps' numbers its positions: so it holds for all positions, however they are
    computed. Outputs may differ by float noise.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look at every sum, and every Concat of a turned part and the rest, in order: later ones share tables."""
        context.shapes(graph)
        known: Known = {}
        tables: dict[tuple[object, ...], tuple[Value, Value, Value]] = {}
        ends: set[Op] = set()
        inner: set[Op] = set()
        for op in [*graph.walk("Concat"), *graph.walk("Add")]:  # a sum may belong to the Concat behind it
            if op not in inner and (found := rotary(op, known)) is not None:
                ends.add(op)
                inner |= found.ops
        for op in [op for op in graph.walk() if op in ends]:
            found = rotary(op, known) if op.graph is not None else None
            if found is None or op.graph is None or (opset_of(op.graph) or 0) < 14:
                continue
            _replace(op, found, op.graph, tables)
            context.stats["fused"] += 1


def _replace(op: Op, found: Rotary, graph: Graph, tables: dict[tuple[object, ...], tuple[Value, Value, Value]]) -> None:
    loc = op.loc.union(*(o.loc for o in found.ops), rule="fuse-rotary")
    b = Builder(graph, before=op, loc=loc)
    shape = shape_of(found.x)
    heads, width = shape[1], shape[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    key = (graph, found.cos, found.sin, found.pairs, found.turned)
    known = tables.get((*key, shape[0], shape[2])) if None not in shape else None
    if known is None:
        known = tables[(*key, shape[0], shape[2])] = _table(b, found)
    at = source(found.x, _HEADS_INSIDE, graph)
    flat = is_inside(at) and at.value is not found.x
    x = inside(b, at) if flat else found.x
    attrs = {"interleaved": int(found.pairs), "num_heads": heads}
    if found.turned != width:
        attrs["rotary_embedding_dim"] = found.turned
    cos, sin, positions = known
    made = b.op("RotaryEmbedding", [x, positions, cos, sin], attrs, domain="com.microsoft", type=x.type).result
    new = outside(b, made, heads, width) if flat else made
    new.type = op.result.type
    op.result.replace_by(new)
    for old in sorted(found.ops, key=lambda o: -_position(graph)[o]):
        if not any(r.has_uses for r in old.results):
            old.erase()


def _position(graph: Graph) -> dict[Op, int]:
    return graph.analysis(_numbered)


def _numbered(graph: Graph) -> dict[Op, int]:
    return {op: i for i, op in enumerate(graph.ops)}


def _table(b: Builder, found: Rotary) -> tuple[Value, Value, Value]:
    """Cosines and sines, one row for each step, and which row each step takes."""
    half = found.turned // 2
    step = 2 if found.pairs else 1
    cut = [np.asarray([n], np.int64) for n in (0, found.turned if found.pairs else half, -1, step)]
    cos, sin = (b.Reshape(b.Slice(v, *cut), np.asarray([-1, half], np.int64)) for v in (found.cos, found.sin))
    batch, steps = (b.Gather(b.Shape(found.x), np.asarray([axis], np.int64), axis=0) for axis in (0, 2))
    zero, one = np.asarray(0, np.int64), np.asarray(1, np.int64)
    first = shape_of(found.cos)[0] if len(shape_of(found.cos)) == 4 else 1
    if first == 1:
        sequences = b.const(np.asarray([1], np.int64))
    else:  # no sequences: the operator wants as many rows as there are steps all the same
        sequences = b.Gather(b.Shape(found.cos), zero.reshape(1), axis=0)
        missing = b.Mul(b.Cast(b.Equal(sequences, zero.reshape(1)), to=int(DType.INT64)), steps)
        none = np.asarray([0], np.int64)
        more = b.Concat(none, none, missing, none, axis=0)
        cos, sin = (b.Pad(v, more, np.asarray(0.0, np.float32)) for v in (cos, sin))
    rows = b.Range(zero, b.Squeeze(b.Mul(sequences, steps)), one)
    numbers = b.Reshape(rows, b.Concat(sequences, steps, axis=0), allowzero=1)  # also where there are no steps
    shape = shape_of(found.x)
    wide = TensorType(DType.INT64, (shape[0], shape[2]))
    return cos, sin, b.Expand(numbers, b.Concat(batch, steps, axis=0), _type=wide)
