"""Lookups in tables of codes: GatherBlockQuantized, or standard operators for rows of 8 bits."""

from __future__ import annotations

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._quantize.blocks import Blocks, pack
from memoptc.passes.precision._quantize.weight_coder import WeightCoder
from memoptc.passes.precision._quantize.weight_constants import WeightConstants
from memoptc.passes.precision._quantize.weight_operands import PRODUCTS, Weight, WeightUse
from memoptc.runtime.kernels import gathers_codes

_MATRIX = (1, 1.0)
"""A weight that is read in rows, as it is: columns and factor."""


def look_up_blocks(builder: Builder, weight: Weight, op: Op, coder: WeightCoder, constants: WeightConstants) -> Value:
    """Give rows of a table, decoded after the lookup, from blocks where a kernel can read them.

    Args:
        builder: Where.
        weight: The table.
        op: The Gather.
        coder: Gives the codes.
        constants: Of the weight.
    """
    form, columns = coder.format, weight.numpy().shape[1]
    whole = columns * form.bits % 8 == 0
    if form.form != "nbits" or not whole or not gathers_codes(form.bits):
        return look_up_rows(builder, weight, op, coder, constants)
    blocks = coder.matrix(weight, *_MATRIX)
    if columns % blocks.block == 0 and any(_reads_as_table(site) for site in weight.sites):
        found = _look_up_shared(builder, blocks, op, constants)
        if found is not None:
            return found
    packed = blocks.packed().reshape(len(blocks.scales), -1)[:, : columns * blocks.bits // 8]
    operands: list[Value | None] = [
        constants.const(np.ascontiguousarray(packed), f"rows{blocks.bits}"),
        op.operands[1],
        constants.const(blocks.scales, "scales", _MATRIX),
        None if blocks.symmetric else constants.const(blocks.packed_zeros(), "zeros", _MATRIX),
    ]
    attrs = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.block, "bits": blocks.bits}
    return builder.op("GatherBlockQuantized", operands, attrs, domain=ops.MICROSOFT, type=op.result.type).result


def _look_up_shared(builder: Builder, blocks: Blocks, op: Op, constants: WeightConstants) -> Value | None:
    """Give rows of a table whose codes a product reads, too: one constant, each block an axis of its own.

    GatherBlockQuantized then takes the zero point of each block in a byte of its own, so that those of 4 bits are
    there twice; `None` where the rank of the indices is not known, which the shape of the result needs.
    """
    result = op.result.tensor_type
    if result is None or result.shape is None:
        return None
    rows, count = blocks.scales.shape
    scales = constants.const(blocks.scales, "scales", _MATRIX)
    cubic = builder.const(np.array([rows, count, 1], np.int64))
    zeros = None
    if not blocks.symmetric and blocks.bits == 8:
        flat = constants.const(blocks.packed_zeros(), "zeros", _MATRIX)
        zeros = builder.op("Reshape", [flat, cubic], type=TensorType(DType.UINT8, (rows, count, 1))).result
    elif not blocks.symmetric:
        zeros = constants.const(pack(blocks.zeros[..., None], blocks.bits), "row_zeros", _MATRIX)
    operands: list[Value | None] = [
        constants.const(blocks.packed(), f"q{blocks.bits}", _MATRIX),
        op.operands[1],
        builder.op("Reshape", [scales, cubic], type=TensorType(DType.FLOAT, (rows, count, 1))).result,
        zeros,
    ]
    attrs = {"gather_axis": 0, "quantize_axis": 2, "block_size": blocks.block, "bits": blocks.bits}
    type_ = TensorType(DType.FLOAT, (*result.shape[:-1], count, blocks.block))
    picked = builder.op("GatherBlockQuantized", operands, attrs, domain=ops.MICROSOFT, type=type_).result
    shape = builder.const(np.array([0] * (len(result.shape) - 1) + [blocks.columns], np.int64))
    return builder.op("Reshape", [picked, shape], type=result).result


def look_up_rows(builder: Builder, weight: Weight, op: Op, coder: WeightCoder, constants: WeightConstants) -> Value:
    """Look up int8 rows and their scales: standard operators only, of any opset."""
    found = coder.channels(weight.numpy(), 0)
    codes = constants.const(found.codes, "rows8")
    scales = constants.const(np.ascontiguousarray(found.scales[:, None]), "row_scales")
    result, shape = op.result.type, op.result.shape
    one = None if shape is None else (*shape[:-1], 1)
    picked = builder.op("Gather", [codes, op.operands[1]], {"axis": 0}, type=TensorType(DType.INT8, shape))
    scale = builder.op("Gather", [scales, op.operands[1]], {"axis": 0}, type=TensorType(DType.FLOAT, one))
    wide = builder.op("Cast", [picked.result], {"to": int(DType.FLOAT)}, type=result)
    return builder.op("Mul", [wide.result, scale.result], type=result).result


def _reads_as_table(site: WeightUse) -> bool:
    """True if a product reads a weight in the orientation in which a lookup does."""
    return site.op.op_type in PRODUCTS and site.columns == 1 and site.factor == 1.0
