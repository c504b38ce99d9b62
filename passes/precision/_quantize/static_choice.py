"""Choose what the static form quantizes: products and convolutions, and the operators between them that can follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Tensor, Value
from memoptc.ir.not_finite import behind_infinite_weights, magnitude_of
from memoptc.ir.ops import layout_of
from memoptc.ir.tensors import nbytes
from memoptc.ir.types import DType
from memoptc.passes.precision._quantize.existing_codes import Existing, decoded_weight, find_existing
from memoptc.passes.precision._quantize.numerics import SMALLEST_CODED, Scale
from memoptc.runtime.devices import Device

KEPT_TWICE = 4096
"""Bytes of a weight from which its codes are not worth keeping beside it."""


@dataclass
class Choice:
    """Tensors and operators to quantize.

    Args:
        heavy: Products and convolutions, in order.
        light: Operators between them that can follow.
        tensors: Activations that get a code, in order of definition.
        absorbed: Relu and Clip that vanish into the code of their result, by operand.
        kept: Products and convolutions whose weights are codes already, in order.
        existing: Codes that the model brought along.
        device: What has integer kernels.
        decoded: Products and convolutions in float whose weights are stored as integers.
        run_time: Products that code what they read by its range in each run.
    """

    device: Device

    heavy: dict[Op, None] = field(default_factory=dict)
    light: dict[Op, None] = field(default_factory=dict)
    tensors: dict[Value, None] = field(default_factory=dict)
    absorbed: dict[Value, Op] = field(default_factory=dict)
    kept: dict[Op, None] = field(default_factory=dict)
    existing: Existing = field(default_factory=Existing)
    decoded: dict[Op, None] = field(default_factory=dict)
    run_time: dict[Op, None] = field(default_factory=dict)

    def result_of(self, op: Op) -> Value:
        """The op's result, behind an absorbed activation."""
        after = self.absorbed.get(op.result)
        return after.result if after is not None else op.result

    def quantized(self, op: Op | None) -> bool:
        """True if the op runs on integers."""
        if op is None:
            return False
        absorbed = op.op_type in self.device.absorbed and op.operand in self.absorbed
        return absorbed or op in self.light or op in self.heavy or op in self.kept


def choose(
    graph: Graph,
    excluded: frozenset[str],
    stats: Counter[str],
    device: Device,
    *,
    outputs: bool = False,
    decoded: frozenset[str] = frozenset(),
    run_time: frozenset[str] = frozenset(),
) -> Choice:
    """Decide what to quantize in the top graph; reasons for leaving something go into `stats`.

    Args:
        graph: The graph.
        excluded: Node names and operators to leave in float.
        stats: Gets the reasons.
        device: What has integer kernels.
        outputs: Whether outputs shall be codes, too, where an operator with an integer kernel makes them.
        decoded: Names of nodes that compute in float, with weights stored as integers.
        run_time: Names of products that code what they read by its range in each run.
    """
    choice = Choice(device, existing=find_existing(graph))
    choice.tensors = dict.fromkeys(choice.existing.scales)
    spoiled = graph.analysis(behind_infinite_weights)
    for op in graph.ops:
        if op.key not in device.heavy:
            continue
        if decoded_weight(op.input(1)) is not None and is_float32(op.operand) and op.operand.tensor is None:
            choice.kept[op] = None
            continue
        reason = "excluded by name" if op.name in excluded or op.key in excluded else _why_not(op, device)
        if not reason and op.operand in spoiled and op.name not in decoded:
            reason = "it reads what weights that hold NaN or Inf made"
        if reason:
            stats[f"left {op.op_type}: {reason}"] += 1
        elif op.name in decoded:
            choice.decoded[op] = None
        elif op.name in run_time:
            choice.run_time[op] = None
        else:
            choice.heavy[op] = None
    for op in graph.ops:
        if op in choice.heavy or op in choice.kept:
            choice.tensors[op.operand] = None
            if op.op_type == "Conv":
                _absorb(op, choice)
                choice.tensors[choice.result_of(op)] = None
            elif outputs and op.result.is_output:
                choice.tensors[op.result] = None
        elif (outputs or not (op.results and op.result.is_output)) and _can_follow(op, choice, excluded):
            choice.light[op] = None
            if op.op_type in ("Add", "Mul"):
                _absorb(op, choice)
            choice.tensors[choice.result_of(op)] = None
    return choice


