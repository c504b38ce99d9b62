"""Rotary embedding as exporters write it: what is turned, by which angles, in halves or in pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from memoptc.ir.core import Op, Value
from memoptc.ir.dataflow import on_demand
from memoptc.ir.dims import same
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType
from memoptc.passes.fuse._fuse.core import shape_of

_FAR = 2**31 - 1
_ALONE = frozenset("Cos Sin Cast Neg Identity Sqrt Exp".split())
_TOGETHER = frozenset("Mul Add Sub Div".split())

Known = dict[tuple[Value, bool], bool]
"""Values whose halves, or pairs, were compared before."""


@dataclass(frozen=True)
class Rotary:
    """x * cos + turned(x) * sin, where `turned` swaps halves, or the two of each pair, and negates the first.

    Args:
        x: What is turned: [batch, heads, steps, width].
        cos: Cosines for each element of what is turned, the same for both of two that belong together.
        sin: Sines, alike.
        pairs: Whether neighbours belong together, not halves.
        turned: How many elements of each head are turned, from the first on.
        ops: The ops that compute it.
    """

    x: Value
    cos: Value
    sin: Value
    pairs: bool
    turned: int
    ops: frozenset[Op]


def rotary(op: Op, known: Known) -> Rotary | None:
    """Find the rotary embedding that an op is the last of: a sum, or a Concat with what is not turned.

    Args:
        op: The sum or Concat.
        known: What was learnt of angles before; gets that of all that are looked at.
    """
    if op.is_a("Add"):
        return _sum(op, known)
    shape = shape_of(op.result)
    if not op.is_a("Concat") or len(op.operands) != 2 or int(op.attrs.get("axis", 0)) not in (-1, len(shape) - 1):
        return None
    first, rest = (v.op for v in op.operands)
    part = _sum(first, known) if first is not None and first.is_a("Add") and first.result.single_use else None
    if part is None or rest is None or part.x.op is None or part.turned != shape_of(part.x)[-1]:
        return None
    cuts = [(_cut(part.x), part.x), (_cut(op.operands[1]), op.operands[1])]
    if any(cut is None for cut, _ in cuts):
        return None
    (whole, start, end), (other, after, last) = (cut for cut, _ in cuts if cut is not None)
    width = shape_of(whole)[-1]
    if shape_of(whole)[1:2] != shape_of(part.x)[1:2]:
        return None
    if whole is not other or not isinstance(width, int) or start != 0 or end != after or last != width:
        return None
    assert first is not None
    return replace(part, x=whole, turned=end, ops=part.ops | {op, rest, part.x.op})


def _sum(op: Op, known: Known) -> Rotary | None:
    shape = shape_of(op.result)
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int) or shape[3] % 2:
        return None  # the operator is told how many heads there are
    if op.result.dtype != DType.FLOAT:
        return None
    for plain, other in ((0, 1), (1, 0)):
        straight, swapped = op.operands[plain].op, op.operands[other].op
        if straight is None or swapped is None or not straight.is_a("Mul") or not swapped.is_a("Mul"):
            continue
        for at in (0, 1):
            turned = _swapped(swapped.operands[at], shape[3])
            if turned is None:
                continue
            x, pairs, ops = turned
            if x not in straight.operands or shape_of(x) != shape:
                continue
            cos, sin = straight.operands[1 - straight.operands.index(x)], swapped.operands[1 - at]
            angles = [_per_step(v, x) and repeated(v, pairs, known) for v in (cos, sin)]
            inner = [straight.result, swapped.result, *(r for o in ops - {x.op} for r in o.results)]
            alike = shape_of(cos) == shape_of(sin) and None not in shape_of(cos)
            if alike and all(angles) and all(u in ops | {straight, swapped, op} for v in inner for u in v.users):
                return Rotary(x, cos, sin, pairs, shape[3], frozenset({op, straight, swapped, *ops}))
    return None


def _per_step(value: Value, x: Value) -> bool:
    """True if a value is [batch or 1, 1, steps, width] of what is turned, or the last axes of that.

    One row for all steps would be broadcast; a table that positions look up needs a row for each.
    """
    shape, whole = (1,) * (4 - len(shape_of(value))) + shape_of(value), shape_of(x)
    if not shape_of(value) or len(shape) != 4 or shape[1] != 1 or shape[3] != whole[3]:
        return False
    return same(shape[2], whole[2]) and (shape[0] == 1 or same(shape[0], whole[0]))


def _swapped(value: Value, width: int) -> tuple[Value, bool, set[Op]] | None:
    """Match a value with its halves, or pairs, swapped and the first negated; give the value."""
    op = value.op
    if op is None:
        return None
    if op.is_a("Concat") and len(op.operands) == 2 and int(op.attrs.get("axis", 0)) in (-1, 3):
        negated, first = op.operands
        if negated.op is None or not negated.op.is_a("Neg"):
            return None
        second = negated.op.operand
        cuts = _cut(first), _cut(second)
        if cuts[0] is None or cuts[1] is None or cuts[0][0] is not cuts[1][0]:
            return None
        half = width // 2
        if cuts[0][1:] != (0, half) or cuts[1][1:] != (half, width):
            return None
        assert first.op is not None
        assert second.op is not None
        return cuts[0][0], False, {op, negated.op, first.op, second.op}
    if op.is_a("Reshape") and len(shape_of(op.operand)) == 5:
        return _pairs_swapped(op, width)
    return None


def _pairs_swapped(op: Op, width: int) -> tuple[Value, bool, set[Op]] | None:
    """As `_swapped`, of neighbours: every second element negated, stacked behind the others, and flattened again."""
    stack = op.operand.op
    if stack is None or not stack.is_a("Concat") or len(stack.operands) != 2:
        return None
    if int(stack.attrs.get("axis", 0)) not in (-1, 4) or shape_of(stack.result)[3:] != (width // 2, 2):
        return None
    sides = [v.op for v in stack.operands]
    if any(s is None or not s.is_a("Unsqueeze", "Reshape") for s in sides):
        return None
    negated, even = (s.operand for s in sides if s is not None)
    if negated.op is None or not negated.op.is_a("Neg"):
        return None
    odd = negated.op.operand
    found = _every_second(even), _every_second(odd)
    if found[0] is None or found[1] is None or found[0][0] is not found[1][0] or (found[0][1], found[1][1]) != (0, 1):
        return None
    ops = {op, stack, negated.op, *(s for s in sides if s is not None)}
    return found[0][0], True, ops | {v.op for v in (even, odd) if v.op is not None}


def _cut(value: Value) -> tuple[Value, int, int] | None:
    """The tensor, start and end that a value is cut out of along its last axis."""
    op = value.op
    if op is None:
        return None
    whole = shape_of(op.operand) if op.operands else ()
    if not whole or not isinstance(whole[-1], int):
        return None
    if op.is_a("Split") and int(op.attrs.get("axis", 0)) in (-1, len(whole) - 1):
        widths = [shape_of(r)[-1] if shape_of(r) else None for r in op.results]
        if all(isinstance(w, int) for w in widths):
            start = sum(w for w in widths[: value.index] if isinstance(w, int))
            own = widths[value.index]
            return (op.operand, start, start + own) if isinstance(own, int) else None
        return None
    bounds = _sliced(op, len(whole))
    if bounds is None or bounds[2] != 1:
        return None
    start, end, _ = bounds
    width = whole[-1]
    start, end = (n + width if n < 0 else n for n in (start, end))
    return (op.operand, min(start, width), min(end, width)) if start >= 0 and end >= 0 else None


def _every_second(value: Value) -> tuple[Value, int] | None:
    """The tensor of which a value is every second element of the last axis, and the first of those."""
    op = value.op
    whole = shape_of(op.operand) if op is not None and op.operands else ()
    bounds = _sliced(op, len(whole)) if op is not None and whole else None
    width = whole[-1] if whole else None
    if op is None or bounds is None or not isinstance(width, int):
        return None
    start, end, step = bounds
    return (op.operand, start) if step == 2 and start in (0, 1) and end >= width - 1 + start else None


def _sliced(op: Op, rank: int) -> tuple[int, int, int] | None:
    """Start, end and step of a Slice along the last axis alone."""
    if not op.is_a("Slice") or len(op.operands) < 3:
        return None
    given = [ints(v.tensor) if v is not None else None for v in (op.input(i) for i in (1, 2, 3, 4))]
    starts, ends, axes, steps = given
    if starts is None or ends is None or axes is None or len(starts) != 1 or axes[0] not in (-1, rank - 1):
        return None
    if op.input(4) is not None and steps is None:
        return None
    return starts[0], min(ends[0], _FAR), steps[0] if steps else 1


def repeated(value: Value, pairs: bool, known: Known) -> bool:
    """True if both halves of the last axis are known to be equal, or with `pairs` both of each pair.

    Args:
        value: The value.
        pairs: Whether neighbours are compared, not halves.
        known: What was learnt before; gets that of all that are looked at.
    """
    return on_demand((value, pairs), _sources, _repeated, known)


def _sources(key: tuple[Value, bool]) -> list[tuple[Value, bool]]:
    """Operands, all of which must be repeated for a value to be."""
    value, pairs = key
    op, shape = value.op, shape_of(value)
    if op is None or op.domain or not shape or value.tensor is not None:
        return []
    if op.op_type in _TOGETHER:
        return [(v, pairs) for v in op.operands if not _one_column(v)]
    return [(op.operands[0], pairs)] if op.op_type in _ALONE or _keeps_last_axis(op) else []


def _repeated(key: tuple[Value, bool], known: Known) -> bool:
    value, pairs = key
    op, shape = value.op, shape_of(value)
    if not shape:
        return False
    if value.tensor is not None:
        array = np.asarray(value.tensor.numpy())
        half = array.shape[-1] // 2
        if array.shape[-1] % 2 or not array.size:
            return False
        first, second = (array[..., i::2] if pairs else array[..., i * half : (i + 1) * half] for i in (0, 1))
        return np.array_equal(first, second)
    if op is None or op.domain:
        return False
    if op.is_a("Concat"):
        return not pairs and _twice(op)
    if op.is_a("Reshape") and pairs and (stack := op.operand.op) is not None and stack.is_a("Concat"):
        before, width = shape_of(stack.result), shape[-1]
        merged = len(before) == len(shape) + 1 and before[-1] == 2 and isinstance(width, int) and width % 2 == 0
        return merged and _twice(stack)
    sources = _sources(key)
    wide = op.op_type not in _TOGETHER or any(shape_of(v)[-1:] == shape[-1:] for v, _ in sources)
    return bool(sources) and wide and all(known[s] for s in sources)


def _one_column(value: Value) -> bool:
    """True if a value is a scalar or has a last axis of 1, the same for every column beside it."""
    return value.shape is not None and shape_of(value)[-1:] in ((1,), ())


def _twice(concat: Op) -> bool:
    """True if a Concat puts a value behind itself along the last axis."""
    rank = len(shape_of(concat.result))
    equal = len(concat.operands) == 2 and concat.operands[0] is concat.operands[1]
    return equal and rank > 0 and int(concat.attrs.get("axis", 1)) % rank == rank - 1


def _keeps_last_axis(op: Op) -> bool:
    """True if an op moves or repeats elements of its first operand along other axes than the last."""
    before = shape_of(op.operands[0]) if op.operands else ()
    shape = shape_of(op.results[0])
    if not before or before[-1:] != shape[-1:]:
        return False
    last = len(before) - 1
    match op.op_type:
        case "Unsqueeze" | "Squeeze":
            axes = op.attrs.get("axes") or (ints(op.operands[1].tensor) if len(op.operands) > 1 else None)
            rank = max(len(before), len(shape))
            return bool(axes) and rank - 1 not in {a % rank for a in axes or ()}
        case "Gather":
            return int(op.attrs.get("axis", 0)) % len(before) != last
        case "Slice":
            axes = ints(op.operands[3].tensor) if op.input(3) is not None else None
            return axes is not None and last not in {a % len(before) for a in axes}
        case _:
            return op.op_type == "Expand"
