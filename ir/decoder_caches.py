"""Caches of a decoder: inputs that the graph appends to or writes into, followed from the outputs back to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.decoder_facts import Form, Part
from memoptc.ir.decoder_paths import (
    ELEMENTWISE,
    HAND_ON,
    NEARBY,
    SCATTER,
    constant_of,
    is_state,
    makers,
    ops_within_reach,
    origins,
    shape_of,
    uses_behind,
)
from memoptc.ir.dims import same

ATTENTION = {
    "com.microsoft::GroupQueryAttention": ((3, 1), (4, 2)),
    "com.microsoft::MultiHeadAttention": ((6, 1), (7, 2)),
    "com.microsoft::DecoderMaskedMultiHeadAttention": ((5, 1), (6, 2)),
    "com.microsoft::Attention": ((4, 1),),
    "Attention": ((4, 1), (5, 2)),
}
"""Attention with a past: operands that are appended to, and the results that give them back."""


@dataclass(frozen=True)
class Appended:
    """An input that the graph appends to, and gives back.

    Args:
        input: The input.
        output: Number of the output, -1 where it is not given back.
        op: The operator that appends.
        operand: Which of its operands is appended to.
        result: Which of its results is the whole.
        axes: For each axis of that operand, the input's axis, `None` where that is not known.
        axis: The operand's axis that grows.
    """

    input: Value
    output: int
    op: Op
    operand: int
    result: int
    axes: tuple[int | None, ...]
    axis: int

    @property
    def input_axis(self) -> int | None:
        """The input's axis that grows."""
        return self.axes[self.axis]

    @property
    def form(self) -> Form:
        """`grown` where the whole is longer than the past; `fixed` for a buffer of the same length."""
        return "fixed" if self.op.is_a(*SCATTER) else "grown"


def appended_inputs(graph: Graph) -> list[Appended]:
    """Give every input of a graph that it appends to and gives back.

    Args:
        graph: A top graph whose types are inferred; ranks are needed, extents help.
    """
    found: list[Appended] = []
    for number, value in enumerate(graph.outputs):
        for op, result in makers(value):
            found += [a for a in _appends(op, result, number) if a not in found]
    return found


def steps_behind(value: Value) -> Value | None:
    """Give the operand that attention takes a cache's new steps from: keys for keys, values for values.

    Args:
        value: A result of any operator; `None` is given for what is no cache that attention gives back.
    """
    op = value.op
    for _, result in ATTENTION.get(op.key, ()) if op is not None else ():
        if op is not None and len(op.results) > result and op.results[result] is value:
            given = op.input(result)
            return op.operand if given is None or given.tensor is not None else given  # packed with the queries
    return None


def _appends(op: Op, result: int, output: int) -> Iterator[Appended]:
    for operand, axis in _grown(op, result):
        for value, axes in origins(op.operands[operand]):
            if is_state(value):
                yield Appended(value, output, op, operand, result, axes, axis)


def _grown(op: Op, result: int) -> Iterator[tuple[int, int]]:
    """The operand that an op appends to to make a result, and its axis that grows."""
    rank = len(shape_of(op.results[result]) or ())
    if op.is_a("Concat") and len(op.operands) == 2 and rank >= 3 and constant_of(op.operands[1]) is None:
        yield 0, op.attrs.get("axis", 0) % rank
    elif op.is_a("TensorScatter"):
        yield 0, op.attrs.get("axis", -2) % max(rank, 1)
    elif op.is_a("ScatterElements", "ScatterND") and rank >= 3:
        yield 0, _scattered_axis(op, rank)
    for operand, given in ATTENTION.get(op.key, ()):
        if given == result and op.input(operand) is not None:
            yield operand, 3 if op.key == "com.microsoft::Attention" else 2


def _scattered_axis(op: Op, rank: int) -> int:
    """The axis that a scatter writes steps along: that of the updates which is not as long as the buffer's."""
    if op.is_a("ScatterElements"):
        return int(op.attrs.get("axis", 0)) % rank
    data, new = shape_of(op.operands[0]) or (), shape_of(op.operands[2]) or ()
    if len(data) == len(new):
        differing = [i for i, (a, b) in enumerate(zip(data, new, strict=True)) if i and not same(a, b)]
        if len(differing) == 1:
            return differing[0]
    return rank - 2


def attentions(graph: Graph) -> dict[Op, bool]:
    """Every Softmax that weighs values, and whether those are values that steps are appended to."""
    found: dict[Op, bool] = {}
    for softmax in graph.walk("Softmax"):
        for op, index in uses_behind(softmax.result):
            if op.op_type in ("MatMul", "Einsum") and len(op.operands) == 2:
                found[softmax] = _leads_back(op.operands[1 - index])
    return found


