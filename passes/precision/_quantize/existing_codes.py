"""Codes that a model brings along (from quantization-aware training, say): read here, kept as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._quantize.numerics import Scale

_EIGHT = frozenset({DType.INT8, DType.UINT8})
_WHOLE = _EIGHT | {DType.INT16, DType.UINT16}


@dataclass
class Existing:
    """The codes of a graph.

    Args:
        scales: Float activation -> the code it comes from, or goes into.
        decoded: Float activation that goes into a QuantizeLinear -> what the DequantizeLinear behind it gives.
    """

    scales: dict[Value, Scale] = field(default_factory=dict)
    decoded: dict[Value, Value] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """True if there are any."""
        return bool(self.scales)

    @property
    def dtype(self) -> DType | None:
        """The element type of most codes."""
        common = Counter(scale.dtype for scale in self.scales.values()).most_common(1)
        return common[0][0] if common else None


def is_quantized(graph: Graph) -> bool:
    """True if anything in a graph or its regions is stored or passed on in codes."""
    return any(op.op_type == "DequantizeLinear" for op in graph.walk())


def find_existing(graph: Graph) -> Existing:
    """Find the codes of whole activations in the top graph."""
    found = Existing()
    for op in graph.ops:
        if is_decoder(op) and op.operand.tensor is None:
            scale = _scale(op, op.operand)
            if scale is None:
                continue
            found.scales[op.result] = scale
            coder = op.operand.op
            if coder is not None and coder.op_type == "QuantizeLinear" and _scale(coder, coder.result) == scale:
                found.scales.setdefault(coder.operand, scale)
                found.decoded.setdefault(coder.operand, op.result)
    return found


def without_sign(graph: Graph, stats: Counter[str]) -> None:
    """Write int8 codes of activations as uint8, for devices whose kernels take no others: the same numbers exactly.

    A code and its zero point move up by 128 together, so `scale * (code - zero_point)` stays as it is, and so do the
    ends of the range. Codes that anything but a DequantizeLinear reads stay.
    """
    for op in list(graph.ops):
        if op.op_type != "QuantizeLinear" or _scale(op, op.result) is None or op.result.is_output:
            continue
        scale, readers = _scale(op, op.result), op.result.users
        if scale is None or scale.dtype != DType.INT8 or op.input(2) is None or "output_dtype" in op.attrs:
            continue
        if not all(is_decoder(r) and r.graph is graph and _scale(r, r.operand) == scale for r in readers):
            continue
        builder = Builder(graph, before=op)
        zero = builder.const(np.asarray(scale.zero_point + 128, np.uint8), f"{op.operands[2].name}_uint8")
        for one in (op, *readers):
            one.set_operands((*one.operands[:2], zero))
        if op.result.tensor_type is not None:
            op.result.type = TensorType(DType.UINT8, op.result.shape)
        stats["codes without a sign"] += 1


def is_decoder(op: Op | None) -> bool:
    """True if an op is a DequantizeLinear of whole tensors or channels, in standard ONNX or in onnxruntime's domain."""
    return (
        op is not None
        and op.op_type == "DequantizeLinear"
        and op.domain in ("", ops.MICROSOFT)
        and not op.attrs.get("block_size", 0)
    )


@dataclass(frozen=True)
class Decoded:
    """A weight that is stored as codes of 8 bits.

    Args:
        scales: float32, one per channel along `axis`, or a single one.
        axis: Channel axis; `None` for one scale for all.
    """

    scales: npt.NDArray[np.float32]
    axis: int | None


def decoded_weight(value: Value | None) -> Decoded | None:
    """Give the scales of a weight that a DequantizeLinear decodes; `None` when it is anything else."""
    op = value.op if value is not None else None
    if op is None or not is_decoder(op) or op.operand.tensor is None or op.operands[1].tensor is None:
        return None
    if op.operand.tensor.dtype not in _EIGHT:
        return None
    scales = np.asarray(op.operands[1].tensor.numpy(), np.float32)
    if scales.size == 1:
        return Decoded(scales.reshape(1), None)
    rank = len(op.operand.tensor.shape)
    return Decoded(scales, int(op.attrs.get("axis", 1)) % rank)


def reads_codes(op: Op) -> Iterator[bool]:
    """For each operand that is given: whether it is decoded from codes."""
    return (is_decoder(v.op) for v in op.operands if not v.is_absent)


def _scale(op: Op, codes: Value) -> Scale | None:
    scale, zero = op.operands[1], op.input(2)
    if scale.tensor is None or scale.tensor.size != 1 or (zero is not None and zero.tensor is None):
        return None
    if codes.dtype is None or codes.dtype not in _WHOLE:
        return None
    point = 0 if zero is None or zero.tensor is None else int(zero.tensor.numpy().reshape(()))
    return Scale(float(scale.tensor.numpy().reshape(())), point, codes.dtype)
