"""Biases that make up for what codes of weights shift, and how much each input channel counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir import tensors
from memoptc.ir.builder import Builder
from memoptc.ir.core import Op, Value
from memoptc.ir.ops import layout_of
from memoptc.passes.precision._quantize.numerics import Codes, Floats
from memoptc.runtime.channels import Channels


@dataclass(frozen=True)
class Correction:
    """Statistics of the channels that products and convolutions read.

    Args:
        channels: What calibration saw of their left sides.
        clip: Clip weights where the error of the product is least.
        bias: Take the mean of the product's error out of the bias.
        codes: Codes of weights that are decided already.
    """

    channels: Mapping[Value, Channels] = field(default_factory=dict)
    clip: bool = False
    bias: bool = False
    codes: Mapping[Value, Codes] = field(default_factory=dict)

    def of(self, value: Value | None) -> Channels | None:
        """Statistics of a value, as calibration saw it."""
        return None if value is None else self.channels.get(value)


NO_CORRECTION = Correction()


def output_axis(op: Op) -> int:
    """Axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    return layout_of(op).output_axis


def spread_inputs(op: Op, figures: Floats) -> Floats | None:
    """Bring a figure per input channel into the form of the weights; `None` where the channels do not fit."""
    tensor = op.operands[1].tensor
    assert tensor is not None
    shape = tensor.shape.numpy()
    if op.op_type != "Conv":
        axis = 1 - output_axis(op)
        return figures.reshape((1, -1) if axis == 1 else (-1, 1)) if len(figures) == shape[axis] else None
    groups = int(op.attrs.get("group", 1))
    if len(figures) != groups * shape[1]:
        return None
    parts = np.repeat(figures.reshape(groups, shape[1]), shape[0] // groups, axis=0)
    return parts.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))


def mean_shift(op: Op, weight: npt.NDArray[np.generic], codes: Codes, mean: Floats) -> Floats | None:
    """Shift of each output channel's mean by rounding the weights, `[outputs]`.

    The error of the weights times the mean of what they read (Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", 2019); padding of convolutions counts as if it were the mean.
    """
    spread = spread_inputs(op, mean)
    if spread is None or codes.axis is None:
        return None
    scales = codes.scales.astype(np.float64).reshape([-1 if i == codes.axis else 1 for i in range(weight.ndim)])
    error = (codes.codes.astype(np.float64) - codes.zero_point) * scales - weight.astype(np.float64)
    shift: Floats = (error * spread).sum(tuple(i for i in range(weight.ndim) if i != codes.axis))
    return shift


def shift_following(op: Op, offset: Floats) -> bool:
    """Take an offset out of the constant that is added to the result of a MatMul; gives whether there is one."""
    if op.op_type != "MatMul" or not op.result.single_use:
        return False
    (after,) = op.result.users
    if after.key != "Add" or after.graph is None:
        return False
    index = 1 if after.operands[0] is op.result else 0
    constant = after.operands[index].tensor
    if constant is None or constant.shape.numpy() != offset.shape:
        return False
    new = np.asarray(constant.numpy(), np.float64) - offset
    builder = Builder(after.graph, before=after, loc=after.loc.union(rule="correct-bias"))
    after.set_operand(index, builder.const(tensors.from_array(new.astype(np.float32)), after.operands[index].name))
    return True