def may_code_at_run_time(choice: Choice) -> Iterator[Op]:
    """Products that can find the range of what they read in each run: none that reads codes anyway.

    No range then cuts off what calibration has not seen; the price is one more look at what is read.
    """
    for op in (op for op in choice.heavy if _is_product(op, choice)):
        readers = [user for user in op.operand.users if user in choice.heavy or user in choice.light]
        if not choice.quantized(op.operand.op) and all(_is_product(user, choice) for user in readers):
            yield op


def _is_product(op: Op, choice: Choice) -> bool:
    """True for a product; convolutions have a window."""
    return op in choice.heavy and not layout_of(op).taps


def alone_on_integers(choice: Choice) -> Iterator[Op]:
    """Convolutions that read floats, and whose result nothing reads in codes: both are coded for them alone.

    Operators that only move elements, and follow into codes for that, do not count.
    """
    for op in choice.heavy:
        if _is_product(op, choice) or choice.quantized(op.operand.op):
            continue
        todo, alone = [choice.result_of(op)], True
        while todo:
            for user in todo.pop().users:
                moves = user in choice.light and user.op_type in choice.device.same_scale
                alone &= moves or not choice.quantized(user)
                todo += [choice.result_of(user)] if moves else []
        if alone:
            yield op


def _absorb(op: Op, choice: Choice) -> None:
    if op.result.single_use:
        (after,) = op.result.users
        if after.key in choice.device.absorbed and after.graph is op.graph and after.operand is op.result:
            choice.absorbed[op.result] = after


def is_float32(value: Value | None) -> bool:
    """True if a value is a float32 tensor."""
    return value is not None and value.dtype == DType.FLOAT


def _why_not(op: Op, device: Device) -> str:
    weight, bias = op.input(1), op.input(2)
    if weight is None or weight.tensor is None:
        return "weights are computed"
    if not is_float32(op.operand) or weight.tensor.dtype != DType.FLOAT or op.operand.tensor is not None:
        return "no float32"
    if not weight.tensor.size:
        return "an extent is 0"
    for other, _ in weight.uses if nbytes(weight.tensor) >= KEPT_TWICE else ():
        if other.key not in device.heavy or other.graph is not op.graph:
            return f"{other.op_type} needs the weight in float, so that its codes would come on top"
    if not np.isfinite(magnitude_of(weight.tensor)):
        return "weights are not finite"
    if 0 < magnitude_of(weight.tensor) < SMALLEST_CODED:
        return "weights are too small for a scale"
    if bias is not None and bias.tensor is None:
        return "bias is computed"
    if op.op_type == "Gemm":
        one = op.attrs.get("alpha", 1.0) == 1.0 and op.attrs.get("beta", 1.0) == 1.0
        if op.attrs.get("transA", 0) or not one:
            return "form of Gemm"
        if bias is not None and bias.tensor is not None:
            columns = weight.tensor.shape.numpy()[layout_of(op).output_axis]
            row = bias.tensor.size == columns and bias.tensor.shape.numpy()[-1] == columns
            if bias.tensor.size != 1 and not row:
                return "bias has rows"
    if op.op_type == "MatMul" and len(weight.tensor.shape) != 2:
        return "weights are no matrix"
    return ""


def _can_follow(op: Op, choice: Choice, excluded: frozenset[str]) -> bool:
    if op.domain or op.name in excluded or op.op_type in excluded or not op.results or not is_float32(op.result):
        return False
    if op.graph is None:
        return False
    if op.op_type in choice.device.same_scale:
        version = ops.opset_of(op.graph) or 0
        nearest = op.op_type != "Resize" or op.attrs.get("mode", "nearest") in ("nearest", b"nearest")
        one_result = all(not r.has_uses for r in op.results[1:])
        fits = version >= choice.device.same_scale[op.op_type] and nearest and one_result
        return fits and op.operand in choice.tensors
    if op.op_type not in choice.device.light:
        return False
    if op.op_type == "AveragePool" and op.attrs.get("ceil_mode", 0):
        return False
    operands = [v for v in op.operands if not v.is_absent]
    coded = [v in choice.tensors or (op.op_type in ("Add", "Mul") and _can_be_coded(v.tensor)) for v in operands]
    return all(coded) and any(v in choice.tensors for v in operands)


def _can_be_coded(constant: Tensor | None) -> bool:
    """True if a constant operand has a range."""
    return constant is not None and constant.size > 0 and bool(np.isfinite(magnitude_of(constant)))


def share_scales(choice: Choice, scales: dict[Value, Scale]) -> None:
    """Give the result of an operator that only moves elements the code of its operand."""
    for op in choice.light:
        result = choice.result_of(op)
        if op.op_type in choice.device.same_scale and op.operand in scales and result not in choice.existing.scales:
            scales[result] = scales[op.operand]
