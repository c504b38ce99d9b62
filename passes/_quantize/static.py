"""The static form: Q/DQ pairs around operators, ranges from calibration data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.passes._quantize.bias import bias_behind, will_be_joined
from memoptc.passes._quantize.existing import Existing, decoded_weight, find_existing, is_decoder, reads_codes
from memoptc.passes._quantize.numerics import Codes, Scale, activation_scale, bias_codes, weight_codes
from memoptc.runtime.devices import Device


@dataclass
class Choice:
    """What will be quantized.

    Args:
        heavy: Products and convolutions, in order.
        light: Operators between them that can follow.
        tensors: Activations that get a code, in order of definition.
        absorbed: Relu and Clip that vanish into the code of their result, by operand.
        kept: Products and convolutions whose weights are codes already, in order.
        existing: Codes that the model brought along.
        device: What has integer kernels.
    """

    device: Device

    heavy: dict[Op, None] = field(default_factory=dict)
    light: dict[Op, None] = field(default_factory=dict)
    tensors: dict[Value, None] = field(default_factory=dict)
    absorbed: dict[Value, Op] = field(default_factory=dict)
    kept: dict[Op, None] = field(default_factory=dict)
    existing: Existing = field(default_factory=Existing)

    def result_of(self, op: Op) -> Value:
        """The op's result, behind an absorbed activation."""
        after = self.absorbed.get(op.result)
        return after.result if after is not None else op.result

    def quantized(self, op: Op | None) -> bool:
        """Whether the op runs on integers."""
        if op is None:
            return False
        absorbed = op.op_type in self.device.absorbed and op.operand in self.absorbed
        return absorbed or op in self.light or op in self.heavy or op in self.kept


def choose(
    graph: Graph, excluded: frozenset[str], stats: Counter[str], device: Device, *, outputs: bool = False
) -> Choice:
    """Decide what to quantize in the top graph; reasons for leaving something go into `stats`.

    Args:
        graph: The graph.
        excluded: Node names and operators to leave in float.
        stats: Gets the reasons.
        device: What has integer kernels.
        outputs: Whether outputs shall be codes, too, where an operator with an integer kernel makes them.
    """
    choice = Choice(device, existing=find_existing(graph))
    choice.tensors = dict.fromkeys(choice.existing.scales)
    for op in graph.ops:
        if op.key not in device.heavy:
            continue
        if decoded_weight(op.input(1)) is not None and is_float32(op.operand) and op.operand.tensor is None:
            choice.kept[op] = None
            continue
        reason = "excluded by name" if op.name in excluded or op.key in excluded else _why_not(op)
        if reason:
            stats[f"left {op.op_type}: {reason}"] += 1
            continue
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


def _absorb(op: Op, choice: Choice) -> None:
    if op.result.single_use:
        (after,) = op.result.users
        if after.key in choice.device.absorbed and after.graph is op.graph and after.operand is op.result:
            choice.absorbed[op.result] = after


