"""The data-free form: weights per channel, activations coded when the model runs."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import numpy as np

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.ops import layout_of
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._quantize.numerics import weight_codes
from memoptc.passes.precision._quantize.static_choice import choose
from memoptc.runtime.devices import Device

Shared: TypeAlias = dict[tuple[Value, int], tuple[Value, ...]]
"""Constants by the weight and how it is laid out."""


def quantize_dynamically(
    graph: Graph,
    excluded: frozenset[str],
    dtype: DType,
    bits: int,
    stats: Counter[str],
    device: Device,
    *,
    integer_convolutions: bool,
) -> None:
    """Replace products with constant weights by integer ones, in place; convolutions as asked.

    Args:
        graph: The top graph.
        excluded: Node names and operators to leave in float.
        dtype: Element type of weight codes.
        bits: Bits of weights.
        stats: Counts what was done.
        device: What has integer kernels.
        integer_convolutions: Run convolutions on integers, or keep only their weights as such.
    """
    shared: Shared = {}
    for op in choose(graph, excluded, stats, device).heavy:
        weight = op.operands[1]
        builder = Builder(graph, before=op, loc=op.loc.union(rule="quantize"))
        if op.op_type == "Conv" and not integer_convolutions:
            _conv_weights(builder, op, weight, dtype, bits, shared)
            stats["weights only Conv"] += 1
            continue
        if op.op_type == "Conv":
            made = _conv(builder, op, weight, dtype, bits, stats)
        else:
            made = _product(builder, op, weight, dtype, bits, shared)
        if made is None:
            continue
        made.type = op.result.type
        stats[f"quantized {op.op_type}"] += 1
        op.replace_by(made)


def _codes(builder: Builder, weight: Value, axis: int, dtype: DType, bits: int, shared: Shared) -> tuple[Value, ...]:
    """A weight's codes with results along the last axis (0: as it is), scales and zero points; once for all readers."""
    if (weight, axis) not in shared:
        assert weight.tensor is not None
        content = weight.tensor.numpy()
        if axis:
            content = np.ascontiguousarray(np.moveaxis(content, axis - 1, 1))
        found = weight_codes(content, min(axis, 1), dtype, bits)
        parts = ((found.codes, "q"), (found.scales, "s"), (found.zero_points, "zp"))
        shared[weight, axis] = tuple(builder.const(part, f"{weight.name}_{name}") for part, name in parts)
    return shared[weight, axis]


def _conv_weights(builder: Builder, op: Op, weight: Value, dtype: DType, bits: int, shared: Shared) -> None:
    """Integer weights, decoded when the model runs, into a float convolution."""
    domain = "" if (ops.opset_of(builder.graph) or 0) >= 13 else ops.MICROSOFT
    operands = list(_codes(builder, weight, 0, dtype, bits, shared))
    real = builder.op("DequantizeLinear", operands, {"axis": 0}, domain=domain, type=weight.type).result
    op.set_operand(1, real)


def _product(builder: Builder, op: Op, weight: Value, dtype: DType, bits: int, shared: Shared) -> Value:
    """A product with codes of its weight."""
    return run_time_product(builder, op, _codes(builder, weight, layout_of(op).output_axis + 1, dtype, bits, shared))


def run_time_product(builder: Builder, op: Op, codes: tuple[Value, ...]) -> Value:
    """A product whose left side is coded by its own range in each run, by onnxruntime's DynamicQuantizeMatMul.

    Args:
        builder: Before the product.
        op: A MatMul or Gemm with a constant weight, and a bias (if any) that is a row or one number.
        codes: Of the weight, results along the last axis; its scales and zero points, one for each result.

    Returns:
        The result.
    """
    bias = op.input(2)
    operands: list[Value | None] = [op.operand, *codes]
    if bias is not None:
        assert bias.tensor is not None
        row = np.broadcast_to(bias.tensor.numpy().reshape(-1), codes[1].static_shape or ())
        operands.append(builder.const(np.ascontiguousarray(row), bias.name))
    return builder.op(
        "DynamicQuantizeMatMul", operands, domain=ops.MICROSOFT, type=op.result.type, name=f"{op.result.name}_int8"
    ).result


def _conv(builder: Builder, op: Op, weight: Value, dtype: DType, bits: int, stats: Counter[str]) -> Value | None:
    """DynamicQuantizeLinear, ConvInteger, and the scales after it."""
    if op.attrs.get("group", 1) != 1:
        stats["left Conv: grouped, and its integer kernel is slow"] += 1
        return None
    if (ops.opset_of(builder.graph) or 0) < 11:
        stats["left Conv: codes at run time need opset 11"] += 1
        return None
    assert weight.tensor is not None
    codes = weight_codes(weight.tensor.numpy(), 0, dtype, bits)
    shape = op.operand.shape
    coded = builder.op(
        "DynamicQuantizeLinear",
        [op.operand],
        outputs=3,
        type=[TensorType(DType.UINT8, shape), TensorType(DType.FLOAT, ()), TensorType(DType.UINT8, ())],
    ).results
    zero = np.asarray(codes.zero_point, codes.codes.dtype)
    result, out_shape = op.result.type, op.result.shape
    whole = builder.op(
        "ConvInteger",
        [coded[0], builder.const(codes.codes, f"{weight.name}_q"), coded[2], builder.const(zero)],
        dict(op.attrs),
        type=TensorType(DType.INT32, out_shape),
    ).result
    real = builder.op("Cast", [whole], {"to": int(DType.FLOAT)}, type=result).result
    spread = (1, -1, *[1] * (weight.tensor.numpy().ndim - 2))
    channel = builder.const(codes.scales.reshape(spread), f"{weight.name}_s")
    step = builder.op("Mul", [channel, coded[1]], type=channel.type).result
    scaled = builder.op("Mul", [real, step], type=result).result
    bias = op.input(2)
    if bias is None:
        return scaled
    assert bias.tensor is not None
    offset = builder.const(bias.tensor.numpy().reshape(spread), bias.name)
    return builder.op("Add", [scaled, offset], type=result).result
