"""Element-wise operators: each result element depends on the elements at the same (broadcast) position only."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from memoptc.ir.core import Op
from memoptc.ir.ops import double_elementwise as double
from memoptc.ir.ops.axis import Along, Axis, axis_of_result, broadcast_axis, everywhere, extents, shape
from memoptc.ir.ops.definition import Arity, Blocked, Family, IntegerKernel, Operator, also, define
from memoptc.ir.ops.parameters import Mask
from memoptc.ir.ops.sample import Rng, Sample, floats
from memoptc.ir.ops.sample import extents as drawn_extents
from memoptc.ir.ops.schema import MICROSOFT
from memoptc.ir.ops.sizes import Sizes, width

ROUND_BY_PLACE = frozenset("Acos Asin Atan Celu Cos Elu Exp Log Mish Selu Sigmoid Sin Softplus Tanh FastGelu".split())
"""onnxruntime's kernels compute the last elements of a buffer by other instructions than those before them (in
float32, or in float64 only), and round some of them otherwise: a piece's last elements lie in the whole's midst."""


def broadcast_axes(op: Op) -> list[Axis]:
    """Every axis of the result; operands that broadcast along one are needed whole."""
    whole = shape(op.results[0])
    if whole is None or any(shape(r) is None for r in op.results if not r.omitted):
        return []
    found = []
    for place, extent in enumerate(whole):
        parts = [broadcast_axis(op, i, place, len(whole), extent) for i in range(len(op.operands))]
        if all(p is not False for p in parts) and any(p is not None for p in parts):
            cut = tuple(p if isinstance(p, Along) else None for p in parts)
            found.append(Axis((place,) * len(op.results), cut, reorders=op.op_type in ROUND_BY_PLACE))
    return found


def _bias_gelu(op: Op) -> list[Axis]:
    rounds = op.op_type in ROUND_BY_PLACE
    return [axis_of_result(op, i, (0, Along(i)), reorders=rounds) for i in range(len(extents(op, 0)) - 1)]


def _elementwise_first(op: Op) -> list[Axis]:
    """Operand 0 element by element; the others are scalars."""
    if any(d != 1 for i in range(1, len(op.operands)) for d in extents(op, i)):
        return []
    return [everywhere(op, i) for i in range(len(extents(op, 0)))]


def _select(s: Sizes) -> int:
    """Both choices, spread over the condition (core/providers/cpu/tensor/where_op.cc)."""
    condition = s.operand(0)
    each = [prod(_broadcast(condition, s.operand(i))) for i in (1, 2)]
    return sum(each) * width(s.op.results[0])


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    padded = ((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b))
    return tuple(y if x == 1 else x for x, y in zip(*padded, strict=True))


def _variadic(s: Sizes) -> int:
    """One running result per operand after the second, two alive at once (math/element_wise_ops.cc)."""
    return s.result_bytes * min(2, max(0, len(s.op.operands) - 2))


def _one_result(s: Sizes) -> int:
    return s.result_bytes


def _cast_sample(r: Rng) -> Sample:
    return Sample((floats(r, *drawn_extents(r, 0, 4)),), {"to": int(r.choice((1, 6, 7, 11)))})


def _shift_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 0, 3)
    operands = tuple(np.asarray(r.integers(0, 5, shape), np.uint32) for _ in range(2))
    return Sample(operands, {"direction": str(r.choice(("LEFT", "RIGHT")))})


def _mod_sample(r: Rng) -> Sample:
    shape = drawn_extents(r, 0, 3)
    return Sample(tuple(np.asarray(r.integers(1, 9, shape), np.int64) for _ in range(2)))


def _quick_gelu_sample(r: Rng) -> Sample:
    return Sample((floats(r, *drawn_extents(r, 1, 4)),), {"alpha": float(np.float32(r.uniform(0.5, 2)))})


_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Cos Cosh Exp Floor IsInf IsNaN "
    "Log Neg Not Reciprocal Round Sign Sin Sinh Sqrt Tan"
)
_UNARY_IN_PLACE = "Cast CastLike Celu Shrink Tanh ThresholdedRelu"
_COMMUTATIVE = "And BitwiseAnd BitwiseOr BitwiseXor Equal Or Xor"
_BINARY = "BitShift Div Greater GreaterOrEqual Less LessOrEqual Mod Pow Sub"
_UNARY_FACTS: dict[str, Any] = {"arity": Arity.UNARY, "space": broadcast_axes}
_BINARY_FACTS: dict[str, Any] = {"arity": Arity.BINARY, "space": broadcast_axes}
_VARIADIC_FACTS: dict[str, Any] = {"arity": Arity.VARIADIC, "space": broadcast_axes}

OPERATORS: tuple[Operator, ...] = (
    *define(_UNARY, **_UNARY_FACTS),
    *define("Erf", double=double.erf, **_UNARY_FACTS),
    *define("Gelu", double=double.gelu, **_UNARY_FACTS),
    *define("HardSwish", workspace=_one_result, double=double.hard_swish, **_UNARY_FACTS),
    *define("Mish", workspace=_one_result, double=double.mish, **_UNARY_FACTS),
    *define("Swish", workspace=_one_result, **_UNARY_FACTS),
    *define(_UNARY_IN_PLACE, in_place=(0,), **_UNARY_FACTS),
    *define("Elu", in_place=(0,), double=double.elu, **_UNARY_FACTS),
    *define("HardSigmoid", in_place=(0,), double=double.hard_sigmoid, **_UNARY_FACTS),
    *define("Selu", in_place=(0,), double=double.selu, **_UNARY_FACTS),
    *define("Softplus", in_place=(0,), double=double.softplus, **_UNARY_FACTS),
    *define("Softsign", in_place=(0,), double=double.softsign, **_UNARY_FACTS),
    *define("Clip", arity=Arity.UNARY, in_place=(0,), space=_elementwise_first),
    *define("Relu", in_place=(0,), homogeneous=True, **_UNARY_FACTS),
    *define(
        "LeakyRelu",
        in_place=(0,),
        homogeneous=True,
        integer=IntegerKernel.FIRST_OPERAND,
        double=double.leaky_relu,
        **_UNARY_FACTS,
    ),
    *define("Sigmoid", in_place=(0,), integer=IntegerKernel.FIRST_OPERAND, **_UNARY_FACTS),
    *define("Identity", view=0, moves=True, homogeneous=True, **_UNARY_FACTS),
    *define(_BINARY, **_BINARY_FACTS),
    *define("PRelu", homogeneous=True, double=double.prelu, **_BINARY_FACTS),
    *define(_COMMUTATIVE, commutative=True, **_BINARY_FACTS),
    *define("Add Mul", commutative=True, integer=IntegerKernel.ALL_OPERANDS, **_BINARY_FACTS),
    *define("Max Mean Min Sum", commutative=True, workspace=_variadic, **_VARIADIC_FACTS),
    *define("Where", workspace=_select, **_VARIADIC_FACTS),
    *define("Dropout", space=_elementwise_first, optional_results=True),
    *define("BitCast SwiGLU"),
    # experimental ones, which onnxruntime still runs
    *define("Affine ParametricSoftplus ScaledTanh", types_like=("Identity", 1), **_UNARY_FACTS),
    *define("Gelu", MICROSOFT, **_UNARY_FACTS),
    *define("QuickGelu", MICROSOFT, sample=_quick_gelu_sample, double=double.quick_gelu, **_UNARY_FACTS),
    *define("BiasGelu FastGelu", MICROSOFT, arity=Arity.UNARY, space=_bias_gelu, workspace=_one_result),
    *define("BiasAdd BiasSplitGelu ComplexMul ComplexMulConj", MICROSOFT),
)
OPERATORS = also(OPERATORS, "Acos Asin Atan Cos Log Mish Sin Softplus", rounds_by_position=True)
OPERATORS = also(OPERATORS, "Clip Gelu HardSigmoid HardSwish LeakyRelu Relu Sigmoid Tanh", blocked=Blocked.ALWAYS)
OPERATORS = also(OPERATORS, "Gelu QuickGelu", MICROSOFT, blocked=Blocked.ALWAYS)
OPERATORS = also(OPERATORS, "Add Mul Sum", blocked=Blocked.ALL_ALIKE)
OPERATORS = also(OPERATORS, "Clip HardSigmoid LeakyRelu Relu Sigmoid Tanh", joins_convolution=True)
OPERATORS = also(OPERATORS, "HardSwish", joins_blocked=True)
OPERATORS = also(OPERATORS, "Erf Exp Sigmoid Tanh", arithmetic=4.5)
OPERATORS = also(OPERATORS, "Gelu", arithmetic=6.0)
OPERATORS = also(OPERATORS, "Gelu", MICROSOFT, arithmetic=6.0)
OPERATORS = also(OPERATORS, "Pow Sin", arithmetic=9.0)
OPERATORS = also(OPERATORS, "Equal Greater GreaterOrEqual Less LessOrEqual", family=Family.COMPARISON)
OPERATORS = also(OPERATORS, "Cast", sample=_cast_sample)
OPERATORS = also(OPERATORS, "BitShift", sample=_shift_sample)
OPERATORS = also(OPERATORS, "Mod", sample=_mod_sample)
OPERATORS = also(OPERATORS, "Acos", double=double.acos)
OPERATORS = also(OPERATORS, "Acosh", double=double.acosh)
OPERATORS = also(OPERATORS, "Asin", double=double.asin)
OPERATORS = also(OPERATORS, "Asinh", double=double.asinh)
OPERATORS = also(OPERATORS, "Atan", double=double.atan)
OPERATORS = also(OPERATORS, "Atanh", double=double.atanh)
OPERATORS = also(OPERATORS, "Celu", double=double.celu)
OPERATORS = also(OPERATORS, "Cosh", double=double.cosh)
OPERATORS = also(OPERATORS, "Mean", double=double.mean)
OPERATORS = also(OPERATORS, "Sinh", double=double.sinh)
OPERATORS = also(OPERATORS, "Tan", double=double.tan)
OPERATORS = also(OPERATORS, "ThresholdedRelu", double=double.thresholded_relu)
OPERATORS = also(OPERATORS, "And Not Or Where Xor", parameters={0: Mask()})
