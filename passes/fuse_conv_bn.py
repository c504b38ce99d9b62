"""fuse-conv-bn: put normalisations, scales, offsets and zero padding into the convolution or product beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite import NoMatch, Rule, RulePass, op, opt, rest, rewrite

Array = npt.NDArray[np.float64]
FLOATS = (DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16)


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

    def spread(self, channels: int) -> tuple[Array, Array]:
        """Give both with one entry per channel."""
        return np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels)


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise NoMatch(why)


def _array(value: Value | None, what: str) -> Array:
    if value is None or value.tensor is None:
        raise NoMatch(f"{what} is not constant")
    _require(DType(value.tensor.dtype) in FLOATS, "no float weights")
    return np.asarray(value.tensor.numpy(), np.float64)


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
    factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return _Affine(factor, shift - mean * factor)


def _elementwise(node: Op, produced: Value, channel_axis: int) -> _Affine:
    """What Mul, Add, Sub or Div with a constant per channel does to the other operand."""
    first = node.operands[0] is produced
    other = node.operands[1] if first else node.operands[0]
    constant = _per_channel(_array(other, "the other operand"), produced, channel_axis)
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
            with np.errstate(divide="ignore"):
                return _Affine(1.0 / constant, zero)


def _per_channel(constant: Array, produced: Value, axis: int) -> Array:
    type_ = produced.type
    _require(isinstance(type_, TensorType) and type_.shape is not None, "shape unknown")
    assert isinstance(type_, TensorType)
    assert type_.shape is not None
    rank = len(type_.shape)
    _require(constant.ndim <= rank, "broadcasts")
    if constant.size == 1:
        return constant.reshape(1)
    shape = (1,) * (rank - constant.ndim) + constant.shape
    _require(all(extent == 1 for i, extent in enumerate(shape) if i != axis), "not per channel")
    _require(shape[axis] == type_.shape[axis], "broadcasts")
    return constant.reshape(-1)


def _fold(b: Builder, producer: Op, after: _Affine, result: Value) -> Value:
    """Give the producer with new weights."""
    weight = producer.input(1)
    w, bias = _array(weight, "the weight"), producer.input(2)
    assert weight is not None
    assert weight.tensor is not None
    _require(weight.single_use, "the weight has other users")
    attrs = dict(producer.attrs)
    match producer.op_type:
        case "Conv":
            scale, shift = after.spread(w.shape[0])
            new_w = w * scale.reshape(-1, *[1] * (w.ndim - 1))
        case "ConvTranspose":
            groups = int(attrs.get("group", 1))
            scale, shift = after.spread(w.shape[1] * groups)
            by_group = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
            new_w = (by_group * scale.reshape(groups, 1, w.shape[1], *[1] * (w.ndim - 2))).reshape(w.shape)
        case _:
            return _fold_product(b, producer, after, w, result)
    old = _array(bias, "the bias") if bias is not None else np.zeros(len(scale))
    return _rebuild(b, producer, producer.op_type, new_w, old * scale + shift, attrs, result)


def _fold_product(b: Builder, producer: Op, after: _Affine, w: Array, result: Value) -> Value:
    """Gemm, or a MatMul of a matrix, which becomes one."""
    attrs = dict(producer.attrs)
    left = producer.operand.type
    _require(w.ndim == 2 and isinstance(left, TensorType) and left.rank == 2, "not of matrices")
    transposed = bool(attrs.get("transB", 0))
    columns = w.shape[0] if transposed else w.shape[1]
    scale, shift = after.spread(columns)
    new_w = w * (scale[:, None] if transposed else scale[None, :])
    bias = producer.input(2)
    old = np.zeros(columns)
    if bias is not None:
        given = _array(bias, "the bias")
        _require(given.size == 1 or given.shape[-1] == given.size == columns, "the bias has rows")
        old = np.broadcast_to(given.reshape(-1), columns) * float(attrs.get("beta", 1.0))
    attrs["beta"] = 1.0
    return _rebuild(b, producer, "Gemm", new_w, old * scale + shift, attrs, result)


def _rebuild(
    b: Builder, producer: Op, op_type: str, w: Array, bias: Array, attrs: dict[str, Any], result: Value
) -> Value:
    weight = producer.operands[1]
    assert weight.tensor is not None
    dtype = DType(weight.tensor.dtype)
    kind = dtype.numpy()
    with np.errstate(over="ignore"):
        new_w, new_bias = w.astype(kind), bias.astype(kind)
    finite = np.isfinite(new_w.astype(np.float64)).all() and np.isfinite(new_bias.astype(np.float64)).all()
    _require(bool(finite), "overflows")
    held = producer.input(2)
    bias_name = held.name if held is not None else f"{weight.name}_bias"
    operands = [
        producer.operand,
        b.const(new_w, weight.name, dtype),
        b.const(new_bias, bias_name, dtype),
    ]
    return b.op(op_type, operands, attrs, type=result.type).result


_PRODUCERS = op.any("Conv", "ConvTranspose", "Gemm", "MatMul")


@rewrite(op.BatchNormalization(_PRODUCERS("_x", "_w", opt("_bias"), bind="producer"), rest("_parameters"), bind="node"))
def batch_norm(b: Builder, producer: Op, node: Op) -> Value:
    """BatchNormalization after a convolution or product."""
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


def _channel_axis(producer: Op) -> int:
    if producer.op_type in ("Conv", "ConvTranspose"):
        return 1
    type_ = producer.result.type
    return (type_.rank or 0) - 1 if isinstance(type_, TensorType) else -1


@rewrite(op.any("Conv", "AveragePool")(op.Pad("x", rest("_pads"), bind="pad"), rest("others"), bind="node"))
def zero_padding(b: Builder, x: Value, pad: Op, others: tuple[Value, ...], node: Op) -> Value:
    """A Pad with zeros before a convolution, or before an average that counts them."""
    amounts = _pad_amounts(pad)
    rank = len(amounts) // 2
    begin, end = amounts[:rank], amounts[rank:]
    _require(not any((*begin[:2], *end[:2])) and min(amounts) >= 0, "pads other axes")
    _require(node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"), "padding computed by the operator")
    pads = tuple(node.attrs.get("pads", (0,) * (2 * (rank - 2))))
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


FuseConvBn.rules = (batch_norm, scale_or_offset, subtract_or_divide, subtract_from, zero_padding)
RULES: tuple[Rule, ...] = FuseConvBn.rules
