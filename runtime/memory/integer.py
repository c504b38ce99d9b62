"""Quantize/dequantize pairs that are no operations: onnxruntime fuses them into integer kernels.

What is written as DequantizeLinear, Conv, Relu, QuantizeLinear runs as one QLinearConv: the float tensors between
them never exist. A DequantizeLinear in front of an integer kernel is then a view of its codes (of a weight: no
bytes at all), and the kernel makes the codes that the QuantizeLinear behind it gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value


@dataclass
class Fused:
    """Values that a graph's integer kernels do away with.

    Args:
        views: Results that are another view of their first operand's bytes.
        coded: Float results that exist only as the codes of the named value.
        resident: Results that take no bytes of a run: the kernel reads the codes of a weight, or all that a result
            depends on is weights, so that it is computed once, when the model is loaded.
        kernels: Ops that run as integer kernels: they read codes although they are written on floats.
    """

    views: set[Value] = field(default_factory=set)
    coded: dict[Value, Value] = field(default_factory=dict)
    resident: set[Value] = field(default_factory=set)
    kernels: set[Op] = field(default_factory=set)


def fused_pairs(graph: Graph) -> Fused:
    """Find the pairs that onnxruntime fuses, judged by the operators around them, and what it folds."""
    found = Fused()
    for op in graph.ops:
        if _is_folded(op, found.resident):
            found.resident |= set(op.results)
    kernels = found.kernels
    for op in graph.ops:
        if ops.definition(op).integer is not None and _reads_codes(op):
            chain = _until_codes(op)
            if chain:
                *between, codes = chain
                found.coded |= dict.fromkeys(between, codes)
                found.views |= {*between[1:], codes}
                kernels.add(op)
            elif ops.definition(op).integer is ops.IntegerKernel.FLOAT_RESULT:
                kernels.add(op)
    for op in graph.ops:
        if op.op_type == "DequantizeLinear" and op.result.has_uses and all(u in kernels for u in op.result.users):
            if op.operand.tensor is not None:
                found.resident.add(op.result)
            else:
                found.views.add(op.result)
    return found


def _is_folded(op: Op, resident: set[Value]) -> bool:
    """True if onnxruntime computes an op when the model is loaded: from weights alone, and nothing that is handed out.

    It leaves decoders of weights for the kernels that read codes (see `fused_pairs`).
    """
    if op.is_const or not op.operands or op.regions or op.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return False
    known = ops.facts(op)
    if not known.known or not known.pure or any(r.is_output for r in op.results):
        return False
    given = [v for v in op.operands if not v.is_absent]
    return bool(given) and all(v.tensor is not None or v in resident for v in given)


def _reads_codes(op: Op) -> bool:
    floats = [v for v in op.operands[: 3 if op.op_type in ("Conv", "Gemm") else 2] if not v.is_absent]
    if ops.definition(op).integer is ops.IntegerKernel.FIRST_OPERAND:
        floats = floats[:1]
    elif op.op_type == "Concat":
        floats = list(op.operands)
    return bool(floats) and all(_decoded(v) for v in floats)


def _decoded(value: Value) -> bool:
    """True if a value comes from codes of 8 bits, or of 32 (a bias): kernels know no others."""
    op = value.op
    if op is None or op.op_type != "DequantizeLinear":
        return False
    return op.operand.dtype is None or op.operand.dtype.bitwidth in (8, 32)


def _until_codes(op: Op) -> list[Value]:
    """The results from the op's own to that of the QuantizeLinear behind it; empty when there is none."""
    chain = [op.result]
    while chain[-1].single_use and not chain[-1].is_output:
        (user,) = chain[-1].users
        if user.graph is not op.graph:
            return []
        chain.append(user.result)
        if user.op_type == "QuantizeLinear":
            return chain
        if user.key not in ("Relu", "Clip"):
            return []
    return []
