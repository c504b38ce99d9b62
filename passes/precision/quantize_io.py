"""quantize-io: let the caller hand in and get the codes (or the half floats) that the model works with."""

from __future__ import annotations

from typing import ClassVar

from memoptc.coded_interface import Coded, CodedInterface, read_coded_interface, write_coded_interface
from memoptc.ir import ops
from memoptc.ir.builder import Builder
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InputError
from memoptc.ir.types import DType, TensorType
from memoptc.pass_base import Context, Pass
from memoptc.report.model import Decision

_HALF = {"": None, "float16": DType.FLOAT16}


class QuantizeIo(Pass):
    """Move the interface of the model behind the first QuantizeLinear and before the last DequantizeLinear.

    An input that only goes into one code becomes that code, and so does an output that comes from one; what else reads
    the input gets it decoded. Scales and zero points are written into the model's metadata (`memoptc.io`) and into the
    report, since callers need them. Inputs and outputs without a code keep their dtype, and the report says why.

    Args:
        half: "float16" gives every float32 input and output that dtype; "" only those that are cast to and from it.
    """

    kept: ClassVar[bool] = True
    changes_interface: ClassVar[bool] = True
    half: str = ""

    def __post_init__(self) -> None:
        if self.half not in _HALF:
            raise InputError(f"quantize-io has no half {self.half!r}.", hint='There are: "" and "float16".')

    def run(self, graph: Graph, context: Context) -> None:
        """Change what can be changed, and say what callers have to hand in."""
        interface = read_coded_interface(graph)
        left = []
        wanted = _HALF[self.half]
        for value in graph.inputs:
            if _is_float32(value):
                found = _input(graph, value, wanted)
                if isinstance(found, Coded):
                    interface.inputs[value.name] = found
                else:
                    left.append((f"input {value.name!r} stays float32", found))
        for index, info in enumerate(graph.outputs_info):
            if _is_float32(graph.outputs[index]):
                found = _output(graph, index, wanted)
                if isinstance(found, Coded):
                    interface.outputs[info.name] = found
                else:
                    left.append((f"output {info.name!r} stays float32", found))
        write_coded_interface(graph, interface)
        context.stats["inputs and outputs coded"] += len(interface.inputs) + len(interface.outputs)
        _report(interface, left, context)


def _is_float32(value: Value) -> bool:
    return value.dtype == DType.FLOAT


def _input(graph: Graph, value: Value, half: DType | None) -> Coded | str:
    if value in graph.defaults:
        return "it has a default"
    if value.is_output:
        return "it is also an output"
    codes: dict[Coded, list[Op]] = {}
    for user in value.users:
        coded = _code_of(user) if user.op_type in ("QuantizeLinear", "Cast") and user.operand is value else None
        if coded is not None and user.graph is graph:
            codes.setdefault(coded, []).append(user)
    if not codes and half is not None:
        codes = {Coded(half): []}
    if len(codes) != 1:
        return "it is coded in several ways" if codes else "nothing quantizes it as a whole"
    ((coded, coders),) = codes.items()
    shape = value.shape
    # what reads extents reads no numbers: codes are as good to it
    wide = [(u, i) for u, i in value.uses if u not in coders and u.key not in ops.EXTENTS]
    model: list[Value] = list(coders[0].operands[1:]) if coders else []
    for coder in coders:
        coder.result.replace_by(value)
    if wide:
        builder = Builder(graph, before=_first(graph))
        kind, domain = ("Cast", "") if coded.scale is None else ("DequantizeLinear", coders[0].domain)
        attrs = {"to": int(DType.FLOAT)} if coded.scale is None else {}
        # Constants of their own: those of the coder may be defined later.
        model = [builder.const(v.tensor, v.name) if v.tensor is not None else v for v in model]
        real = builder.op(kind, [value, *model], attrs, domain=domain, type=TensorType(DType.FLOAT, shape)).result
        for user, index in wide:
            user.set_operand(index, real)
    for coder in coders:
        coder.erase()
    value.type = TensorType(coded.dtype, shape)
    return coded


def _output(graph: Graph, index: int, half: DType | None) -> Coded | str:
    value, info = graph.outputs[index], graph.outputs_info[index]
    op = value.op
    if op is None or value.tensor is not None:
        return "it is an input or a constant"
    coded = _code_of(op) if op.op_type in ("DequantizeLinear", "Cast") else None
    narrow = op.operand if coded is not None else None
    shape = value.shape
    if coded is None and half is not None:
        coded = Coded(half)
        builder = Builder(graph, loc=op.loc)
        narrow = builder.op("Cast", [value], {"to": int(half)}, type=TensorType(half, shape)).result
    if coded is None or narrow is None:
        return "nothing quantizes it as a whole"
    if narrow.op is None:
        return "it is an input or a constant"
    outputs = list(graph.outputs)
    outputs[index] = narrow
    declared = shape if info.tensor_type is None else info.shape
    info.type = TensorType(coded.dtype, declared)
    graph.set_outputs(outputs, graph.outputs_info)
    if not value.has_uses:
        op.erase()
    return coded


def _code_of(op: Op) -> Coded | None:
    """The code between an op's operand and result; `None` when it is none of a whole tensor, or is computed."""
    narrow = op.result if op.op_type == "QuantizeLinear" else op.operand
    if op.op_type == "Cast":
        narrow = op.result if _is_float32(op.operand) else op.operand
        wide = op.operand if narrow is op.result else op.result
        half = narrow.dtype == DType.FLOAT16
        return Coded(DType.FLOAT16) if half and _is_float32(wide) else None
    if op.domain not in ("", ops.MICROSOFT) or narrow.dtype is None:
        return None
    scale, zero = op.operands[1], op.input(2)
    if scale.tensor is None or scale.tensor.size != 1 or (zero is not None and zero.tensor is None):
        return None
    point = 0 if zero is None or zero.tensor is None else int(zero.tensor.numpy().reshape(()))
    return Coded(narrow.dtype, float(scale.tensor.numpy().reshape(())), point)


def _first(graph: Graph) -> Op | None:
    return next((op for op in graph.ops if not op.is_const and op.op_type != "absent"), None)


def _report(interface: CodedInterface, left: list[tuple[str, str]], context: Context) -> None:
    for kind, found in (("input", interface.inputs), ("output", interface.outputs)):
        for name, coded in found.items():
            why = "callers hand in and get what the model works with"
            context.decisions.append(Decision("quantize-io", f"{kind} {name!r} is {coded}", why))
    context.decisions.extend(Decision("quantize-io", what, why) for what, why in left)
    if not interface.inputs and not interface.outputs:
        context.warnings.append("No input or output is quantized as a whole, so all keep their dtypes.")
