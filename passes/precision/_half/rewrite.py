"""The change itself: narrow weights and ops, and one Cast for each value that crosses over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.ops import weight_layout
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._half.choice import Choice
from memoptc.runtime.kernels import gathers_float8

RULE = "to-half"
TABLE_BLOCK = 128
"""Numbers of a row of a float8 table that share a scale."""


@dataclass
class Rewriter:
    """Writes a choice into the graph.

    Args:
        graph: The top graph.
        dtype: The format's element type.
        choice: Ops that will run in the format.
        stats: Counts what was done.
        stored: Weights that have a narrow copy.
        stored_bytes: Bytes of the copies, scales included.
    """

    graph: Graph
    dtype: DType
    choice: Choice
    stats: Counter[str]
    stored: dict[Value, None] = field(default_factory=dict)
    stored_bytes: int = 0
    _narrow: dict[Value, Value] = field(default_factory=dict)

    def ops(self) -> None:
        """Turn the chosen ops; each value that crosses over is cast once."""
        for op, candidate in self.choice.narrow.items():
            for index in candidate.operands:
                op.set_operand(index, self.narrow(op.operands[index], op))
            for result in candidate.results:
                if result.tensor_type is not None:
                    result.type = TensorType(self.dtype, result.shape)
            self.stats[f"narrow {op.op_type}"] += 1
        for candidate in self.choice.narrow.values():
            for result in candidate.results:
                self._widen(result)

    def narrow(self, value: Value, user: Op) -> Value:
        """Give a value in the format: itself, a stored constant, what a Cast to float32 came from, or a Cast."""
        if self.choice.makes(value):
            return value
        if value in self._narrow:
            return self._narrow[value]
        op = value.op
        if value.tensor is not None:
            made = self.store(value)
        elif op is not None and op.is_a("Cast") and _dtype(op.operand) == self.dtype:
            made = op.operand
            self.stats["casts that cancelled"] += 1
        else:
            builder = Builder(self.graph, before=user, loc=user.loc.union(rule=RULE))
            shape = value.shape
            type_ = TensorType(self.dtype, shape)
            made = builder.op("Cast", [value], {"to": int(self.dtype)}, type=type_).result
            self.stats["casts"] += 1
        self._narrow[value] = made
        return made

    def store(self, value: Value) -> Value:
        """Give a constant's content in the format, stored once."""
        if value not in self._narrow:
            if value.tensor is None:
                raise InternalError(f"%{value.name} is no constant")
            content = np.asarray(value.tensor.numpy()).astype(self.dtype.numpy())
            self._narrow[value] = self._const(value, content, self.dtype.name.lower())
        return self._narrow[value]

    def _const(self, value: Value, content: npt.NDArray[np.generic], suffix: str) -> Value:
        """A constant beside a weight."""
        self.stored[value] = None
        self.stored_bytes += content.nbytes
        return Builder(value.graph).const(content, f"{value.name}_{suffix}")

    def _widen(self, result: Value) -> None:
        wide = [(u, i) for u, i in result.uses if not self.choice.takes(u, i)]
        if not wide:
            return
        before = first_user({u for u, _ in wide}, self.graph)
        op = result.op
        assert op is not None
        builder = Builder(self.graph, before=before, loc=op.loc.union(rule=RULE))
        shape = result.shape
        made = builder.op("Cast", [result], {"to": int(DType.FLOAT)}, type=TensorType(DType.FLOAT, shape)).result
        for user, index in wide:
            user.set_operand(index, made)
        if result.is_output or made.is_output:
            made.name, result.name = result.name, made.name
        self.stats["casts"] += 1

    # -- weights --------------------------------------------------------------------------------------

    def decode(self, value: Value) -> None:
        """Store a weight, and cast it back for those that read it in float32."""
        stored, graph = self.store(value), value.graph
        uses = value.uses
        before = first_user({u for u, _ in uses}, graph)
        builder = Builder(graph, before=before, loc=uses[0][0].loc.union(rule=RULE))
        wide = builder.op("Cast", [stored], {"to": int(DType.FLOAT)}, type=value.type).result
        for user, index in uses:
            user.set_operand(index, wide)

    def decode_scaled(self, value: Value, largest: float) -> None:
        """Store a weight in float8 with a scale per channel, and decode it for each reader by itself."""
        axis = channel_axis(value)
        codes, scales = scaled(_content(value), axis, largest, self.dtype)
        operands = [self._const(value, codes, "float8"), self._const(value, scales, "scales")]
        attrs = {} if axis is None else {"axis": axis}
        for user, index in value.uses:
            graph = user.graph
            assert graph is not None
            builder = Builder(graph, before=user, loc=user.loc.union(rule=RULE))
            user.set_operand(index, builder.op("DequantizeLinear", operands, attrs, domain="", type=value.type).result)

    def look_up_scaled(self, value: Value, largest: float) -> None:
        """Store a table in float8 with scales per row and part of it; lookups decode what they give."""
        content = _content(value)
        rows, columns = content.shape
        count = -(-columns // TABLE_BLOCK)
        padded = np.zeros((rows * count, TABLE_BLOCK), np.float32)
        padded.reshape(rows, -1)[:, :columns] = content
        codes, scales = scaled(padded, 0, largest, self.dtype)
        table = np.ascontiguousarray(codes.reshape(rows, -1)[:, :columns])
        parts = [self._const(value, table, "float8"), self._const(value, scales.reshape(rows, count), "scales")]
        attrs = {"gather_axis": 0, "quantize_axis": 1, "block_size": TABLE_BLOCK}
        for op in value.users:
            graph = op.graph
            assert graph is not None
            builder = Builder(graph, before=op, loc=op.loc.union(rule=RULE))
            operands = [parts[0], op.operands[1], parts[1]]
            made = builder.op("GatherBlockQuantized", operands, attrs, domain=ops.MICROSOFT, type=op.result.type).result
            op.replace_by(made)


def is_table(value: Value) -> bool:
    """True if only lookups of rows read a matrix."""
    rank = len(value.tensor.shape) if value.tensor is not None else 0
    return rank == 2 and all(
        u.is_a("Gather") and i == 0 and u.attrs.get("axis", 0) == 0 and u.graph is value.graph for u, i in value.uses
    )


def can_look_up_float8() -> bool:
    """True if this onnxruntime looks rows up in float8."""
    return gathers_float8()


def channel_axis(value: Value) -> int | None:
    """Along which axis a weight's first reader makes its results; `None` when it is no product or convolution."""
    user, index = value.uses[0]
    if index != 1 or value.tensor is None or len(value.tensor.shape) < 2:
        return None
    layout = weight_layout(user) if not user.domain else None
    return None if layout is None else layout.output_axis


def scaled(
    content: npt.NDArray[np.float32], axis: int | None, largest: float, dtype: DType
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
    """Give a weight in float8, and the scales (one per channel, or one) that bring its largest numbers to `largest`."""
    others = None if axis is None else tuple(i for i in range(content.ndim) if i != axis)
    magnitude = np.max(np.abs(content), axis=others, initial=0.0)
    scales = np.asarray(magnitude / largest, np.float32)
    scales = np.where(scales < np.finfo(np.float32).tiny, np.float32(1.0), scales).astype(np.float32)
    spread = scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(content.ndim)])
    codes = np.clip(content / spread, -largest, largest).astype(dtype.numpy())
    return codes, scales


def _content(value: Value) -> npt.NDArray[np.float32]:
    if value.tensor is None:
        raise InternalError(f"%{value.name} is no constant")
    return np.asarray(value.tensor.numpy(), np.float32)


def _dtype(value: Value) -> DType | None:
    return value.dtype


def first_user(users: set[Op], graph: Graph) -> Op | None:
    """Give the first op of a graph that is one of `users`, or has one inside; `None` for its end."""
    for op in graph.ops:
        if op in users or (op.regions and any(inner in users for inner in op.walk())):
            return op
        if op.regions and any(region.terminator in users for inner in op.walk() for region in inner.regions.values()):
            return op
    return None