def queries_of(softmax: Op) -> Iterator[Value]:
    """The queries whose products with keys are the scores, as far as they can be found: past scales and masks."""
    todo, seen = [softmax.operand], {softmax.operand}
    while todo and len(seen) < NEARBY:
        op = todo.pop().op
        if op is not None and op.is_a("MatMul"):
            yield op.operand
        elif op is not None and not op.domain and (op.op_type in ELEMENTWISE or op.op_type in HAND_ON):
            todo += [v for v in op.operands if v not in seen]
            seen.update(op.operands)


def _leads_back(value: Value) -> bool:
    """True if a value holds elements of what is appended to, or is a product of that with weights."""
    for op, result in makers(value):
        if list(_grown(op, result)):
            return True
        if op.is_a("MatMul") and constant_of(op.operands[1]) is not None:
            if any(list(_grown(o, r)) for o, r in makers(op.operands[0])):
                return True
    return False


def part_of(one: Appended) -> Part | None:
    """The part of attention that a cache holds, as far as its uses say."""
    if one.op.key in ATTENTION:
        if one.op.is_a("com.microsoft::Attention"):
            return "both"
        return "key" if one.operand == ATTENTION[one.op.key][0][0] else "value"
    whole = one.op.results[one.result]
    return part_handed_over(whole) or _part_put_together(whole)


def part_handed_over(value: Value) -> Part | None:
    """The part of attention that a value is used as: `key` or `value`."""
    return next((part for op, index in uses_behind(value, scaled=True) if (part := _part_at(op, index))), None)


def _part_at(op: Op, index: int) -> Part | None:
    """The part that an operand of attention is; `None` for any other op."""
    if op.key in ATTENTION and index in (1, 2):
        return "key" if index == 1 else "value"
    if op.op_type in ("MatMul", "Einsum") and len(op.operands) == 2:
        other = op.operands[1 - index]
        if any(o.op_type == "Softmax" for o, _ in makers(other)):
            return "value"
        if any(o.op_type == "Softmax" for o in ops_within_reach(op.result)):
            return "key"
    return None


def _part_put_together(value: Value) -> Part | None:
    """The part of attention that a value is made into: `latent` where a product with weights makes keys or values.

    Multi-head latent attention (DeepSeek-V2, 2024) keeps what all heads' keys and values are computed from, and beside
    it the rotary part of the keys, one for all heads.
    """
    todo, projected = [value], {value: False}
    while todo and len(projected) < NEARBY:
        value = todo.pop()
        for op, index in value.uses:
            if (part := _part_at(op, index)) is not None:
                return "latent" if projected[value] else part
            weighted = op.is_a("MatMul") and index == 0 and constant_of(op.operands[1]) is not None
            joined = op.is_a("Concat", *SCATTER) or (op.op_type in HAND_ON and index == 0 and not op.domain)
            if joined or (weighted and not projected[value]):
                new = [r for r in op.results if r not in projected]
                projected.update(dict.fromkeys(new, projected[value] or weighted))
                todo += new
    return None


def heads_of(one: Appended) -> tuple[int, int]:
    """Key/value heads and their width; 0 where they are not known."""
    shape = shape_of(one.op.operands[one.operand]) or ()
    if len(shape) < 3:
        return 0, 0
    if one.op.is_a("com.microsoft::Attention"):
        shape = shape[1:]
        grown = 2
    else:
        grown = one.axis
    rest = [d for i, d in enumerate(shape) if i not in (0, grown)]
    if rest and not isinstance(rest[-1], int):
        rest[-1] = _width_of_result(one.op)
    if not rest or not all(isinstance(d, int) for d in rest):
        return 0, 0
    numbers = [int(d) for d in rest if isinstance(d, int)]
    return int(np.prod(numbers[:-1], dtype=np.int64)), numbers[-1]


def _width_of_result(op: Op) -> int | None:
    """Width of a head as an attention operator's attributes and result tell it, where the cache's own is open.

    onnxruntime-genai leaves it open, as caches in 4 bits have half of it.
    """
    heads, shape = op.attrs.get("num_heads"), shape_of(op.results[0])
    floats = op.results[1].dtype == op.results[0].dtype if len(op.results) > 1 else False
    whole = shape[-1] if shape else None
    if op.key not in ATTENTION or not floats or not isinstance(heads, int) or not isinstance(whole, int):
        return None
    return whole // heads
