"""The op table: what is known about operators, as data.

ONNX's own schemas say how many operands and which attributes an operator has (`schema`). What they do not
say stands here: which operators compute element by element, which only give another view of their operand's
bytes, which may overwrite an operand, which are commutative, which are not a function of their operands
alone. An operator that stands nowhere here and has no ONNX schema is left alone by every pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx.defs

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import TensorType

MICROSOFT = "com.microsoft"

UNARY = frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu "
    "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu".split()
)
"""Element-wise in one data operand (further operands are scalars such as Clip's bounds)."""

BINARY = frozenset(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Mod "
    "Mul Or PRelu Pow Sub Xor".split()
)
"""Element-wise in two operands, which broadcast against each other."""

VARIADIC = frozenset("Max Mean Min Sum Where".split())
"""Element-wise in any number of operands, which broadcast."""

COMMUTATIVE = frozenset("Add And BitwiseAnd BitwiseOr BitwiseXor Equal Max Mean Min Mul Or Sum Xor".split())
"""The result does not depend, bit for bit, on the order of the first two operands."""

VIEWS = frozenset("Flatten Identity Reshape Squeeze Unsqueeze".split())
"""The result is operand 0's bytes under another shape; onnxruntime shares the buffer."""

IN_PLACE = dict.fromkeys(
    "Cast Celu Clip Elu HardSigmoid LeakyRelu LogSoftmax Relu ScatterElements Selu Shrink Sigmoid Softmax Softplus "
    "Softsign Tanh TensorScatter ThresholdedRelu Trilu".split(),
    (0,),
)
"""Operands that result 0 overwrites when they die there and have the same shape and element size: what onnxruntime's
CPU kernels really do, recorded allocation by allocation with 1.31.1. Add, Mul, Exp, Sqrt and most others never do."""

RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Gives other values each time: never merged, folded or recomputed; removable when unused."""

PACKS_WEIGHTS = frozenset(
    "Attention Conv ConvTranspose FusedConv FusedGemm FusedMatMul GRU Gemm LSTM MatMul MultiHeadAttention "
    "QAttention RNN".split()
)
"""onnxruntime re-packs a constant operand of these at load time and then runs another kernel than for a computed
one, whose sums differ in the last bits: making such an operand constant is no exact change."""

CODES_ONE_OPERAND = frozenset(
    "AveragePool DepthToSpace Flatten GlobalAveragePool LeakyRelu MaxPool Reshape Resize Sigmoid Squeeze Transpose "
    "Unsqueeze".split()
)
"""Have an 8-bit integer kernel in onnxruntime, for codes in their first operand."""

INTEGER_KERNELS = CODES_ONE_OPERAND | frozenset("Add Concat Conv Gemm MatMul Mul".split())
"""Have an 8-bit integer kernel in onnxruntime between DequantizeLinear and QuantizeLinear."""

FLOAT_RESULTS = frozenset("Gemm MatMul".split())
"""Integer kernels that can give floats, with no QuantizeLinear behind them."""

CONTROL = frozenset("If Loop Scan SequenceMap".split())
"""Runs its regions: pure when everything inside is."""

CONTRIB_PURE = frozenset(
    (
        "Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu CDist ComplexMul ComplexMulConj "
        "ConvTransposeWithDynamicPads CropAndResize DecoderMaskedMultiHeadAttention DequantizeLinear "
        "DynamicQuantizeLSTM DynamicQuantizeMatMul EmbedLayerNormalization ExpandDims FastGelu FusedConv "
        "FusedGemm FusedMatMul FusedMatMulActivation GatherBlockQuantized GatherND Gelu GroupNorm "
        "GroupQueryAttention Inverse Irfft LayerNormalization MatMulBnb4 MatMulFpQ4 MatMulInteger16 "
        "MatMulIntegerToFloat MatMulNBits MultiHeadAttention MurmurHash3 NGramRepeatBlock NhwcConv "
        "NhwcFusedConv NhwcMaxPool PackedAttention "
        "PackedMultiHeadAttention QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool "
        "QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean "
        "QLinearSigmoid QLinearSoftmax QLinearWhere QOrderedMatMul QuantizeLinear QuickGelu "
        "ReduceSumInteger RelativePositionBias RemovePadding RestorePadding Rfft RotaryEmbedding "
        "SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization "
        "SparseToDenseMatMul Tokenizer TransposeMatMul WordConvEmbedding"
    ).split()
)
"""onnxruntime's contributed operators that are functions of their operands."""


@dataclass(frozen=True)
class Facts:
    """What is known of an operator.

    Args:
        known: There is an ONNX schema or an entry here; otherwise every other answer is the careful one.
        pure: A function of operands and attributes: may be merged, folded, recomputed.
        removable: May be dropped when no result is used.
        elementwise: Result elements depend on the elements at the same (broadcast) place only.
        commutative: Operands 0 and 1 may be exchanged.
        view: The operand whose bytes result 0 shares, else `None`.
        in_place: Operands that result 0 may overwrite.
    """

    known: bool = False
    pure: bool = False
    removable: bool = False
    elementwise: bool = False
    commutative: bool = False
    view: int | None = None
    in_place: tuple[int, ...] = ()


_STRUCTURE = {
    "const": Facts(known=True, pure=True, removable=True),
    "absent": Facts(known=True, pure=True, removable=True),
    "sparse_const": Facts(known=True, pure=True, removable=True),
    "return": Facts(known=True),
}


@cache
def _facts(op_type: str, domain: str) -> Facts:
    if not domain and op_type in _STRUCTURE:
        return _STRUCTURE[op_type]
    standard = not domain and onnx.defs.has(op_type)
    known = standard or (domain == MICROSOFT and op_type in CONTRIB_PURE) or onnx.defs.has(op_type, domain)
    if not known:
        return Facts()
    if domain:
        elementwise = domain == MICROSOFT and op_type in ("Gelu", "QuickGelu", "FastGelu", "BiasGelu")
        pure = not domain.endswith("training")
        return Facts(known=True, pure=pure, removable=pure, elementwise=elementwise)
    return Facts(
        known=True,
        pure=op_type not in RANDOM,
        removable=True,
        elementwise=op_type in UNARY | BINARY | VARIADIC,
        commutative=op_type in COMMUTATIVE,
        view=0 if op_type in VIEWS else None,
        in_place=IN_PLACE.get(op_type, ()),
    )


def facts(op: Op) -> Facts:
    """Give what is known of an op's operator."""
    return _facts(op.op_type, op.domain)


def is_pure(op: Op) -> bool:
    """Whether the op, everything in its regions included, is a function of what it uses."""
    if not facts(op).pure or _drops_out(op):
        return False
    return all(is_pure(inner) for region in op.regions.values() for inner in region.ops)


def is_removable(op: Op) -> bool:
    """Whether the op may be dropped when none of its results is used."""
    return facts(op).removable and all(is_removable(i) for r in op.regions.values() for i in r.ops)


def _drops_out(op: Op) -> bool:
    """Dropout in training mode is random."""
    if op.op_type != "Dropout" or op.domain:
        return False
    mode = op.input(2)
    if mode is None:
        return False
    tensor = mode.tensor
    return tensor is None or bool(tensor.numpy().reshape(-1)[0])


def feeds_packed(value: Value) -> bool:
    """Whether an op uses this value that rounds differently when it is a constant (see PACKS_WEIGHTS)."""
    floats = isinstance(value.type, TensorType) and not value.type.dtype.is_integer()
    todo, seen = [value], {value}
    while todo and floats:
        for user in todo.pop().users:
            if user.op_type in PACKS_WEIGHTS:
                return True
            if user.op_type in VIEWS or user.op_type in ("Cast", "Transpose"):
                fresh = [r for r in user.results if r not in seen]
                seen.update(fresh)
                todo.extend(fresh)
    return False


def opset_of(graph: Graph, domain: str = "") -> int | None:
    """Give the version of a domain that is in force in a graph's model; `None` when it is not imported."""
    imports = graph.info.opset_imports
    if not domain:
        return imports.get("", imports.get("ai.onnx"))
    return imports.get(domain)


@cache
def schema(op_type: str, domain: str, version: int | None) -> onnx.defs.OpSchema | None:
    """Give ONNX's schema of an operator at an opset version; `None` when ONNX has none."""
    if version is None:
        return None
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def schema_of(op: Op) -> onnx.defs.OpSchema | None:
    """Give the schema of an op in its model's opset."""
    if op.graph is None or op.graph.root.model is None:
        return None
    return schema(op.op_type, op.domain, opset_of(op.graph, op.domain))


def default_of(op: Op, attr: str) -> Any:
    """Give an attribute's value, its schema's default when it is not set, or `None` when there is neither."""
    if attr in op.attrs:
        return op.attrs[attr]
    found = schema_of(op)
    if found is None or attr not in found.attributes:
        return None
    value = found.attributes[attr].default_value
    if not value.name:
        return None
    content = onnx.helper.get_attribute_value(value)
    return content.decode() if isinstance(content, bytes) else content


def domain_of(op_type: str) -> str:
    """Give the domain of an operator written without one: standard ONNX first, then onnxruntime's own."""
    if op_type in _STRUCTURE or onnx.defs.has(op_type):
        return ""
    return MICROSOFT if op_type in CONTRIB_PURE else ""
