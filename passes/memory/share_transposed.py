"""share-transposed: keep one copy of a weight that is read in both orientations."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.mapped import release, reshaped
from memoptc.ir.tensors import nbytes, tensor_type
from memoptc.ir.types import DType
from memoptc.pass_base import Context, Pass

_ROWS = 256
"""Rows that are compared at once."""
_FEW = 16
"""Elements of a row or column that tell matrices apart."""


class ShareTransposed(Pass):
    """Store a weight once that is there in both orientations, and let products read its transpose.

    Tied embeddings come in two forms: the product reads `Transpose(w)`, or a weight of its own with the same numbers.
    Both become the first. A session that packs weights transposes `w` while loading, packs that, and gives the copy
    back, so that nothing but the rows that are looked up stays of `w`. One that leaves them unpacked is told by the
    contract to fold no constants: then onnxruntime reads `w` where it is mapped, by `FusedMatMul(x, w, transB=1)`.

    Where onnxruntime's optimizer has run already (freeze-runtime), nothing would fold the Transpose: the products
    become FusedMatMul here, whose kernel packs the same layout from `w` itself. The bits are the same in these forms.

    A large table whose rows are looked up, too, is read by its products where it lies: with a leading axis of one
    extent onnxruntime packs no copy of it, which would be as large as the table. Such a product lays out the table
    piece by piece: for one to 32 rows it takes 1.3 to 1.9 times as long, for 128 rows 1.1 times (SmolLM2-135M's head,
    two cores, onnxruntime 1.32). Sums are added up in another order.

    Only float32 products, the operators that have this kernel.

    Args:
        least: Bytes from which a weight is looked at.
        unpacked: Bytes from which a table whose rows are looked up is read where it lies; `None` for never.
    """

    least: int = 65536
    unpacked: int | None = 1 << 20

    def weaker(self) -> Pass | None:
        """Give the pass that leaves every product to packed weights."""
        return None if self.unpacked is None else replace(self, unpacked=None)

    def run(self, graph: Graph, context: Context) -> None:
        """First pairs of weights, then tables, then, in a frozen graph, the products that read a transpose."""
        corners: dict[_Corner, list[Op]] = defaultdict(list)
        for op in graph.walk("const"):
            if self._is_matrix(op.result):
                corners[_corner(op)].append(op)
        for corner, same in list(corners.items()):
            for const in same:
                if const.graph is None or not _feeds_products(const.result):
                    continue
                twin = _twin(const, corners.get(corner.transposed, []))
                if twin is not None:
                    context.stats["bytes saved"] += nbytes(const.attrs["value"])
                    _replace_by_transpose(const, twin)
        read = [op for op in graph.walk("Transpose") if self._is_read(op)]
        for const in list(graph.walk("const")):
            if (
                self.unpacked is not None
                and self._is_matrix(const.result)
                and nbytes(const.attrs["value"]) >= self.unpacked
            ):
                self._read_in_place(const, read, context.stats)
        read = [op for op in read if op.graph is not None]
        context.artefacts.transposed = bool(read) and not context.artefacts.frozen
        for op in read if context.artefacts.frozen else ():
            self._read_transposed(op.result, op.operand, context.stats)
            op.erase()

    def _is_read(self, op: Op) -> bool:
        """True if products read this transpose of a matrix."""
        return self._is_matrix(op.operand) and op.attrs.get("perm", (1, 0)) == (1, 0) and _feeds_products(op.result)

    def _is_matrix(self, value: Value) -> bool:
        return (
            value.tensor is not None
            and value.dtype == DType.FLOAT
            and value.rank == 2
            and nbytes(value.tensor) >= self.least
        )

    def _read_in_place(self, table: Op, reading: list[Op], stats: Counter[str]) -> None:
        """Give a table a leading axis, if its rows are looked up and nothing else but products reads its transpose."""
        users = list(dict.fromkeys(table.result.users))
        lookups = [op for op in users if _looks_up_rows(op, table.result)]
        transposes = [op for op in users if op in reading]
        products = [op for transpose in transposes for op in transpose.result.users]
        stacked = all((op.operands[0].rank or 0) > 2 for op in products)  # a matrix would come out as a stack
        if not lookups or not products or not stacked or len(lookups) + len(transposes) < len(users):
            return
        weight = table.attrs["value"]
        table.set_attr("value", reshaped(weight, (1, *weight.shape.numpy())))
        table.result.type = tensor_type(table.attrs["value"])
        for op in lookups:
            assert op.graph is not None
            builder = Builder(op.graph, before=op, loc=op.loc.union(rule="share-transposed"))
            rows = builder.op("Gather", op.operands, {"axis": 1}).result
            old = (ops.opset_of(op.graph) or 0) < 13
            made = builder.op("Squeeze", [rows] if old else [rows, np.array([0])], {"axes": [0]} if old else {})
            made.name = op.name
            op.replace_by(made.result)
        for op in transposes:
            self._read_transposed(op.result, table.result, stats)
            op.erase()
        stats["tables"] += 1

    def _read_transposed(self, value: Value, weight: Value, stats: Counter[str]) -> None:
        for op in dict.fromkeys(value.users):
            assert op.graph is not None
            builder = Builder(op.graph, before=op, loc=op.loc.union(rule="share-transposed"))
            made = builder.op(
                "FusedMatMul",
                [op.operands[0], weight],
                {"transB": 1},
                domain=ops.MICROSOFT,
                type=op.result.type,
            )
            made.name = op.name
            op.replace_by(made.result)
            stats["products"] += 1


def _looks_up_rows(op: Op, table: Value) -> bool:
    """True if an op gives rows of a matrix."""
    return (
        op.is_a("Gather")
        and op.operands[0] is table
        and op.operands[1] is not table
        and int(op.attrs.get("axis", 0)) in (0, -2)
    )


def _replace_by_transpose(const: Op, twin: Op) -> None:
    """Read a weight as the transpose of another one, which moves to where every reader finds it."""
    assert const.graph is not None
    assert twin.graph is not None
    if (first := twin.graph.first) is not None:
        twin.move_before(first)
    builder = Builder(const.graph, before=const, loc=const.loc.union(rule="share-transposed"))
    const.replace_by(builder.op("Transpose", [twin.result], {"perm": [1, 0]}, type=const.result.type).result)


def _feeds_products(value: Value) -> bool:
    """True if nothing but float products reads a value, as their second operand."""
    users = value.users
    return bool(users) and all(
        user.is_a("MatMul") and user.operands[1] is value and user.operands[0] is not value for user in users
    )


def _twin(weight: Op, candidates: list[Op]) -> Op | None:
    """Find a weight that is the transpose of another one, and can be read where that is."""
    assert weight.graph is not None
    for other in candidates:
        if other is weight or other.graph is None or not other.graph.encloses(weight.graph):
            continue
        if _are_transposed(weight.attrs["value"], other.attrs["value"]):
            return other
    return None


def _are_transposed(one: Tensor, other: Tensor) -> bool:
    """Compare bits, some rows at a time."""
    a, b = one.numpy().view(np.uint32), other.numpy().view(np.uint32)
    equal = all(np.array_equal(a[i : i + _ROWS], b[:, i : i + _ROWS].T) for i in range(0, len(a), _ROWS))
    del a, b
    release(one)
    release(other)
    return equal


class _Corner(NamedTuple):
    """Key that tells matrices apart without reading them: shape, and bits of the first row and column."""

    shape: tuple[int, ...]
    row: bytes
    column: bytes

    @property
    def transposed(self) -> _Corner:
        """Give the corner of the transpose."""
        return _Corner(self.shape[::-1], self.column, self.row)


def _corner(op: Op) -> _Corner:
    tensor = op.attrs["value"]
    bits = tensor.numpy().view(np.uint32)
    return _Corner(tuple(bits.shape), bits[0, :_FEW].tobytes(), bits[:_FEW, 0].tobytes())
