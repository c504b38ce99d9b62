"""Control dependences between tiles: one tile runs after another in every order that onnxruntime chooses.

Its default order follows a node's operands from the last in the file on. Where tiles are added up one after the other,
it would compute all of them before it adds any; where a region has several ends, all tiles of one before any of the
next, while shared operands stay alive. So a tile's first op reads a Reshape of its operand whose target shape
contains an empty slice of the previous tile's result: a data dependence of zero bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memoptc.ir import ops
from memoptc.ir.core import Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.passes.memory._tile.building import TileBuilder


class ControlDependence:
    """Makes the first ops of a tile depend on the results of the tile before it.

    Args:
        emitter: Makes ops.
        results: The latest result of the previous tiles, one for each output of the region.
    """

    def __init__(self, emitter: TileBuilder, results: Iterable[Value]) -> None:
        self.emitter = emitter
        recent = (ops.opset_of(emitter.graph) or 13) >= 10
        self.empty = [self._empty_slice(v) for v in results] if recent else []
        self.views: dict[Value, Value] = {}

    def _empty_slice(self, value: Value) -> Value:
        """An int64 vector without elements that depends on a value."""
        made, ints = self.emitter.made, self.emitter.ints
        shape = value.shape
        whole = value.dtype == DType.INT64
        if shape == ():
            value = made("Reshape", [value, ints([1])])
        empty = made("Slice", [value, *(ints([0]) for _ in range(3))])
        if not whole:
            empty = made("Cast", [empty], {"to": int(DType.INT64)})
        if shape is not None and len(shape) < 2:
            return empty
        return made("Reshape", [empty, ints([0])], type=TensorType(DType.INT64, (0,)))

    def after(self, op: Op, operands: Sequence[Value]) -> list[Value]:
        """Give an op's operands, the first one that is no constant behind a control dependence."""
        found = list(operands)
        for place, (old, new) in enumerate(zip(op.operands, operands, strict=True)):
            rank = new.rank or 0
            if self.empty and rank and old.tensor is None and not old.is_absent:
                if new not in self.views:
                    shape = self.emitter.made("Concat", [self.emitter.ints([0] * rank), *self.empty], {"axis": 0})
                    self.views[new] = self.emitter.made("Reshape", [new, shape], type=new.type)
                found[place] = self.views[new]
                break
        return found
