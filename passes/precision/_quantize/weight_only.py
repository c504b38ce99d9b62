"""Writing weights in codes: operators of onnxruntime that read them, or standard ones that decode them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._quantize.lookups import look_up_blocks, look_up_rows
from memoptc.passes.precision._quantize.tables import read_table
from memoptc.passes.precision._quantize.weight_coder import WeightCoder
from memoptc.passes.precision._quantize.weight_constants import WeightConstants
from memoptc.passes.precision._quantize.weight_format import BLOCKED_SINCE
from memoptc.passes.precision._quantize.weight_operands import CONVOLUTIONS, GATHER, Weight, WeightUse
from memoptc.runtime.moments import Moments

RULE = "quantize-weights"

PER_AXIS_SINCE = 13
"""Opset from which DequantizeLinear has a scale per channel."""

_CODED_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: its kernel may compute with activations of 8 bits."""


class Writer:
    """Replaces the readers of one weight after the other.

    Args:
        coder: Gives the codes.
        stats: Counts what was done.
    """

    def __init__(self, coder: WeightCoder, stats: Counter[str]) -> None:
        self.coder, self._stats, self._format = coder, stats, coder.format

    def write(self, weight: Weight, moments: Mapping[int, Moments] | None = None, *, channels: bool = False) -> int:
        """Replace every reader of a weight; the weight is then unused. Give the bytes of the codes.

        Args:
            weight: What to code.
            moments: X^T X of what its columns meet, by `WeightUse.columns` (`WINDOW` for convolutions).
            channels: Instead of blocks: int8 with one scale per channel, in standard operators.
        """
        self.coder.begin(moments or {})
        constants = WeightConstants(weight)
        for site in weight.sites:
            op = site.op
            if op.graph is None:
                raise InternalError(f"{op.key} is in no graph")
            builder = Builder(op.graph, before=op, loc=op.loc.union(rule=RULE))
            if site.decoded and self._format.decode == "load":
                bits = 8 if channels else self._format.bits
                op.set_operand(site.index, self._table(builder, weight, site, bits, constants))
            elif channels and op.op_type != GATHER:
                self._decode_channels(builder, weight, site, constants)
            elif op.op_type == GATHER:
                look_up = look_up_rows if channels else look_up_blocks
                self._replace(op, look_up(builder, weight, op, self.coder, constants))
            elif op.op_type in CONVOLUTIONS:
                op.set_operand(1, self._window(builder, weight, constants))
            elif self._format.form == "nbits":
                self._replace(op, self._product(builder, weight, site, constants))
            else:
                self._decode_in_place(builder, weight, site, constants)
            self._stats[f"quantized {op.op_type}"] += 1
        return constants.nbytes

    def _replace(self, op: Op, made: Value) -> None:
        made.type = op.result.type
        if made.op is not None:
            made.op.name = op.name
        op.replace_by(made)

    def _product(self, builder: Builder, weight: Weight, site: WeightUse, constants: WeightConstants) -> Value:
        """Give onnxruntime's own product with codes."""
        blocks, op = self.coder.matrix(weight, site.columns, site.factor), site.op
        key = (site.columns, site.factor)
        operands: list[Value | None] = [
            op.operand,
            constants.const(blocks.packed(), f"q{blocks.bits}", key),
            constants.const(blocks.scales, "scales", key),
            None if blocks.symmetric else constants.const(blocks.packed_zeros(), "zeros", key),
        ]
        attrs = {"K": blocks.columns, "N": len(blocks.scales), "bits": blocks.bits, "block_size": blocks.block}
        if self._format.activations == 8:
            attrs["accuracy_level"] = _CODED_ACTIVATIONS
        bias = op.input(2) if op.op_type == "Gemm" else None
        beta = float(op.attrs.get("beta", 1.0))
        row = _row(bias, attrs["N"])
        if row is not None:
            content = row if beta == 1.0 else row * np.float32(beta)
            given = bias if beta == 1.0 and bias is not None and _is_row(bias, attrs["N"]) else None
            operands += [None, given if given is not None else builder.const(content, f"{weight.value.name}_bias")]
        result = builder.op("MatMulNBits", operands, attrs, domain=ops.MICROSOFT, type=op.result.type).result
        if bias is not None and row is None:
            scaled = bias if beta == 1.0 else builder.op("Mul", [bias, np.float32(beta)], type=bias.type).result
            result = builder.op("Add", [result, scaled], type=op.result.type).result
        return result

    def _decode_in_place(self, builder: Builder, weight: Weight, site: WeightUse, constants: WeightConstants) -> None:
        """Put a standard DequantizeLinear with blocks before the op, in the layout that the weight has."""
        blocks, op = self.coder.matrix(weight, site.columns, 1.0), site.op
        codes = blocks.codes[:, : blocks.columns]
        parts = constants.decoded_operands(blocks, codes, blocks.scales, blocks.zeros, site.columns == 0)
        attrs = {"axis": site.columns, "block_size": blocks.block}
        real = builder.op("DequantizeLinear", parts, attrs, domain="", type=weight.value.type).result
        self._put(builder, weight, op, real)

    def _decode_channels(self, builder: Builder, weight: Weight, site: WeightUse, constants: WeightConstants) -> None:
        """Put a DequantizeLinear with a scale per row of results before the op; onnxruntime multiplies such codes."""
        axis = 0 if site.op.op_type in CONVOLUTIONS else 1 - site.columns
        found = self.coder.channels(weight.numpy(), axis)
        parts = [
            constants.const(array, name, ("channels", axis))
            for name, array in (("codes", found.codes), ("scales", found.scales), ("zeros", found.zero_points))
        ]
        domain = "" if self._format.opset >= PER_AXIS_SINCE else ops.MICROSOFT
        real = builder.op("DequantizeLinear", parts, {"axis": axis}, domain=domain, type=weight.value.type).result
        self._put(builder, weight, site.op, real)

    def _put(self, builder: Builder, weight: Weight, op: Op, real: Value) -> None:
        """Let an op read what was decoded; a Transpose between them stays, and reads it instead."""
        through = op.operands[1]
        if through is not weight.value:
            assert through.op is not None
            real = builder.op("Transpose", [real], dict(through.op.attrs), type=through.type).result
        op.set_operand(1, real)

    def _window(self, builder: Builder, weight: Weight, constants: WeightConstants) -> Value:
        """Decode rows of one block each, and give them the weight's shape."""
        blocks = self.coder.window(weight)
        scales, zeros = blocks.scales.reshape(-1), blocks.zeros.reshape(-1)
        parts = constants.decoded_operands(blocks, blocks.codes, scales, zeros, False)
        standard = self._format.opset >= (BLOCKED_SINCE if blocks.bits == 4 else PER_AXIS_SINCE)
        domain = "" if standard else ops.MICROSOFT
        rows = TensorType(DType.FLOAT, blocks.codes.shape)
        real = builder.op("DequantizeLinear", parts, {"axis": 0}, domain=domain, type=rows).result
        shape = constants.const(np.asarray(weight.numpy().shape, np.int64), "shape")
        return builder.op("Reshape", [real, shape], type=weight.value.type).result

    def _table(self, builder: Builder, weight: Weight, site: WeightUse, bits: int, constants: WeightConstants) -> Value:
        """Decode while loading."""
        table = self.coder.table(weight, site, bits)
        numbers = constants.const(table.numbers, "table", bits)
        indices = constants.const(table.indices, "indices", bits)
        pairs = table.numbers.ndim == 2
        shape = constants.const(np.asarray(table.shape, np.int64), "shape") if pairs else None
        return read_table(builder, numbers, indices, shape, weight.value.type)


def _is_row(bias: Value, columns: int) -> bool:
    return bias.static_shape == (columns,)


def _row(bias: Value | None, columns: int) -> npt.NDArray[np.float32] | None:
    """A constant bias that is the same in every row, as one row; `None` for any other."""
    if bias is None or bias.tensor is None:
        return None
    shape = tuple(bias.tensor.shape.numpy())
    if bias.tensor.dtype != DType.FLOAT or len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        return None
    content = np.asarray(bias.tensor.numpy(), np.float32).reshape(-1)
    return np.ascontiguousarray(np.broadcast_to(content, (columns,)))
