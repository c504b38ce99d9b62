"""Attention as exporters write it: which ops compute it, of what, under which mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.ops import opset_of
from memoptc.ir.tensors import scalar
from memoptc.ir.types import DType
from memoptc.passes.fuse._fuse.bounds import Known, bounds

LOWEST = float(np.finfo(np.float32).min)
HIDES = -1e5
"""What a mask puts in place of a score must be at most this to count as hiding it: no score comes near."""


@dataclass(frozen=True)
class Mask:
    """Mask that is added to all scores of a key.

    Args:
        value: Numbers to add, or whether a key is hidden (`hidden` says which of the two).
        hidden: `None` for numbers; else what the condition is where a key is hidden.
        overflows: Whether numbers may become infinite where an input is not what it is meant to be.
    """

    value: Value
    hidden: bool | None = None
    overflows: bool = False


@dataclass(frozen=True)
class AttentionMatch:
    """Softmax(Q K^T * scale + mask) V, with heads outside: [batch, heads, rows, width].

    Args:
        query: Q, not scaled.
        keys: K^T, not scaled: [batch, heads, width, keys].
        values: V.
        scale: Of the scores.
        mask: What hides keys, if anything does.
        ops: The ops that compute it, from the product of Q and K on.
        scalings: The ops before them that scale Q or K.
    """

    query: Value
    keys: Value
    values: Value
    scale: float
    mask: Mask | None
    ops: tuple[Op, ...]
    scalings: tuple[Op, ...] = ()

    @property
    def inner(self) -> frozenset[Op]:
        """All ops that nothing else needs."""
        return frozenset((*self.ops, *self.scalings))

    @property
    def result(self) -> Value:
        """Result of the attention: [batch, heads, rows, width of V]."""
        return self.ops[-1].result

    @property
    def heads(self) -> int:
        """Number of heads."""
        return int(shape_of(self.query)[1])  # type: ignore[arg-type]


def shape_of(value: Value) -> tuple[Dim, ...]:
    """A value's shape; () when it is not known."""
    return value.shape or ()


def attention(softmax: Op, known: Known | None = None) -> AttentionMatch | None:
    """Find the attention that a Softmax is the middle of; `None` where it is something else.

    Args:
        softmax: The Softmax.
        known: Bounds of values computed before, which masks share.
    """
    middle = product_of(softmax)
    if middle is None:
        return None
    product, guards = middle
    ops = [softmax, *guards, product]
    scale, mask, value = 1.0, None, softmax.operand
    while not (value.op is not None and value.op.is_a("MatMul")):
        op = value.op
        if op is None or op.graph is not softmax.graph or not value.single_use:
            return None
        found = scaled_by(op)
        if found is not None:
            value, factor = found
            scale *= factor
        elif mask is None and scale == 1.0:
            masked = _masked(op, known)
            if masked is None:
                return None
            value, mask = masked
        else:
            return None
        ops.insert(0, op)
    scores = value.op
    if not value.single_use or scores.graph is not softmax.graph:
        return None
    ops.insert(0, scores)
    sides, scalings = list(scores.operands), []
    for place in (0, 1):
        while (op := sides[place].op) is not None and sides[place].single_use and op.graph is softmax.graph:
            found = scaled_by(op)
            if found is None:
                break
            sides[place], factor = found
            scale *= factor
            scalings.append(op)
    core = AttentionMatch(sides[0], sides[1], product.operands[1], scale, mask, tuple(ops), tuple(scalings))
    return core if _fits(core, value) else None


def product_of(softmax: Op) -> tuple[Op, tuple[Op, ...]] | None:
    """Give the product that an attention's Softmax over keys weighs values in, and the ops between the two."""
    recent = softmax.graph is None or (opset_of(softmax.graph) or 13) >= 13
    axis = int(softmax.attrs.get("axis", -1 if recent else 1))
    weights, guards = _weights_of(softmax)
    if len(shape_of(softmax.result)) != 4 or axis not in (3, -1) or not weights.single_use:
        return None
    product, index = weights.uses[0]
    if not product.is_a("MatMul") or index != 0 or product.graph is not softmax.graph:
        return None
    return product, guards


def _weights_of(softmax: Op) -> tuple[Value, tuple[Op, ...]]:
    """The weights that a Softmax gives, and the ops behind it that put 0 in place of a NaN.

    PyTorch's exporters write Where(IsNaN(p), 0, p) around it, for rows all of whose keys are hidden by an infinity.
    Where a mask may be infinite, nothing is fused, or such rows keep the original; but where queries or keys hold NaN,
    a row that was 0 becomes NaN.
    """
    users = {user.op_type: user for user in softmax.result.users if user.graph is softmax.graph and not user.domain}
    test, choice = users.get("IsNaN"), users.get("Where")
    if test is None or choice is None or len(softmax.result.uses) != 2 or not test.result.single_use:
        return softmax.result, ()
    zero = scalar(choice.operands[1].tensor)
    guarded = choice.operands[0] is test.result and choice.operands[2] is softmax.result and zero == 0
    return (choice.result, (test, choice)) if guarded else (softmax.result, ())


def scaled_by(op: Op) -> tuple[Value, float] | None:
    """The value that an op multiplies by a number, and that number."""
    if op.domain or op.op_type not in ("Mul", "Div") or "axis" in op.attrs:
        return None
    for place in (0,) if op.op_type == "Div" else (0, 1):
        value, other = op.operands[place], op.operands[1 - place]
        factor = scalar(other.tensor)
        if factor is None or value.tensor is not None or len(shape_of(other)) > len(shape_of(value)):
            continue
        number = float(factor) if op.op_type == "Mul" else 1.0 / float(factor) if factor else 0.0
        return (value, number) if np.isfinite(number) and number else None
    return None


def _masked(op: Op, known: Known | None) -> tuple[Value, Mask] | None:
    """The scores that an op masks, and how."""
    if op.is_a("Add"):
        for place in (0, 1):
            scores, added = op.operands[place], op.operands[1 - place]
            if _of_keys(added, scores):
                found = bounds(added, known)
                if found is not None:
                    return scores, Mask(added, overflows=found[0] < LOWEST or found[1] > -LOWEST)
    if op.is_a("Where"):
        for place in (1, 2):
            scores, other = op.operands[place], op.operands[3 - place]
            number = scalar(other.tensor)
            if number is not None and LOWEST <= number <= HIDES and _of_keys(op.operands[0], scores):
                return scores, Mask(op.operands[0], hidden=place == 2)
    return None


def _of_keys(mask: Value, scores: Value) -> bool:
    """True if a mask is the same for all heads and rows."""
    shape, whole = shape_of(mask), shape_of(scores)
    if not shape or len(whole) != 4 or len(shape) > 4:
        return False
    batch, *others, keys = (1,) * (4 - len(shape)) + shape
    return others == [1, 1] and same(keys, whole[3]) and (batch == 1 or same(batch, whole[0]))


def _fits(core: AttentionMatch, scores: Value) -> bool:
    """True if types and shapes are what the operator takes."""
    for value in (core.query, core.keys, core.values):
        if value.dtype != DType.FLOAT:
            return False
    q, k, v, s = (shape_of(x) for x in (core.query, core.keys, core.values, scores))
    if not all(len(x) == 4 for x in (q, k, v, s)):
        return False
    heads = [x[1] for x in (q, k, v)]
    batches = [x[0] for x in (q, k, v)]
    widths = [q[3], k[2], v[3]]
    known = all(isinstance(x, int) and x > 0 for x in (*heads, *widths))
    return known and len(set(heads)) == 1 and all(same(b, q[0]) for b in batches) and widths[0] == widths[1]
