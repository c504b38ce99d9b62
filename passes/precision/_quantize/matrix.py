"""Weights as matrices, whatever the operator: one row for each result."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from memoptc.ir import tensors
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op
from memoptc.passes.precision._quantize.correct import output_axis

Floats = npt.NDArray[np.float64]


def rows_of(op: Op) -> Floats:
    """Give the weights of a product or convolution as rows of one result each, float64 `[results, columns]`."""
    tensor = op.operands[1].tensor
    assert tensor is not None
    first = np.moveaxis(np.asarray(tensor.numpy(), np.float64), output_axis(op), 0)
    return np.ascontiguousarray(first.reshape(len(first), -1))


def as_weight_of(op: Op, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Give rows in the form in which the op has its weights."""
    tensor = op.operands[1].tensor
    assert tensor is not None
    axis, shape = output_axis(op), list(tensor.shape.numpy())
    turned = [shape[axis], *(extent for i, extent in enumerate(shape) if i != axis)]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(turned), 0, axis).astype(np.float32))


def energy(rows: Floats, moments: Floats) -> float:
    """Sum of squares of all products of rows with what the moments are of."""
    return max(float(np.einsum("ij,ij->", rows @ moments, rows)), 0.0)


def replace_constant(graph: Graph, op: Op, index: int, array: np.ndarray, rule: str) -> None:
    """Replace a constant operand of an op."""
    builder = Builder(graph, before=op, loc=op.loc.union(rule=rule))
    op.set_operand(index, builder.const(tensors.from_array(array), op.operands[index].name))
