"""Products with constant weights, and the same with other weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.types import DType
from memoptc.passes.fuse._fuse.core import shape_of

Array = npt.NDArray[np.float32]
_MOVES = ("Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose")


@dataclass(frozen=True)
class Projection:
    """x W + c, as MatMul and Add.

    Args:
        operand: x.
        weight: W, constant, of two axes.
        offset: c, constant, of one axis; `None` when nothing is added.
        ops: The ops that compute it.
    """

    operand: Value
    weight: Value
    offset: Value | None
    ops: tuple[Op, ...]

    def columns(self) -> tuple[Array, Array]:
        """The weights, and what is added to each column."""
        assert self.weight.tensor is not None
        w = np.asarray(self.weight.tensor.numpy(), np.float32)
        c = np.zeros(w.shape[1], np.float32)
        if self.offset is not None and self.offset.tensor is not None:
            c = np.broadcast_to(np.asarray(self.offset.tensor.numpy(), np.float32).reshape(-1), c.shape)
        return w, c

    def remade(self, b: Builder, w: Array, c: Array) -> Value:
        """The same with other weights."""
        made = b.MatMul(self.operand, b.const(np.ascontiguousarray(w), self.weight.name))
        if self.offset is None and not c.any():
            return made  # type: ignore[no-any-return]
        name = self.offset.name if self.offset is not None else f"{self.weight.name}_bias"
        return b.Add(made, b.const(np.ascontiguousarray(c), name))  # type: ignore[no-any-return]


def projection(value: Value) -> Projection | None:
    """The product with constant weights that a value is; `None` when it is something else, or they have other users."""
    op, offset, ops = value.op, None, []
    if op is not None and op.is_a("Add"):
        for place in (0, 1):
            c, other = op.operands[place], op.operands[1 - place]
            if c.tensor is not None and c.tensor.size in (1, _last(value)) and _last(c) in (1, c.tensor.size):
                ops, offset, op = [op], c, other.op
                if not other.single_use or len(shape_of(c)) > 1:
                    return None
                break
    if op is None or not op.is_a("MatMul") or op.graph is not value.graph:
        return None
    x, w = op.operands
    held = w.tensor
    if held is None or len(tuple(held.shape)) != 2 or DType(held.dtype) != DType.FLOAT or not w.single_use:
        return None
    if offset is not None and offset.tensor is not None and offset.tensor.size not in (1, held.shape.numpy()[1]):
        return None  # a product of one column, spread over what is added
    return Projection(x, w, offset, (op, *ops)) if len(shape_of(x)) == 3 else None


def _last(value: Value) -> int:
    shape = shape_of(value)
    return shape[-1] if shape and isinstance(shape[-1], int) else 1


def only_for(whole: Value, ops: frozenset[Op]) -> bool:
    """True if all that becomes of a value is moved and taken apart, for some ops only."""
    todo, seen = [whole], set(ops)
    while todo:
        for user in todo.pop().users:
            if user in seen:
                continue
            if user.graph is not whole.graph or not user.is_a(*_MOVES):
                return False
            seen.add(user)
            todo.extend(user.results)
    return True
