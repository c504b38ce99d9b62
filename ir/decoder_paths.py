"""Following a value of a decoder through what hands elements on: forwards to its uses, backwards to its makers."""

from __future__ import annotations

from collections.abc import Iterator

from memoptc.ir.core import Op, Value
from memoptc.ir.dims import Dim, same
from memoptc.ir.facts import Tensor
from memoptc.ir.tensors import ints, scalar
from memoptc.ir.types import DType

HAND_ON = frozenset(
    "Identity Cast CastLike Transpose Unsqueeze Squeeze Reshape Slice Split Gather Expand DequantizeLinear "
    "QuantizeLinear Dropout Flatten Tile".split()
)
"""Operators whose first result holds elements of their first operand."""


SCATTER = ("TensorScatter", "ScatterND", "ScatterElements")


MOST_VALUES = 4096
"""Values that one search looks at: more than any way from an input to what uses it, bounded for any graph."""


def makers(value: Value) -> Iterator[tuple[Op, int]]:
    """The ops, seen from an output through what only hands elements on, that may append."""
    todo, seen = [value], {value}
    while todo and len(seen) < MOST_VALUES:
        value = todo.pop()
        op = value.op
        if op is None:
            continue
        if op.op_type == "If" or _handed_on(op) is not None or _is_stack(op):
            before = _sources(op, value.index)
        else:
            yield op, value.index
            before = []
        todo += [v for v in before if v not in seen]
        seen.update(before)


def _sources(op: Op, index: int) -> list[Value]:
    if op.op_type == "If":
        return [region.outputs[index] for region in op.regions.values() if index < len(region.outputs)]
    handed = _handed_on(op)
    return [op.operands[handed]] if handed is not None else list(op.operands)


def _handed_on(op: Op) -> int | None:
    """Index of the operand whose elements the first result holds; `None` where an op computes others."""
    if op.domain:
        return None
    if op.op_type in HAND_ON or (op.op_type == "Concat" and len(op.operands) == 1):
        return 0
    # what an exporter puts behind Softmax, for rows that hide all keys: Where(IsNaN(x), 0, x)
    guarded = op.op_type == "Where" and op.operands[0].op is not None and op.operands[0].op.is_a("IsNaN")
    return 2 if guarded and op.operands[0].op.operand is op.operands[2] else None  # type: ignore[union-attr]


def _is_stack(op: Op) -> bool:
    """True if a Concat puts several caches side by side, rather than steps behind a past."""
    return op.is_a("Concat") and not any(origins(op.operands[0]))


def origins(value: Value) -> Iterator[tuple[Value, tuple[int | None, ...]]]:
    """The inputs whose elements a value holds, and for each of its axes the input's."""
    shape = shape_of(value)
    todo: list[tuple[Value, tuple[int | None, ...]]] = [(value, tuple(range(len(shape or ()))))]
    seen = {value}
    while todo and len(seen) < MOST_VALUES:
        value, axes = todo.pop()
        op = value.op
        if op is None:
            if value.graph.parent is None:
                yield value, axes
            continue
        if op.op_type == "If":
            before = [(v, axes) for v in _sources(op, value.index)]
        elif (index := _handed_on(op)) is not None:
            before = [(op.operands[index], _before(op, axes) if index == 0 else axes)]
        else:
            continue
        todo += [(v, a) for v, a in before if v not in seen]
        seen.update(v for v, _ in before)


