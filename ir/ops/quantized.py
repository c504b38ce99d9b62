"""Operators on quantized tensors."""

from __future__ import annotations

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import Along, Axis, axis_of_result, extents
from memoptc.ir.ops.definition import Family, Operator, also, define
from memoptc.ir.ops.parameters import Index
from memoptc.ir.ops.schema import MICROSOFT


def _dequantize(op: Op) -> list[Axis]:
    """Scales and zero points per tensor, or per slice of one axis."""
    x = extents(op, 0)
    if op.attrs.get("block_size"):
        return []
    per_axis = len(extents(op, 1)) == 1 and extents(op, 1) != (1,)
    channel = int(op.attrs.get("axis", 1)) % len(x) if x else 0
    found = []
    for axis in range(len(x)):
        scales = per_axis and axis == channel
        cut = [(0, Along(axis)), *((i, Along(0)) for i in (1, 2) if scales and op.input(i) is not None)]
        found.append(axis_of_result(op, axis, *cut))
    return found


OPERATORS: tuple[Operator, ...] = (
    *define("QuantizeLinear DequantizeLinear", space=_dequantize, stays_float32=True),
    *define("DynamicQuantizeLinear", stays_float32=True),
    *define("QMoE", MICROSOFT, decodes_weight=True),
    *define(
        "DequantizeLinear GatherBlockQuantized QLinearAdd QLinearConcat "
        "QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax "
        "QLinearWhere QuantizeLinear",
        MICROSOFT,
    ),
)
OPERATORS = also(OPERATORS, "QuantizeLinear DequantizeLinear DynamicQuantizeLinear", family=Family.CODING)
OPERATORS = also(OPERATORS, "QuantizeLinear DequantizeLinear", MICROSOFT, family=Family.CODING)
OPERATORS = also(
    OPERATORS,
    "QLinearAdd QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean "
    "QLinearSigmoid QLinearSoftmax QLinearWhere",
    MICROSOFT,
    on_codes=True,
)
OPERATORS = also(OPERATORS, "GatherBlockQuantized", MICROSOFT, decodes_weight=True)
OPERATORS = also(OPERATORS, "GatherBlockQuantized", MICROSOFT, parameters={1: Index(axis="gather_axis")})