def is_float32(value: Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    return value is not None and isinstance(value.type, TensorType) and value.type.dtype == DType.FLOAT


def _why_not(op: Op) -> str:
    weight, bias = op.input(1), op.input(2)
    if weight is None or weight.tensor is None:
        return "weights are computed"
    if not is_float32(op.operand) or weight.tensor.dtype != DType.FLOAT or op.operand.tensor is not None:
        return "no float32"
    if not np.isfinite(weight.tensor.numpy()).all():
        return "weights are not finite"
    if bias is not None and bias.tensor is None:
        return "bias is computed"
    if op.op_type == "Gemm":
        one = op.attrs.get("alpha", 1.0) == 1.0 and op.attrs.get("beta", 1.0) == 1.0
        if op.attrs.get("transA", 0) or not one:
            return "form of Gemm"
        if bias is not None and bias.tensor is not None:
            columns = weight.tensor.shape.numpy()[0 if op.attrs.get("transB", 0) else 1]
            if bias.tensor.size not in (1, columns):
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
    coded = [v in choice.tensors or (v.tensor is not None and op.op_type in ("Add", "Mul")) for v in operands]
    return all(coded) and any(v in choice.tensors for v in operands)


class Emitter:
    """Writes the choice into the graph.

    Args:
        graph: The top graph.
        choice: What to quantize.
        scales: Code of each tensor in `choice.tensors` that calibration saw.
        dtype: Element type of weight codes.
        bits: Bits of weights.
        stats: Counts what was done.
        activations: Element type of activation codes.
    """

    def __init__(
        self,
        graph: Graph,
        choice: Choice,
        scales: Mapping[Value, Scale],
        dtype: DType,
        bits: int,
        stats: Counter[str],
        activations: DType = DType.UINT8,
    ) -> None:
        self.graph, self.choice, self.scales = graph, choice, scales
        self.dtype, self.bits, self.stats = dtype, bits, stats
        # Codes per channel exist from opset 13 on, of 16 bits from 21; onnxruntime's own operators have them in any.
        self.domain = "" if (ops.opset_of(graph) or 0) >= (13 if activations.bitwidth == 8 else 21) else ops.MICROSOFT
        self.activations = activations
        self.coded: dict[Value, Value] = {}
        self.existing = choice.existing
        self._weights: dict[tuple[Value, int | None], tuple[Value, Codes]] = {}

    def emit(self) -> None:
        """Insert all pairs, then put integer weights in."""
        kept = {op for op in (*self.choice.kept, *self.choice.light) if self._complete(op)}
        for value in self.choice.tensors:
            if value in self.existing.decoded:
                self._read_codes(value)
            elif value in self.scales and not is_decoder(value.op):
                self._pair(value)
        for op in self.choice.kept:
            self._keep(op)
        for op in self.choice.heavy:
            if self._source(op.operand) is not None:
                self._weighted(op)
        for op in self.choice.light:
            for index, value in enumerate(op.operands):
                if value.tensor is not None and op.op_type in ("Add", "Mul"):
                    op.set_operand(index, self._constant(value))
            if op not in kept:
                self.stats[f"quantized {op.op_type}"] += 1
        for op in self.choice.kept:
            if op not in kept:
                self.stats[f"completed {op.op_type}"] += 1
        if kept:
            self.stats["kept: quantized already"] += len(kept)

    def _complete(self, op: Op) -> bool:
        """Whether an op was on codes all around when it came."""
        after = self.choice.result_of(op)
        coded = after in self.existing.decoded or (op.op_type in ops.FLOAT_RESULTS and after.is_output)
        return all(reads_codes(op)) and (coded or op.op_type in ops.FLOAT_RESULTS)

    def _read_codes(self, value: Value) -> None:
        """Let what is quantized read the codes that the model has of a value."""
        real = self.existing.decoded[value]
        for user, index in value.uses:
            if self.choice.quantized(user) and real.op is not None and user is not real.op:
                user.set_operand(index, real)

    def _keep(self, op: Op) -> None:
        """Leave an op's codes alone; give it a bias in codes where it has none."""
        bias, weight, scale = op.input(2), decoded_weight(op.input(1)), self._source(op.operand)
        if bias is None or bias.tensor is None or weight is None or scale is None or not is_float32(bias):
            return
        steps = np.float64(scale.scale) * weight.scales.astype(np.float64)
        content = np.asarray(bias.tensor.numpy(), np.float64).reshape(-1)
        steps = np.broadcast_to(steps, content.shape) if steps.size == 1 else steps
        if content.shape == steps.shape:
            codes = bias_codes(content, steps.astype(np.float32))
            if codes is not None:
                op.set_operand(2, self._bias(op, bias, codes, steps.astype(np.float32)))

    def _source(self, value: Value) -> Scale | None:
        """The code of the value that a DequantizeLinear gives."""
        if value in self.existing.scales and is_decoder(value.op):
            return self.existing.scales[value]
        op = value.op
        if op is None or op.op_type != "DequantizeLinear":
            return None
        quantize = op.operand.op
        return self.scales.get(quantize.operand) if quantize is not None else None

    def _pair(self, value: Value) -> None:
        scale, op = self.scales[value], value.op
        users = [(u, i) for u, i in value.uses]
        integer_producer = self.choice.quantized(op)
        builder = Builder(self.graph, before=op.next if op is not None else self._first())
        name = value.name
        codes = self._op(
            builder,
            "QuantizeLinear",
            [value, builder.const(np.float32(scale.scale), f"{name}_scale"), self._zero(builder, scale, name)],
            TensorType(scale.dtype, value.type.shape if isinstance(value.type, TensorType) else None),
            f"{name}_quantized",
        )
        assert codes.op is not None
        parts = [codes, *codes.op.operands[1:]]
        real = self._op(builder, "DequantizeLinear", parts, value.type, f"{name}_dequantized")
        for user, index in users:
            if integer_producer or self.choice.quantized(user):
                user.set_operand(index, real)
        self.coded[value] = real
        self.stats["tensors coded"] += 1

    def _first(self) -> Op | None:
        for op in self.graph.ops:
            if not op.is_const and op.op_type != "absent":
                return op
        return None

    def _zero(self, builder: Builder, scale: Scale, name: str) -> Value:
        return builder.const(np.asarray(scale.zero_point, scale.dtype.numpy()), f"{name}_zero_point")

    def _op(self, builder: Builder, kind: str, operands: list[Value], type_: object, name: str, **attrs: int) -> Value:
        made = builder.op(kind, operands, attrs, domain=self.domain, type=type_, name=name)  # type: ignore[arg-type]
        made.loc = made.loc.union(rule="quantize")
        return made.result

    def _weighted(self, op: Op) -> None:
        weight, bias = op.operands[1], op.input(2)
        axis = 0 if op.op_type == "Conv" or op.attrs.get("transB", 0) else 1
        scale = self._source(op.operand)
        assert scale is not None
        assert weight.tensor is not None
        codes = weight_codes(weight.tensor.numpy(), axis, self.dtype, self.bits)
        new_bias = None
        steps = np.float64(scale.scale) * codes.scales.astype(np.float64)
        if op.op_type == "MatMul" and will_be_joined(op):
            self._code_bias_behind(op, steps)
        if bias is not None:
            assert bias.tensor is not None
            spread = np.broadcast_to(np.asarray(bias.tensor.numpy(), np.float64).reshape(-1), steps.shape)
            new_bias = bias_codes(spread, steps.astype(np.float32))
            if new_bias is None and scale.dtype.bitwidth == 8:
                self.stats[f"left {op.op_type}: bias too large for its scale"] += 1
                return
            # Steps of 16-bit activations are so small that a bias may not fit; no kernel needs it in codes there.
            if new_bias is not None:
                op.set_operand(2, self._bias(op, bias, new_bias, steps.astype(np.float32)))
        op.set_operand(1, self._weight(op, weight, codes))
        self.stats[f"quantized {op.op_type}"] += 1

    def _weight(self, op: Op, weight: Value, codes: Codes) -> Value:
        key = (weight, codes.axis)
        if key not in self._weights:
            builder = Builder(self.graph, before=self._first())
            operands = [
                builder.const(codes.codes, f"{weight.name}_quantized"),
                builder.const(codes.scales, f"{weight.name}_scale"),
                builder.const(codes.zero_points, f"{weight.name}_zero_point"),
            ]
            attrs = {} if codes.axis is None else {"axis": codes.axis}
            real = self._op(builder, "DequantizeLinear", operands, weight.type, f"{weight.name}_dequantized", **attrs)
            self._weights[key] = (real, codes)
        return self._weights[key][0]

    def _code_bias_behind(self, op: Op, steps: npt.NDArray[np.float64]) -> None:
        found = bias_behind(op)
        if found is None:
            return
        add, index = found
        row = add.operands[index]
        assert row.tensor is not None
        codes = bias_codes(np.asarray(row.tensor.numpy()).reshape(-1), steps.astype(np.float32))
        if codes is not None:
            add.set_operand(index, self._bias(add, row, codes, steps.astype(np.float32)))

    def _bias(self, op: Op, bias: Value, codes: npt.NDArray[np.int32], steps: npt.NDArray[np.float32]) -> Value:
        builder = Builder(self.graph, before=op)
        operands = [
            builder.const(codes, f"{bias.name}_quantized"),
            builder.const(steps, f"{bias.name}_scale"),
            builder.const(np.zeros(steps.shape, np.int32), f"{bias.name}_zero_point"),
        ]
        type_ = TensorType(DType.FLOAT, (len(codes),))
        return self._op(builder, "DequantizeLinear", operands, type_, f"{bias.name}_dequantized", axis=0)

    def _constant(self, value: Value) -> Value:
        """A constant operand of Add or Mul, coded like an activation."""
        assert value.tensor is not None
        array = value.tensor.numpy()
        scale = activation_scale(float(array.min()), float(array.max()), self.activations)
        ends = np.iinfo(scale.dtype.numpy())
        exact = np.round(array.astype(np.float64) / scale.scale) + scale.zero_point
        codes = np.clip(exact, ends.min, ends.max).astype(scale.dtype.numpy())
        builder = Builder(self.graph, before=self._first())
        operands = [
            builder.const(codes, f"{value.name}_quantized"),
            builder.const(np.float32(scale.scale), f"{value.name}_scale"),
            self._zero(builder, scale, value.name),
        ]
        return self._op(builder, "DequantizeLinear", operands, value.type, f"{value.name}_dequantized")


def share_scales(choice: Choice, scales: dict[Value, Scale]) -> None:
    """Give the result of an operator that only moves elements the code of its operand."""
    for op in choice.light:
        result = choice.result_of(op)
        if op.op_type in choice.device.same_scale and op.operand in scales and result not in choice.existing.scales:
            scales[result] = scales[op.operand]
