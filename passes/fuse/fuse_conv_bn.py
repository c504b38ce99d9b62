"""fuse-conv-bn: put normalisations, scales, offsets and zero padding into the convolution or product beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.tensors import from_array
from memoptc.ir.types import DType
from memoptc.passes.simplify._simplify.facts import require_plain_view, shape_of, splat_of
from memoptc.passes.simplify._simplify.layout import VIEWS
from memoptc.rewrite import NoMatch, Rule, RulePass, const, op, opt, rest, rewrite

Array = npt.NDArray[np.float64]
FLOATS = (DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16)
_LARGEST = 1 << 25
"""Elements of a tensor of equal ones that may be looked at as a whole."""
_BLOCK = 1 << 18
"""Elements of a weight that are in float64 at once."""
_SMALL = 256
"""Bytes up to which a constant is not worth a node that makes it."""


class FuseConvBn(RulePass):
    """Fold what scales or shifts whole channels into the weights of the operator before it.

    Into Conv, ConvTranspose, Gemm and MatMul with constant weights: BatchNormalization (inference), and Mul,
    Add, Sub, Div by a constant per channel. Into Conv and AveragePool: a Pad with zeros before them. New
    weights are computed in float64 and rounded once; weights with other users stay as they are, since a
    second copy would make the file grow.
    """


@dataclass(frozen=True)
class _Affine:
    """`y = scale * x + shift`, per channel; arrays of size 1 mean the same for all channels."""

    scale: Array
    shift: Array

    def per_channel(self, channels: int) -> tuple[Array, Array]:
        """Broadcast scale and shift to `[channels]`."""
        return np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels)


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise NoMatch(why)


def _array(value: Value | None, what: str) -> Array:
    """Give a constant in float64; equal elements that the graph makes at run time are one, too."""
    if value is None:
        raise NoMatch(f"{what} is not given")
    _require(_dtype(value) in FLOATS, "no float weights")
    if value.tensor is not None:
        return np.asarray(value.tensor.numpy(), np.float64)
    splat, shape = splat_of(value), value.static_shape
    if splat is None or shape is None or math.prod(shape) > _LARGEST:
        raise NoMatch(f"{what} is not constant")
    return np.broadcast_to(np.asarray(splat, np.float64), shape)


def _dtype(value: Value) -> DType:
    return value.dtype or DType.UNDEFINED


def _batch_norm(node: Op) -> _Affine:
    _require(not any(r.has_uses for r in node.results[1:]), "statistics are used")
    _require(not ops.default_of(node, "training_mode"), "training")
    version = ops.opset_of(node.graph) if node.graph is not None else None
    if version is not None and version < 14:
        _require(all(r.omitted for r in node.results[1:]), "training")
    if version is not None and version < 7:
        _require(bool(node.attrs.get("is_test", 0)), "training")
    _require(node.attrs.get("spatial", 1) == 1, "not per channel")
    scale, shift, mean, variance = (_array(v, "a parameter of BatchNormalization") for v in node.operands[1:5])
    epsilon = float(np.float32(node.attrs.get("epsilon", 1e-5)))  # attributes have 32 bits, also of a double's operator
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
    _require(bool(np.isfinite(factor).all()), "a variance is not positive")
    return _Affine(factor, shift - mean * factor)


def _elementwise(node: Op, produced: Value, channel_axis: int) -> _Affine:
    """Factor and shift that Mul, Add, Sub or Div with a constant per channel applies to the other operand."""
    _require("axis" not in node.attrs, "broadcasts as before opset 7")
    first = node.operands[0] is produced
    other = node.operands[1] if first else node.operands[0]
    constant = _per_channel(other, produced, channel_axis)
    one, zero = np.ones(1), np.zeros(1)
    match node.op_type:
        case "Mul":
            return _Affine(constant, zero)
        case "Add":
            return _Affine(one, constant)
        case "Sub":
            return _Affine(one, -constant) if first else _Affine(-one, constant)
        case _:
            _require(first, "divides the other way")
            _require(bool(constant.all()), "divides by zero")
            return _Affine(1.0 / constant, zero)


def _per_channel(value: Value, produced: Value, axis: int) -> Array:
    """Give a constant of one number per channel; shapes are looked at before its content."""
    shape = value.static_shape
    if produced.shape is None or shape is None:
        raise NoMatch("shape unknown")
    rank = len(produced.shape)
    _require(len(shape) <= rank, "broadcasts")
    if math.prod(shape) != 1:
        padded = (1,) * (rank - len(shape)) + shape
        _require(all(extent == 1 for i, extent in enumerate(padded) if i != axis), "not per channel")
        _require(padded[axis] == produced.shape[axis], "broadcasts")
    return _array(value, "the other operand").reshape(-1)


def _fold(b: Builder, producer: Op, after: _Affine, result: Value) -> Value:
    """Give the producer with new weights."""
    weight, bias = producer.operands[1], producer.input(2)
    _require(weight.single_use or weight.tensor is None, "the weight has other users")
    shape = weight.static_shape
    if shape is None:
        raise NoMatch("the weight is not constant")
    attrs = dict(producer.attrs)
    match producer.op_type:
        case "Conv":
            scale, shift = after.per_channel(shape[0])
            factors = scale.reshape(-1, *[1] * (len(shape) - 1))
        case "ConvTranspose":
            groups = int(attrs.get("group", 1))
            scale, shift = after.per_channel(shape[1] * groups)
            by_group = np.repeat(scale.reshape(groups, shape[1]), shape[0] // groups, axis=0)
            factors = by_group.reshape(*by_group.shape, *[1] * (len(shape) - 2))
        case _:
            return _fold_product(b, producer, after, shape, result)
    old = _array(bias, "the bias") if bias is not None else np.zeros(len(scale))
    new_w = _new(b, weight, _scaled(weight, factors))
    operands = [producer.operand, new_w, _new(b, weight, old * scale + shift, _bias_name(producer))]
    return b.op(producer.op_type, operands, attrs, type=result.type).result


def _fold_product(b: Builder, producer: Op, after: _Affine, shape: tuple[int, ...], result: Value) -> Value:
    """Gemm, or a MatMul by a matrix: of a matrix it becomes a Gemm, of more it takes only a scale."""
    attrs = dict(producer.attrs)
    left, weight = producer.operand, producer.operands[1]
    _require(len(shape) == 2 and left.rank is not None, "not by a matrix")
    transposed = bool(attrs.get("transB", 0))
    columns = shape[0] if transposed else shape[1]
    scale, shift = after.per_channel(columns)
    factors = scale[:, None] if transposed else scale[None, :]
    if producer.op_type == "MatMul" and not shift.any():
        _require((left.rank or 0) >= 2, "of a vector")
        return b.op("MatMul", [producer.operand, _new(b, weight, _scaled(weight, factors))], type=result.type).result
    _require(left.rank == 2, "not of matrices")
    _require(producer.op_type == "Gemm" or _has_gemm(producer), "no Gemm for this")
    bias = producer.input(2)
    old = np.zeros(columns)
    if bias is not None:
        given = _array(bias, "the bias")
        _require(given.size == 1 or given.shape[-1] == given.size == columns, "the bias has rows")
        old = np.broadcast_to(given.reshape(-1), columns) * float(attrs.get("beta", 1.0))
    attrs["beta"] = 1.0
    new_bias = _new(b, weight, old * scale + shift, _bias_name(producer))
    new_w = _new(b, weight, _scaled(weight, factors))
    return b.op("Gemm", [producer.operand, new_w, new_bias], attrs, type=result.type).result


def _scaled(weight: Value, factors: Array) -> npt.NDArray[Any]:
    """Multiply a constant weight in float64, some rows at a time, and round once to its element type."""
    _require(_dtype(weight) in FLOATS, "no float weights")
    w = _array(weight, "the weight") if weight.tensor is None else weight.tensor.numpy()
    factors = np.broadcast_to(factors, (*factors.shape[:1], *w.shape[1:]))
    scaled = np.empty(w.shape, _dtype(weight).numpy())
    rows = max(1, _BLOCK * len(w) // max(1, w.size))
    with np.errstate(over="ignore"):
        for start in range(0, len(w), rows):
            block = slice(start, start + rows)
            scaled[block] = w[block].astype(np.float64) * (factors if len(factors) == 1 else factors[block])
    return scaled


def _has_gemm(product: Op) -> bool:
    """True if a MatMul can as well be a Gemm with a bias."""
    version = ops.opset_of(product.graph) if product.graph is not None else None
    return _dtype(product.operand) in (DType.FLOAT, DType.DOUBLE) and (version is None or version >= 7)


def _bias_name(producer: Op) -> str:
    held = producer.input(2)
    return held.name if held is not None else f"{producer.operands[1].name}_bias"


def _new(b: Builder, like: Value, content: npt.NDArray[Any], name: str = "") -> Value:
    """Make new weights of the element type of old ones; equal elements stay a node that makes them."""
    dtype = _dtype(like)
    with np.errstate(over="ignore"):
        rounded = content.astype(dtype.numpy(), copy=False)
    _require(bool(np.isfinite(rounded).all()), "overflows")
    if like.tensor is None and rounded.nbytes > _SMALL:
        first = rounded.reshape(-1)[:1]
        _require(bool((rounded == first).all()), "the file would grow")
        made = b.ConstantOfShape(np.asarray(rounded.shape, np.int64), value=from_array(first))
        return made  # type: ignore[no-any-return]
    return b.const(rounded, name or like.name, dtype)


_PRODUCERS = op.any("Conv", "ConvTranspose", "Gemm", "MatMul")


@rewrite(op.BatchNormalization(_PRODUCERS("_x", "_w", opt("_bias"), bind="producer"), rest("_parameters"), bind="node"))
def batch_norm(b: Builder, producer: Op, node: Op) -> Value:
    """BatchNormalization after a convolution or product."""
    _require(_channel_axis(producer) == 1, "scales another axis than the columns")
    return _fold(b, producer, _batch_norm(node), node.result)


@rewrite(op.any("Mul", "Add")(_PRODUCERS("_x", "_w", opt("_bias"), bind="producer"), "_other", bind="node"))
def scale_or_offset(b: Builder, producer: Op, node: Op) -> Value:
    """Mul or Add of a constant per channel."""
    return _fold(b, producer, _elementwise(node, producer.result, _channel_axis(producer)), node.result)


@rewrite(op.any("Sub", "Div")(_PRODUCERS("_x", "_w", opt("_bias"), bind="producer"), "_other", bind="node"))
def subtract_or_divide(b: Builder, producer: Op, node: Op) -> Value:
    """Sub of, or Div by, a constant per channel."""
    return _fold(b, producer, _elementwise(node, producer.result, _channel_axis(producer)), node.result)


@rewrite(op.Sub("_other", _PRODUCERS("_x", "_w", opt("_bias"), bind="producer"), bind="node"))
def subtract_from(b: Builder, producer: Op, node: Op) -> Value:
    """A constant per channel minus the result."""
    return _fold(b, producer, _elementwise(node, producer.result, _channel_axis(producer)), node.result)


@rewrite(op.any("Mul", "Add", "Sub", "Div")(op.BatchNormalization("x", rest("_p"), bind="norm"), "_other", bind="node"))
def into_batch_norm(b: Builder, x: Value, norm: Op, node: Op) -> Value:
    """A scale or offset after a normalisation that stays."""
    _batch_norm(norm)
    after = _elementwise(node, norm.result, 1)
    scale, bias = norm.operands[1], norm.operands[2]
    _require(_dtype(scale) == _dtype(bias) == _dtype(node.result), "the parameters are of another type")
    old_scale, old_bias = _array(scale, "the scale"), _array(bias, "the bias")
    factor, shift = after.per_channel(old_scale.size)
    operands = [x, _new(b, scale, old_scale * factor), _new(b, bias, old_bias * factor + shift), *norm.operands[3:]]
    return b.op("BatchNormalization", operands, dict(norm.attrs), type=node.result.type).result


@rewrite(
    op.Add(op.MatMul(op.any(*VIEWS)("x", rest("_a"), keep=True, bind="view"), const("w"), bind="product"), const("c"))
)
def matmul_of_view(b: Builder, x: Value, view: Op, product: Op, w: Value, c: Value) -> Value:
    """A product of a view with an offset is a Gemm between two views, of which simplify then merges what it can."""
    require_plain_view(view)
    _require(_dtype(w) in FLOATS and _dtype(c) in FLOATS, "no float weights")
    weight, offset = w.static_shape or (), c.static_shape or ()
    shape = shape_of(product.result)
    target = [d if isinstance(d, int) else -1 for d in shape]
    _require(len(weight) == 2 and len(shape) > 2 and _has_gemm(product), "no Gemm for this")
    _require(bool(offset) and math.prod(offset) == offset[-1] == weight[1], "the offset has rows")
    _require(len(offset) <= len(shape), "the offset has more axes")
    _require(target.count(-1) <= 1 and 0 not in target and min(weight) > 0, "shape not known enough")
    rows = b.Reshape(x, np.asarray([-1, weight[0]], np.int64))
    flat = c if len(offset) == 1 else _new(b, c, _array(c, "the offset").reshape(-1))
    return b.Reshape(b.Gemm(rows, w, flat), np.asarray(target, np.int64))  # type: ignore[no-any-return]


def _channel_axis(producer: Op) -> int:
    if producer.op_type in ("Conv", "ConvTranspose"):
        return 1
    return (producer.result.rank or 0) - 1


@rewrite(op.any("Conv", "AveragePool")(op.Pad("x", rest("_pads"), bind="pad"), rest("others"), bind="node"))
def zero_padding(b: Builder, x: Value, pad: Op, others: tuple[Value, ...], node: Op) -> Value:
    """A Pad with zeros before a convolution, or before an average that counts them."""
    amounts = _pad_amounts(pad)
    rank = len(amounts) // 2
    begin, end = amounts[:rank], amounts[rank:]
    _require(not any((*begin[:2], *end[:2])) and min(amounts) >= 0, "pads other axes")
    automatic = node.attrs.get("auto_pad", "NOTSET")
    _require(automatic in ("NOTSET", "VALID"), "padding computed by the operator")
    none = (0,) * (2 * (rank - 2))
    pads = none if automatic == "VALID" else tuple(node.attrs.get("pads", none))  # VALID is none, whatever they say
    attrs = dict(node.attrs)
    if node.op_type == "AveragePool":
        version = ops.opset_of(node.graph) if node.graph is not None else None
        _require(version is None or version >= 7, "padding cannot be counted yet")
        window = tuple(attrs["kernel_shape"])
        padded = [p + q for p, q in zip(pads, (*begin[2:], *end[2:]), strict=True)]
        _require(all(p < w for p, w in zip(padded, (*window, *window), strict=True)), "pads more than the window")
        _require(not attrs.get("ceil_mode", 0), "rounds up")
        _require(bool(attrs.get("count_include_pad", 0)) or not any(pads), "padding is not counted")
        attrs["count_include_pad"] = 1
    attrs.pop("auto_pad", None)
    attrs["pads"] = tuple(p + q for p, q in zip(pads, (*begin[2:], *end[2:]), strict=True))
    return b.op(node.op_type, [x, *others], attrs, type=node.result.type).result


def _pad_amounts(pad: Op) -> tuple[int, ...]:
    _require(pad.attrs.get("mode", "constant") in ("constant", b"constant"), "no constant padding")
    _require(pad.input(3) is None, "pads some axes")
    if "pads" in pad.attrs:
        _require(pad.attrs.get("value", 0.0) == 0, "pads with something else")
        return tuple(pad.attrs["pads"])
    value = pad.input(2)
    if value is not None:
        _require(bool((_array(value, "the padding value") == 0).all()), "pads with something else")
    given = pad.input(1)
    _require(given is not None and given.tensor is not None, "padding is computed")
    assert given is not None
    assert given.tensor is not None
    return tuple(int(v) for v in given.tensor.numpy().reshape(-1))


FuseConvBn.rules = (
    batch_norm, scale_or_offset, subtract_or_divide, subtract_from, into_batch_norm, matmul_of_view, zero_padding,
)  # fmt: skip
RULES: tuple[Rule, ...] = FuseConvBn.rules
