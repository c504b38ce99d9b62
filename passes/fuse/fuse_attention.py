"""fuse-attention: attention as the one operator that onnxruntime computes without ever holding all scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Value
from memoptc.ir.dims import same
from memoptc.ir.ops import opset_of
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.passes.fuse._fuse.bounds import Known
from memoptc.passes.fuse._fuse.core import LOWEST, AttentionMatch, Mask, attention, shape_of
from memoptc.passes.fuse._fuse.heads import inside, is_inside, merged_again, outside, source
from memoptc.passes.fuse._fuse.weights import only_for, projection
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import evaluate

_HEADS_INSIDE = (0, 2, 1, 3)
_KEYS_INSIDE = (0, 3, 1, 2)


class FuseAttention(Pass):
    """Turn Softmax(Q K^T * scale + mask) V into MultiHeadAttention, where its kernel keeps tiles of the scores only.

    onnxruntime's kernel takes that way for float32 without a mask. A mask that is the same for all rows becomes one
    more column of the keys, which meets ones in the queries: the product then adds it. What is masked by row, or has
    another element type, stays; so does what would need more memory at the planned extents: the kernel copies its
    operands.
    Outputs may differ by float noise. Where a row's keys are all hidden, their weights are equal. What a mask hides
    must be finite: a NaN there is added to, not replaced.
    """

    def run(self, graph: Graph, context: Context) -> None:
        """Look at every Softmax once."""
        known: Known = {}
        for softmax in list(graph.walk("Softmax")):
            core = attention(softmax, known) if softmax.graph is not None else None
            if core is None or softmax.graph is None:
                continue
            if (opset_of(softmax.graph) or 13) < (5 if core.mask is None else 11):
                continue
            if pays(core, extents(graph, context.dims)):
                _replace(core, softmax.graph)
                context.stats["masked" if core.mask is not None else "fused"] += 1
            else:
                context.stats["declined: needs more memory"] += 1


def pays(core: AttentionMatch, dims: Mapping[str, int]) -> bool:
    """True if the operator needs less than the scores that it replaces.

    Beside operands and result, which are there either way, it keeps a copy of each operand; with a mask, wider keys
    are made before, and what has its heads outside is transposed. Scores are there twice where anything but Softmax is
    applied to them.

    Where all heads stay outside, as nothing splits or merges them, it stays: at 4,096 tokens, 8 heads of 64, transposes
    and operator take 1.4 times as long as the three nodes, and `fit` cuts those at 1.2 times into fewer bytes.

    That is where it is no slower, too. Run time over that of what it replaces, with and without a mask (onnxruntime
    1.31.1, AVX-512, one thread, 4 heads of 16 to 64, 32 to 512 tokens), by scores over copies without a mask:

        0.2 to 0.3    1.03 to 1.10        2.7     0.93 to 1.01
        0.7           0.95 to 1.05        5.3     0.85 to 0.93
        1.3           0.96 to 1.02        10.7    0.84 to 0.89
    """
    wanted = [*shape_of(core.query), *shape_of(core.values)[2:]]
    sizes = [d for d in (evaluate(d, dims) for d in wanted) if d is not None]
    if len(sizes) < len(wanted):
        return False
    batch, heads, rows, width, keys, out = sizes
    moved = _moved(core)
    if all(moved) and not merged_again(core.result):
        return False
    scores = batch * heads * rows * keys * (2 if len(core.ops) > 3 else 1)
    masked = core.mask is not None
    each = (rows * (width + masked), keys * (width + masked), keys * out)
    copies = sum(each) + (keys * (width + masked) if masked else 0)
    copies += sum(n for n, turned in zip(each, moved, strict=True) if turned)
    return batch * heads * copies <= scores


def _moved(core: AttentionMatch) -> list[bool]:
    """Queries, keys and values that have to be transposed. What is taken out of a larger one is so either way."""
    sources = [source(value, axes, core.result.graph) for value, axes in _wanted(core)]
    return [at.taken is None and not is_inside(at) for at in sources]


def _wanted(core: AttentionMatch) -> list[tuple[Value, tuple[int, ...]]]:
    return [(core.query, _HEADS_INSIDE), (core.keys, _KEYS_INSIDE), (core.values, _HEADS_INSIDE)]


def _replace(core: AttentionMatch, graph: Graph) -> None:
    last = core.ops[-1]
    loc = last.loc.union(*(op.loc for op in core.ops), rule="fuse-attention")
    b = Builder(graph, before=last, loc=loc)
    query, keys, values = _operands(b, core)
    scale = core.scale
    if core.mask is not None:
        query, keys, scale = *_with_mask(b, core, query, keys), 1.0
    attrs = {"num_heads": core.heads, "scale": scale}
    made = b.op("MultiHeadAttention", [query, keys, values], attrs, domain="com.microsoft").result
    width = shape_of(core.values)[3]
    assert isinstance(width, int)
    ends = merged_again(core.result)
    new = made if ends else outside(b, made, core.heads, width)
    for old in ends or [core.result]:
        new.type = old.type
        old.replace_by(new)


def _operands(b: Builder, core: AttentionMatch) -> list[Value]:
    """Queries, keys and values with heads inside."""
    return [inside(b, source(value, axes, b.graph)) for value, axes in _wanted(core)]


def _with_mask(b: Builder, core: AttentionMatch, query: Value, keys: Value) -> tuple[Value, Value]:
    """Queries with a one behind each head's, and scaled; keys with what is added to their scores."""
    assert core.mask is not None
    heads, width = core.heads, shape_of(core.query)[3]
    assert isinstance(width, int)
    whole = np.asarray([0, 0, heads * (width + 1)], np.int64)
    split = np.asarray([0, 0, heads, width], np.int64)
    apart_ = b.Reshape(keys, split)
    column = _column(b, core.mask, apart_, heads)
    wider = b.Reshape(b.Concat(apart_, column, axis=3), whole)
    made = projection(query) if only_for(query, core.inner) else None
    if made is not None:
        w, c = made.columns()
        w_wide = np.zeros((w.shape[0], heads, width + 1), np.float32)
        c_wide = np.ones((heads, width + 1), np.float32)
        for row, wider_row in zip(w, w_wide, strict=True):  # in float64 a row at a time, since weights are large
            wider_row[:, :width] = (row * np.float64(core.scale)).reshape(heads, width)
        c_wide[:, :width] = (c * np.float64(core.scale)).reshape(heads, width)
        return made.remade(b, w_wide.reshape(w.shape[0], -1), c_wide.reshape(-1)), wider
    scaled = query if core.scale == 1 else b.Mul(query, np.asarray(core.scale, np.float32))
    rows = b.Reshape(scaled, split)
    one = _broadcast_column(b, b.const(np.ones((1, 1, 1, 1), np.float32), "one"), rows)
    return b.Reshape(b.Concat(rows, one, axis=3), whole), wider


