"""Attention over a cache as exporters write it: which ops compute it, of what, and what is added to its scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.tensors import ints, scalar
from memoptc.ir.types import DType
from memoptc.passes.fuse._fuse.core import product_of, scaled_by, shape_of

HIDDEN = -9e3
"""A score to which at most this is added, or that it replaces, counts as hidden: Softmax sees no other come near."""


@dataclass(frozen=True)
class Masking:
    """Masking of the scores before Softmax.

    Args:
        value: Numbers to add, or a condition.
        shown: `None` for numbers; else what the condition is where a score stays.
        low: What stands in place of a score that does not stay.
    """

    value: Value
    shown: bool | None = None
    low: float = 0.0


@dataclass
class Cached:
    """Softmax(cap(Q K^T * scale) + mask) V, where K and V are a cache with new steps appended; heads lie outside.

    Args:
        query: Q, not scaled: [batch, heads, steps, width].
        keys: New keys: [batch, key/value heads, steps, width].
        values: New values, alike.
        past: Keys and values of the past: [batch, key/value heads, past, width].
        present: The two Concats.
        scale: Of the scores.
        softcap: Bound of the scores by tanh, 0 for none.
        masks: In the order in which they are applied.
        ops: All ops from the Concats to the result.
    """

    query: Value
    keys: Value
    values: Value
    past: tuple[Value, Value]
    present: tuple[Op, Op]
    scale: float
    softcap: float
    masks: list[Masking]
    ops: set[Op] = field(default_factory=set)
    result: Value = field(init=False)

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return _number(shape_of(self.query)[1])

    @property
    def groups(self) -> int:
        """Number of key/value heads."""
        return _number(shape_of(self.keys)[1])

    @property
    def width(self) -> int:
        """Width of a head."""
        return _number(shape_of(self.query)[3])


def cached_attention(softmax: Op) -> Cached | None:
    """Find the attention over a cache that a Softmax is the middle of; `None` where it is something else."""
    middle = product_of(softmax)
    if middle is None:
        return None
    product, guards = middle
    ops = {softmax, *guards, product}
    found = _scores(softmax, ops)
    if found is None:
        return None
    scores, scale, softcap, masks = found
    query, factor = _unscaled(scores.operands[0], ops, scores)
    keys, other = _unscaled(scores.operands[1], ops, scores)
    turned = keys.op
    if turned is None or not turned.is_a("Transpose") or tuple(turned.attrs.get("perm", ())) != (0, 1, 3, 2):
        return None
    ops.add(turned)
    keys, third = _unscaled(turned.operand, ops, scores)
    first, second = _appended(keys, ops), _appended(product.operands[1], ops)
    if first is None or second is None:
        return None
    past = (first.operands[0], second.operands[0])
    cached = Cached(query, first.operands[1], second.operands[1], past, (first, second),
                    scale * factor * other * third, softcap, masks, ops)  # fmt: skip
    cached.result = product.result
    return cached if _fits(cached) else None


def _scores(softmax: Op, ops: set[Op]) -> tuple[Op, float, float, list[Masking]] | None:
    """The product of queries and keys, and what happens to it on the way to Softmax."""
    scale, softcap = 1.0, 0.0
    masks: list[Masking] = []
    value = softmax.operand
    while not (value.op is not None and value.op.is_a("MatMul")):
        op = value.op
        if op is None or op.graph is not softmax.graph or not value.single_use:
            return None
        scaled = scaled_by(op)
        masked = None if scaled is not None else _masked(op)
        if scaled is not None:
            value, factor = scaled
            if op.op_type != "Tanh" and value.op is not None and value.op.is_a("Tanh") and value.single_use:
                if softcap or scale != 1.0 or factor <= 0:
                    return None
                # cap * tanh(s) is cap * tanh(cap * s / cap), whatever part of the scale was moved before the product
                ops |= {op, value.op}
                value, softcap, scale = value.op.operand, factor, factor
                continue
            scale *= factor
        elif (raised := _raised(op)) is not None and scale == 1.0 and not softcap and not masks:
            value = raised
        elif masked is not None and scale == 1.0 and not softcap:
            value, mask = masked
            masks.insert(0, mask)
        else:
            return None
        ops.add(op)
    if not value.single_use or value.op.graph is not softmax.graph:
        return None
    ops.add(value.op)
    return value.op, scale, softcap, masks


def _raised(op: Op) -> Value | None:
    """The masked scores that an op keeps from overflowing, max(scores, lowest): what is shown stays as it is."""
    if not op.is_a("Max") or len(op.operands) != 2:
        return None
    for place in (0, 1):
        number = scalar(op.operands[1 - place].tensor)
        if number is not None and number <= HIDDEN:
            return op.operands[place]
    return None


def _masked(op: Op) -> tuple[Value, Masking] | None:
    """The scores that an op masks, and how."""
    if op.is_a("Add"):
        sides = [(op.operands[i], op.operands[1 - i]) for i in (0, 1)]
        for scores, added in sides:
            if _leads_to_product(scores) and not _leads_to_product(added):
                return scores, Masking(added)
    if op.is_a("Where"):
        for place in (1, 2):
            number = scalar(op.operands[3 - place].tensor)
            if number is not None and number <= HIDDEN and _leads_to_product(op.operands[place]):
                return op.operands[place], Masking(op.operands[0], place == 1, float(number))
    return None


def _leads_to_product(value: Value) -> bool:
    """True if a value is computed from a product by ops that change scores one by one."""
    for _ in range(8):
        op = value.op
        if op is None or op.domain:
            return False
        if op.op_type == "MatMul":
            return len(shape_of(value)) == 4
        if op.op_type == "Where":
            value = op.operands[1] if op.operands[2].tensor is not None else op.operands[2]
        elif op.op_type in ("Mul", "Div", "Add", "Tanh"):
            left = op.operands[0]
            value = op.operands[1] if left.tensor is not None or left.is_input else left
        else:
            return False
    return False


def _unscaled(value: Value, ops: set[Op], scores: Op) -> tuple[Value, float]:
    """One side of the product before it is multiplied by a number."""
    scale = 1.0
    while (op := value.op) is not None and op.graph is scores.graph:
        found = scaled_by(op)
        if found is None or not value.single_use:
            break
        ops.add(op)
        value, factor = found
        scale *= factor
    return value, scale


def _appended(value: Value, ops: set[Op]) -> Op | None:
    """The Concat that appends to a cache, looking through what repeats its heads."""
    heads = None
    for repeat in repeats(value):
        ops.add(repeat)
        value = repeat.operand
        wide = shape_of(value)
        heads = wide[1] if len(wide) == 5 and heads is None else heads
    op = value.op
    shape = shape_of(value)
    if op is None or not op.is_a("Concat") or len(op.operands) != 2 or len(shape) != 4:
        return None
    if int(op.attrs.get("axis", 0)) % 4 != 2:
        return None
    # What the model states of an input holds for both, also where inference cannot prove it of the new steps.
    if heads is not None and heads not in {shape_of(v)[1] for v in op.operands if len(shape_of(v)) == 4}:
        return None
    ops.add(op)
    return op


def repeats(value: Value) -> Iterator[Op]:
    """The ops that give each key/value head to several query heads, from the last on: none where they do not.

    That is [batch, heads, rows, width] to [batch, heads, 1, ...], that spread along the new axis, and both merged.
    """
    merge = value.op
    whole = shape_of(value)
    if merge is None or len(whole) != 4:
        return
    if merge.is_a("Gather"):
        index = ints(merge.operands[1].tensor)
        heads = shape_of(merge.operand)[1:2]
        count = heads[0] if heads else None
        if int(merge.attrs.get("axis", 0)) % 4 == 1 and index and isinstance(count, int) and len(index) % count == 0:
            if index == tuple(np.repeat(np.arange(count), len(index) // count).tolist()):
                yield merge
        return
    if not merge.is_a("Reshape"):
        return
    spread = merge.operand.op
    wide = shape_of(merge.operand)
    if spread is None or len(wide) != 5 or not _merges(wide, whole):
        return
    narrow = shape_of(spread.operand)
    copies = spread.is_a("Expand", "Tile") or (
        spread.is_a("Concat") and len(set(spread.operands)) == 1 and int(spread.attrs.get("axis", 0)) % 5 == 2
    )
    if not copies or len(narrow) != 5 or narrow[2] != 1 or not _alike(narrow, wide, but=(1, 2)):
        return
    split = spread.operand.op
    if split is None or not split.is_a("Unsqueeze", "Reshape"):
        return
    base = shape_of(split.operand)
    if len(base) == 4 and _alike((*base[:2], 1, *base[2:]), narrow, but=(1,)):
        yield from (merge, spread, split)


def _merges(wide: tuple[Dim, ...], whole: tuple[Dim, ...]) -> bool:
    if not isinstance(wide[1], int) or not isinstance(wide[2], int) or whole[1] != wide[1] * wide[2]:
        return False
    return _alike((wide[0], *wide[3:]), (whole[0], *whole[2:]))


def _alike(a: tuple[Dim, ...], b: tuple[Dim, ...], but: tuple[int, ...] = ()) -> bool:
    return len(a) == len(b) and all(i in but or same(x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)))


def agreeing(c: Cached) -> Iterator[tuple[Value, int, str]]:
    """Extents that the operator needs equal to those of the queries, or of the past: value, axis, and which of them."""
    query, past = shape_of(c.query), shape_of(c.past[0])
    known = {"batch": query[0], "steps": query[2], "past": past[2]}
    wanted = [(c.keys, 0, "batch"), (c.values, 0, "batch"), (c.past[0], 0, "batch"), (c.past[1], 0, "batch"),
              (c.keys, 2, "steps"), (c.values, 2, "steps"), (c.past[1], 2, "past")]  # fmt: skip
    for value, axis, name in wanted:
        if not same(shape_of(value)[axis], known[name]):
            yield value, axis, name


_WHOLE = 8
"""The operator's heads are a multiple of this wide."""


def _fits(c: Cached) -> bool:
    """True if types and shapes are what the operator takes."""
    values = (c.query, c.keys, c.values, *c.past)
    for value in values:
        if value.dtype != DType.FLOAT or len(shape_of(value)) != 4:
            return False
    q, k, v, pk, pv = (shape_of(x) for x in values)
    inner = (q[1], q[3], k[1], k[3], v[1], v[3], pk[1], pk[3], pv[1], pv[3])
    if not all(isinstance(x, int) and x > 0 for x in inner):
        return False
    if (
        len({q[3], k[3], v[3], pk[3], pv[3]}) != 1
        or len({k[1], v[1], pk[1], pv[1]}) != 1
        or _number(q[1]) % _number(k[1])
    ):
        return False
    return bool(c.masks) and c.width % _WHOLE == 0


def _number(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
