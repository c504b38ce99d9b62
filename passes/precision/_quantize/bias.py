"""A product and the bias behind it: onnxruntime joins them to a Gemm, which runs on integers only with a coded bias."""

from __future__ import annotations

from collections import Counter

import numpy as np

from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType


def join_biases(graph: Graph, excluded: frozenset[str], stats: Counter[str]) -> None:
    """Replace MatMul of matrices and Add of a constant row by Gemm, so that the row is coded with the product.

    onnxruntime's MatMulAddFusion makes the same Gemm from a product in float and from one in codes alike, but leaves
    the row in float, and its integer Gemm wants that in 32-bit codes: the product would run in float.
    """
    for op in list(graph.ops):
        if op.key != "MatMul" or op.name in excluded or "MatMul" in excluded or _rank(op.operand) != 2:
            continue
        found = bias_behind(op)
        if found is None:
            continue
        add, index = found
        row = add.operands[index]
        assert row.tensor is not None
        builder = Builder(graph, before=add, loc=op.loc.union(add.loc, rule="quantize"))
        content = builder.const(np.asarray(row.tensor.numpy()).reshape(-1), row.name)
        made = builder.op("Gemm", [*op.operands, content], type=add.result.type)
        made.name = op.name
        add.replace_by(made.result)
        op.erase()
        stats["biases joined"] += 1


def will_be_joined(op: Op) -> bool:
    """True if onnxruntime joins a product of more axes with the bias behind it: where it knows all extents."""
    return op.result.static_shape is not None and _rank(op.operand) > 2


def bias_behind(op: Op) -> tuple[Op, int] | None:
    """Give the Add of one constant per column that alone reads a MatMul's result, and which operand the constant is."""
    if not op.result.single_use or op.result.is_output or _rank(op.operands[1]) != 2:
        return None
    (add,) = op.result.users
    if add.key != "Add" or add.graph is not op.graph:
        return None
    index = 1 if add.operand is op.result else 0
    row, columns = add.operands[index], _extents(op.operands[1])[1]
    if row.tensor is None or row.tensor.dtype != DType.FLOAT or row.tensor.size != columns:
        return None
    shape = row.tensor.shape.numpy()
    return (add, index) if shape and shape[-1] == columns and len(shape) <= 2 else None


def _extents(value: Value) -> tuple[object, ...]:
    return value.shape or ()


def _rank(value: Value) -> int:
    return len(_extents(value))
