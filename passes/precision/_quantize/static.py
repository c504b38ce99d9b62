"""The static form: Q/DQ pairs around operators, ranges from calibration data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import NOWHERE, Graph, Loc, Op, Value
from memoptc.ir.types import DType, TensorType
from memoptc.passes.precision._quantize.bias import bias_behind, will_be_joined
from memoptc.passes.precision._quantize.correct import (
    NO_CORRECTION,
    Correction,
    mean_shift,
    output_axis,
    shift_following,
    spread_inputs,
)
from memoptc.passes.precision._quantize.dynamic import run_time_product
from memoptc.passes.precision._quantize.existing_codes import decoded_weight, is_decoder, reads_codes
from memoptc.passes.precision._quantize.numerics import (
    Codes,
    Scale,
    activation_scale,
    bias_codes,
    weight_codes,
)
from memoptc.passes.precision._quantize.static_choice import Choice, is_float32

Memo: TypeAlias = dict[tuple[int, int, bool], Codes]
"""Codes of weights by the tensor's identity, the axis, and whether they are clipped."""


RULE = "quantize"
"""Name in the provenance of nodes."""


class StaticQuantizer:
    """Writes the choice into the graph.

    Args:
        graph: The top graph.
        choice: What to quantize.
        scales: Code of each tensor in `choice.tensors` that calibration saw.
        dtype: Element type of weight codes.
        bits: Bits of weights.
        stats: Counts what was done.
        activations: Element type of activation codes.
        correction: What calibration says of channels, for better codes and biases.
        memo: Codes of weights by tensor, to use and to add to: for many copies of one graph.
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
        correction: Correction = NO_CORRECTION,
        memo: Memo | None = None,
    ) -> None:
        self.graph, self.choice, self.scales = graph, choice, scales
        self.dtype, self.bits, self.stats = dtype, bits, stats
        # Codes per channel exist from opset 13 on, of 16 bits from 21; onnxruntime's own operators have them in any.
        self.domain = "" if (ops.opset_of(graph) or 0) >= (13 if activations.bitwidth == 8 else 21) else ops.MICROSOFT
        self.activations, self.correction = activations, correction
        self.existing = choice.existing
        self._coded: dict[tuple[Value, int], Codes] = {}
        self._memo: Memo = {} if memo is None else memo
        self._decoded: dict[tuple[Value, int | None], Value] = {}
        self._right_sides: dict[tuple[Value, int | None], tuple[Value, ...]] = {}

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
        for op in self.choice.run_time:
            self._at_run_time(op)
        for op in self.choice.decoded:
            weight = op.operands[1]
            assert weight.tensor is not None
            codes = self._codes(weight, output_axis(op))
            bias, scale = op.input(2), self._source(op.operand)
            if bias is not None and bias.tensor is not None and scale is not None and self.domain:
                # onnxruntime codes a float bias between coded operands by itself, but below opset 13 not validly
                self._code_bias(op, bias.tensor.numpy(), scale, codes)
            op.set_operand(1, self._weight(weight, codes))
            self.stats[f"weights only {op.op_type}"] += 1
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
        """True if an op was on codes all around when it came."""
        after = self.choice.result_of(op)
        may_be_float = ops.definition(op).integer is ops.IntegerKernel.FLOAT_RESULT
        return all(reads_codes(op)) and (may_be_float or after in self.existing.decoded)

    def _read_codes(self, value: Value) -> None:
        """Let what is quantized read the codes that the model has of a value, which are made before its first use."""
        real = self.existing.decoded[value]
        decoder, coder = real.op, real.op.operand.op if real.op is not None else None
        if decoder is None or coder is None:
            return
        reading = [(user, i) for user, i in value.uses if self.choice.quantized(user) and user is not coder]
        if not reading:
            return
        first = value.op.next if value.op is not None else self.graph.first
        users = {user for user, _ in reading}
        while first is not None and first is not decoder and first not in users:
            first = first.next
        between = set()
        op = first
        while op is not None and op is not decoder:
            between.add(op)
            op = op.next
        if first is not None and between:
            for op in dict.fromkeys((*(v.op for v in coder.operands), *(v.op for v in decoder.operands), decoder)):
                if op is decoder or op in between:
                    op.move_before(first)
        for user, index in reading:
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
        tensor = self._uncoded(value)
        return None if tensor is None else self.scales.get(tensor)

    def _uncoded(self, value: Value) -> Value | None:
        """The activation whose code a DequantizeLinear reads."""
        op = value.op
        if op is None or op.op_type != "DequantizeLinear" or op.operand.op is None:
            return None
        return op.operand.op.operands[0] if op.operand.op.op_type == "QuantizeLinear" else None

    def _pair(self, value: Value) -> None:
        scale, op = self.scales[value], value.op
        users = [(u, i) for u, i in value.uses]
        integer_producer = self.choice.quantized(op)
        origin = op or next((user for user, _ in users), None)  # an input is coded for the first that reads it
        loc = NOWHERE if origin is None else Loc(origin.loc.nodes)
        builder = Builder(self.graph, before=op.next if op is not None else self._first(), loc=loc)
        name = value.name
        codes = self._op(
            builder,
            "QuantizeLinear",
            [value, builder.const(np.float32(scale.scale), f"{name}_s"), self._zero(builder, scale, name)],
            TensorType(scale.dtype, value.shape),
            f"{name}_q",
        )
        assert codes.op is not None
        parts = [codes, *codes.op.operands[1:]]
        real = self._op(builder, "DequantizeLinear", parts, value.type, f"{name}_dq")
        for user, index in users:
            if (integer_producer or self.choice.quantized(user)) and not _is_moved_into_region(user):
                user.set_operand(index, real)
        self.stats["tensors coded"] += 1

    def _first(self) -> Op | None:
        for op in self.graph.ops:
            if not op.is_const and op.op_type != "absent":
                return op
        return None

    def _zero(self, builder: Builder, scale: Scale, name: str) -> Value:
        return builder.const(np.asarray(scale.zero_point, scale.dtype.numpy()), f"{name}_zp")

    def _op(self, builder: Builder, kind: str, operands: list[Value], type_: object, name: str, **attrs: int) -> Value:
        made = builder.op(kind, operands, attrs, domain=self.domain, type=type_, name=name)  # type: ignore[arg-type]
        made.loc = made.loc.union(rule=RULE)
        return made.result

    def _weighted(self, op: Op) -> None:
        weight, bias = op.operands[1], op.input(2)
        scale, seen = self._source(op.operand), self.correction.of(self._uncoded(op.operand))
        assert scale is not None
        assert weight.tensor is not None
        floats = weight.tensor.numpy()
        energy = None if seen is None or not self.correction.clip else spread_inputs(op, seen.mean_square)
        codes = self._codes(weight, output_axis(op), energy)
        offset = None
        if seen is not None and self.correction.bias:
            offset = mean_shift(op, floats, codes, seen.mean)
            if bias is None and offset is not None and shift_following(op, offset):
                self.stats["biases corrected"] += 1
        if op.op_type == "MatMul" and will_be_joined(op):
            self._code_bias_behind(op, np.float64(scale.scale) * codes.scales.astype(np.float64))
        if bias is not None:
            assert bias.tensor is not None
            floats = bias.tensor.numpy()
            if offset is not None:
                floats = np.asarray(floats, np.float64).reshape(-1) - offset
                self.stats["biases corrected"] += 1
            # Steps of 16-bit activations are so small that a bias may not fit; no kernel needs it in codes there.
            if not self._code_bias(op, floats, scale, codes) and scale.dtype.bitwidth == 8:
                self.stats[f"left {op.op_type}: bias too large for its scale"] += 1
                return
        op.set_operand(1, self._weight(weight, codes))
        self.stats[f"quantized {op.op_type}"] += 1

    def _at_run_time(self, op: Op) -> None:
        """Let a product code what it reads by its range in each run."""
        weight, seen = op.operands[1], self.correction.of(op.operand)
        energy = None if seen is None or not self.correction.clip else spread_inputs(op, seen.mean_square)
        codes = self._codes(weight, output_axis(op), energy)
        builder = Builder(self.graph, before=op, loc=op.loc.union(rule=RULE))
        if (weight, codes.axis) not in self._right_sides:
            content = codes.codes if codes.axis else np.ascontiguousarray(codes.codes.T)
            parts = ((content, "q"), (codes.scales, "s"), (codes.zero_points, "zp"))
            self._right_sides[weight, codes.axis] = tuple(
                builder.const(part, f"{weight.name}_{suffix}") for part, suffix in parts
            )
        op.replace_by(run_time_product(builder, op, self._right_sides[weight, codes.axis]))
        self.stats[f"quantized {op.op_type}"] += 1

    def _code_bias(self, op: Op, bias: npt.NDArray[np.generic], scale: Scale, codes: Codes) -> bool:
        """Put integers in the place of a bias; gives whether it fits them."""
        steps = np.float64(scale.scale) * codes.scales.astype(np.float64)
        spread = np.broadcast_to(np.asarray(bias, np.float64).reshape(-1), steps.shape)
        found = bias_codes(spread, steps.astype(np.float32))
        if found is not None:
            op.set_operand(2, self._bias(op, op.operands[2], found, steps.astype(np.float32)))
        return found is not None

    def _codes(self, weight: Value, axis: int, energy: npt.NDArray[np.float64] | None = None) -> Codes:
        """Codes of a weight; the first reader of a shared one decides."""
        assert weight.tensor is not None
        decided = self.correction.codes.get(weight)
        if decided is not None and decided.axis == axis:
            return decided
        if (weight, axis) not in self._coded:
            key = (id(weight.tensor), axis, energy is not None)
            if key not in self._memo:
                self._memo[key] = weight_codes(weight.tensor.numpy(), axis, self.dtype, self.bits, energy)
            self._coded[weight, axis] = self._memo[key]
        return self._coded[weight, axis]

    def _weight(self, weight: Value, codes: Codes) -> Value:
        key = (weight, codes.axis)
        if key not in self._decoded:
            loc = Loc(next((user.loc.nodes for user, _ in weight.uses), ()))
            builder = Builder(self.graph, before=self._first(), loc=loc)
            operands = [
                builder.const(codes.codes, f"{weight.name}_q"),
                builder.const(codes.scales, f"{weight.name}_s"),
                builder.const(codes.zero_points, f"{weight.name}_zp"),
            ]
            attrs = {} if codes.axis is None else {"axis": codes.axis}
            self._decoded[key] = self._op(
                builder, "DequantizeLinear", operands, weight.type, f"{weight.name}_dq", **attrs
            )
        return self._decoded[key]

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
        builder = Builder(self.graph, before=op, loc=Loc(op.loc.nodes))
        operands = [
            builder.const(codes, f"{bias.name}_q"),
            builder.const(steps, f"{bias.name}_s"),
        ]
        type_ = TensorType(DType.FLOAT, (len(codes),))
        return self._op(builder, "DequantizeLinear", operands, type_, f"{bias.name}_dq", axis=0)

    def _constant(self, value: Value) -> Value:
        """A constant operand of Add or Mul, coded like an activation."""
        assert value.tensor is not None
        array = value.tensor.numpy()
        scale = activation_scale(float(array.min()), float(array.max()), self.activations)
        ends = np.iinfo(scale.dtype.numpy())
        exact = np.round(array.astype(np.float64) / scale.scale) + scale.zero_point
        codes = np.clip(exact, ends.min, ends.max).astype(scale.dtype.numpy())
        loc = Loc(next((user.loc.nodes for user, _ in value.uses), ()))
        builder = Builder(self.graph, before=self._first(), loc=loc)
        operands = [
            builder.const(codes, f"{value.name}_q"),
            builder.const(np.float32(scale.scale), f"{value.name}_s"),
            self._zero(builder, scale, value.name),
        ]
        return self._op(builder, "DequantizeLinear", operands, value.type, f"{value.name}_dq")


def _is_moved_into_region(op: Op) -> bool:
    """True if a region reads what an operator that moves elements gives, or what others like it make of that.

    onnxruntime's optimizer moves a DequantizeLinear behind such operators, and ends the process (1.32) where it meets
    an operand that is none of the owner's own.
    """
    todo, seen = [op], {op}
    while todo:
        current = todo.pop()
        if not ops.definition(current).moves:
            continue
        users = {user for result in current.results for user in result.users}
        if any(user.graph is not op.graph for user in users):
            return True
        todo += users - seen
        seen |= users
    return False
