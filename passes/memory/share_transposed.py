"""share-transposed: keep one copy of a weight that is read in both orientations."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.mapped import release
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType
from memoptc.pass_base import Pass

_ROWS = 256
"""Rows that are compared at once."""


class ShareTransposed(Pass):
    """Let products read a weight transposed, where it is there the other way round already.

    Tied embeddings come in two forms: the product reads `Transpose(w)`, which onnxruntime computes while loading and
    keeps in anonymous memory, or a weight of its own with the same numbers. Both become
    `com.microsoft.FusedMatMul(x, w, transB=1)`, whose kernel packs the same layout from `w` itself: the same bits. Only
    float32 products, the operators that have this kernel.

    Args:
        least: Bytes from which a weight is looked at.
    """

    least: int = 65536

    def run(self, graph: Graph, stats: Counter[str]) -> None:
        """First the transposes that are there, then pairs of weights."""
        for op in list(graph.walk("Transpose")):
            weight = op.operand
            if self._is_matrix(weight) and op.attrs.get("perm", (1, 0)) == (1, 0) and _feeds_products(op.result):
                self._read_transposed(op.result, weight, stats)
                op.erase()
        shapes: dict[tuple[int, ...], list[Op]] = defaultdict(list)
        for op in graph.walk("const"):
            if self._is_matrix(op.result):
                shapes[_shape(op)].append(op)
        for shape, same in list(shapes.items()):
            for const in same:
                if const.graph is None or not _feeds_products(const.result):
                    continue
                twin = _twin(const, shapes.get(shape[::-1], []))
                if twin is not None:
                    stats["bytes saved"] += nbytes(const.attrs["value"])
                    self._read_transposed(const.result, twin.result, stats)
                    const.erase()

    def _is_matrix(self, value: Value) -> bool:
        return (
            value.tensor is not None
            and value.dtype == DType.FLOAT
            and value.rank == 2
            and nbytes(value.tensor) >= self.least
        )

    def _read_transposed(self, value: Value, weight: Value, stats: Counter[str]) -> None:
        for op in dict.fromkeys(value.users):
            assert op.graph is not None
            builder = Builder(op.graph, before=op, loc=op.loc.union(rule="share-transposed"))
            made = builder.op(
                "FusedMatMul",
                [op.operands[0], weight],
                {"transB": 1},
                domain=ops.MICROSOFT,
                name=op.result.name,
                type=op.result.type,
            )
            made.name = op.name
            op.result.replace_by(made.result)
            name = op.result.name
            op.erase()
            made.result.name = name
            stats["products"] += 1


def _feeds_products(value: Value) -> bool:
    """Whether nothing but float products reads a value, as their second operand."""
    users = value.users
    return bool(users) and all(
        user.is_a("MatMul") and user.operands[1] is value and user.operands[0] is not value for user in users
    )


def _twin(weight: Op, candidates: list[Op]) -> Op | None:
    """Find a weight that is the transpose of another one, and can be read where that is."""
    for other in candidates:
        if (
            other is weight
            or other.graph is None
            or not all(user.graph is not None and other.graph.encloses(user.graph) for user in weight.result.users)
        ):
            continue
        if _are_transposed(weight.attrs["value"], other.attrs["value"]):
            return other
    return None


def _are_transposed(one: Tensor, other: Tensor) -> bool:
    """Compare bits, some rows at a time."""
    a, b = one.numpy().view(np.uint32), other.numpy().view(np.uint32)
    equal = bool(np.array_equal(a[0], b[:, 0])) and all(
        np.array_equal(a[i : i + _ROWS], b[:, i : i + _ROWS].T) for i in range(0, len(a), _ROWS)
    )
    del a, b
    release(one)
    release(other)
    return equal


def _shape(op: Op) -> tuple[int, ...]:
    return tuple(op.attrs["value"].shape.numpy())