def _column(b: Builder, mask: Mask, keys: Value, heads: int) -> Value:
    """Bias of each key's scores, as [batch, keys, heads, 1]."""
    value = mask.value
    if mask.hidden is not None:
        lowest, zero = np.asarray(LOWEST, np.float32), np.asarray(0.0, np.float32)
        value = b.Where(value, *((lowest, zero) if mask.hidden else (zero, lowest)))
    elif mask.overflows:
        value = b.Clip(value, np.asarray(LOWEST, np.float32), np.asarray(-LOWEST, np.float32))
    shape = (1,) * (4 - len(shape_of(value))) + shape_of(value)
    if len(shape_of(value)) < 4:
        value = b.Reshape(value, np.asarray([1, 1, 1, -1], np.int64))
    turned = b.Transpose(value, perm=[0, 3, 1, 2])
    if same(shape[0], shape_of(keys)[0]):
        return b.Concat(*[turned] * heads, axis=2)  # type: ignore[no-any-return]
    return _broadcast_column(b, turned, keys)


def _broadcast_column(b: Builder, column: Value, beside: Value) -> Value:
    """Expand a column of one extent to [batch, rows, heads, 1], to be concatenated with [batch, rows, heads, width]."""
    first = b.Slice(b.Shape(beside), *(np.asarray([n], np.int64) for n in (0, 3, 0)))
    type_ = TensorType(DType.FLOAT, (*shape_of(beside)[:3], 1))
    return b.Expand(column, b.Concat(first, np.asarray([1], np.int64), axis=0), _type=type_)  # type: ignore[no-any-return]