def _before(op: Op, axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Axes of a result as axes of the operand."""
    result, operand = shape_of(op.result), shape_of(op.operands[0])
    if result is None or operand is None:
        return (None,) * len(axes)
    mine = _operand_axes(op, len(operand), operand, result)
    return tuple(None if a is None or a >= len(mine) else mine[a] for a in axes)


def _operand_axes(op: Op, rank: int, operand: tuple[Dim, ...], result: tuple[Dim, ...]) -> list[int | None]:
    """For each axis of a result, that of the first operand."""
    same_axes: list[int | None] = list(range(rank))
    if op.op_type == "Transpose":
        return list(op.attrs.get("perm", tuple(reversed(range(rank)))))
    if op.op_type == "Gather":
        at = op.attrs.get("axis", 0) % max(rank, 1)
        new = len(shape_of(op.operands[1]) or ())
        return [*same_axes[:at], *((None,) * new if new != 1 else (at,)), *same_axes[at + 1 :]]
    given = op.attrs.get("axes") or (ints(constant_of(op.operands[1])) if len(op.operands) > 1 else None)
    if op.op_type == "Unsqueeze" and given is not None:
        named = {int(a) % len(result) for a in given}
        rest = iter(same_axes)
        return [None if i in named else next(rest, None) for i in range(len(result))]
    if op.op_type == "Squeeze" and given:  # an empty list squeezes all
        named = {int(a) % rank for a in given}
        return [i for i in range(rank) if i not in named]
    if op.op_type in ("Reshape", "Flatten", "Expand", "Squeeze", "Unsqueeze"):
        front = 0
        while front < min(rank, len(result)) and same(operand[front], result[front]):
            front += 1
        back = 0
        while back < min(rank, len(result)) - front and same(operand[rank - 1 - back], result[len(result) - 1 - back]):
            back += 1
        middle: list[int | None] = [None] * (len(result) - front - back)
        if op.op_type == "Expand" and len(result) == rank:
            return same_axes
        return [*same_axes[:front], *middle, *same_axes[rank - back :]]
    return same_axes


_SCALED = ("Mul", "Div")


ELEMENTWISE = frozenset(
    "Add Sub Mul Div Where And Or Not Xor Equal Less LessOrEqual Greater GreaterOrEqual Cast Neg Max Min Clip Pow Sqrt "
    "Tanh IsNaN Trilu Concat ReduceSum CumSum ReduceMax ConstantOfShape GatherND".split()
)


def uses_behind(value: Value, scaled: bool = False) -> Iterator[tuple[Op, int]]:
    """Users of a value, looking through ops that only hand elements on (and, if asked for, scale them)."""
    todo, seen = [value], {value}
    while todo and len(seen) < MOST_VALUES:
        for op, index in todo.pop().uses:
            if op.is_return:
                owner = op.graph.parent if op.graph is not None else None
                after = [] if owner is None or index >= len(owner.results) else [owner.results[index]]
            elif index == _handed_on(op):
                after = list(op.results)
                if op.op_type == "Cast":
                    yield op, index
            elif scaled and op.op_type in _SCALED and scalar(constant_of(op.operands[1 - index])) is not None:
                after = [op.result]
            else:
                yield op, index
                continue
            todo += [v for v in after if v not in seen]
            seen.update(after)


def ops_within_reach(value: Value) -> Iterator[Op]:
    """The ops up to which a value is handed on, or computed with element by element."""
    todo, seen = [value], {value}
    while todo and len(seen) < MOST_VALUES:
        for op, index in todo.pop().uses:
            yield op
            if op.is_return:
                owner = op.graph.parent if op.graph is not None else None
                after = [] if owner is None or index >= len(owner.results) else [owner.results[index]]
            elif not op.domain and (op.op_type in ELEMENTWISE or op.op_type in HAND_ON):
                after = list(op.results)
            else:
                continue
            todo += [v for v in after if v not in seen]
            seen.update(after)


NEARBY = 64


def is_state(value: Value) -> bool:
    """True if an input may hold keys or values."""
    shape = shape_of(value)
    return shape is not None and len(shape) >= 3 and dtype_name(value) in _STATES


_STATES = ("float32", "float16", "bfloat16", "float64", "int8", "uint8")


def shape_of(value: Value | None) -> tuple[Dim, ...] | None:
    """The extents of a value, `None` where there is none or its rank is not known."""
    return None if value is None else value.shape


def dtype_name(value: Value) -> str:
    """The element type as numpy calls it; `""` where it is not known."""
    return str(value.dtype.numpy().name) if value.dtype else ""


def constant_of(value: Value) -> Tensor | None:
    """Content of a value that is a weight, or made by a Constant, as TorchScript writes all its numbers."""
    made = value.op is not None and value.op.is_a("Constant")
    held: Tensor | None = value.op.attrs.get("value") if made and value.op is not None else value.tensor
    return held


def is_integer(value: Value) -> bool:
    """True if a value counts, or indexes."""
    return value.dtype in (DType.INT32, DType.INT64)
