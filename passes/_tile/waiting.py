"""Pieces that wait for each other in every order that onnxruntime chooses.

Its default order follows a node's operands from the last in the file on. Where pieces are added up one after the other,
it would compute all of them before it adds any; where a region has several ends, all pieces of one before any of the
next, while what both need waits. So what a piece begins with takes a view of its operand whose shape is
put together from constants and from nothing: an empty part of what the piece before it gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from memoptc.passes._tile.emit import Emitter


class Waiting:
    """What the ops that a piece begins with wait for.

    Args:
        emitter: Makes ops.
        results: What the pieces so far gave, of each end of the region.
    """

    def __init__(self, emitter: Emitter, results: Iterable[Value]) -> None:
        self.emitter = emitter
        recent = (ops.opset_of(emitter.graph) or 13) >= 10
        self.nothing = [self._nothing(v) for v in results] if recent else []
        self.views: dict[Value, Value] = {}

    def _nothing(self, value: Value) -> Value:
        """A vector of no integers."""
        made, ints = self.emitter.made, self.emitter.ints
        shape = value.type.shape if isinstance(value.type, TensorType) else None
        whole = isinstance(value.type, TensorType) and value.type.dtype == DType.INT64
        if shape == ():
            value = made("Reshape", [value, ints([1])])
        empty = made("Slice", [value, *(ints([0]) for _ in range(3))])
        if not whole:
            empty = made("Cast", [empty], {"to": int(DType.INT64)})
        if shape is not None and len(shape) < 2:
            return empty
        return made("Reshape", [empty, ints([0])], type=TensorType(DType.INT64, (0,)))

    def after(self, op: Op, operands: Sequence[Value]) -> list[Value]:
        """Give an op's operands, one of them so that it waits: what is not a constant."""
        found = list(operands)
        for place, (old, new) in enumerate(zip(op.operands, operands, strict=True)):
            rank = len(new.type.shape or ()) if isinstance(new.type, TensorType) else 0
            if self.nothing and rank and old.tensor is None and not old.is_absent:
                if new not in self.views:
                    shape = self.emitter.made("Concat", [self.emitter.ints([0] * rank), *self.nothing], {"axis": 0})
                    self.views[new] = self.emitter.made("Reshape", [new, shape], type=new.type)
                found[place] = self.views[new]
                break
        return found
