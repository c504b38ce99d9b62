"""ONNX's rules for operators, in the form in which the verifier checks them: arity, attributes, regions."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx

from memoptc.ir.core import AttrRef, EmptyList, Function, Graph, Op
from memoptc.ir.ops.schema import schema
from memoptc.ir.types import Type

_ANY = 2**31 - 1
_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic


@dataclass(frozen=True)
class Signature:
    """Operands, results and attributes of an operator at one version.

    Args:
        min_operands: Fewest operands.
        max_operands: Most operands.
        min_results: Fewest results.
        max_results: Most results.
        optional: Operands that may be absent.
        open_ended: Whether the last formal operand repeats, and may then be absent (ONNX allows no such thing for
            homogeneous lists, but does for Loop's and Scan's).
        attrs: Attribute name -> ONNX attribute type; `None` when any attribute goes.
        required: Attributes without a default that must be given.
    """

    min_operands: int
    max_operands: int
    min_results: int
    max_results: int
    optional: frozenset[int]
    open_ended: bool
    attrs: Mapping[str, str] | None
    required: tuple[str, ...]

    def may_be_absent(self, index: int) -> bool:
        """True if operand `index` may be left out while a later one is given."""
        return index in self.optional or (self.open_ended and index >= len(self.optional))


def signature(op: Op, function: Function | None, version: int | None) -> Signature | None:
    """Give the signature of an op's operator; `None` when nothing is known about it.

    Args:
        op: The op.
        function: The model's own function of that name, which goes before a standard operator.
        version: Opset version of the op's domain that is in force.
    """
    if function is not None:
        inputs, outputs = len(function.body.inputs), len(function.body.outputs)
        # A call may leave inputs and outputs away; so does a node of the body that uses them, then.
        return Signature(0, inputs, 0, outputs, frozenset(range(inputs)), False, None, ())
    found = schema(op.op_type, op.domain, version)
    if found is None:
        return None
    optional = frozenset(i for i, p in enumerate(found.inputs) if p.option == _OPTIONAL)
    variadic = bool(found.inputs) and found.inputs[-1].option == _VARIADIC
    attrs = {n: a.type.name for n, a in found.attributes.items()}  # type: ignore[attr-defined]
    required = tuple(name for name, a in found.attributes.items() if a.required)
    return Signature(
        found.min_input, found.max_input, found.min_output, found.max_output, optional,
        variadic and not found.inputs[-1].is_homogeneous, attrs, required,
    )  # fmt: skip


def attr_fault(known: Signature, name: str, value: Any) -> str:
    """Say what is wrong with an attribute; `""` when nothing is."""
    if known.attrs is None:
        return ""
    wanted = known.attrs.get(name)
    if wanted is None:
        # onnxruntime's own fused forms carry extra attributes in standard domains; ONNX itself refuses them.
        return f"attribute {name} is not known"
    return "" if _fits(value, wanted) else f"attribute {name} is not of kind {wanted}"


def _fits(value: Any, wanted: str) -> bool:
    if isinstance(value, AttrRef | EmptyList):
        return value.kind == wanted
    if isinstance(value, tuple):
        return wanted.endswith("S") and all(_fits(v, wanted[:-1]) for v in value)
    if isinstance(value, int):
        # Whole numbers are written as floats where ONNX declares floats.
        return wanted in ("INT", "FLOAT")
    if isinstance(value, float):
        return wanted == "FLOAT"
    if isinstance(value, str | bytes):
        return wanted == "STRING"
    if value is None or isinstance(value, Type):
        return wanted == "TYPE_PROTO"
    if isinstance(value, onnx.SparseTensorProto):
        return wanted == "SPARSE_TENSOR"
    return wanted == "TENSOR"


def node_fault(op_type: str, version: int | None, operands: int, results: int, attributes: Set[str]) -> str:
    """Say whether an operator of ONNX has operands or results in a wrong number, or lacks attributes; `""` if not.

    No runtime loads such a model.
    """
    known = schema(op_type, "", version)
    if known is None:
        return ""
    if not known.min_input <= operands <= known.max_input:
        return f"has {operands} operands; {op_type} takes {_range(known.min_input, known.max_input)}"
    if not known.min_output <= results <= known.max_output:
        return f"has {results} results; {op_type} gives {_range(known.min_output, known.max_output)}"
    if missing := required_attributes(op_type, version) - attributes:
        return f"lacks attribute {', '.join(sorted(missing))}"
    return "has no value" if op_type == "Constant" and not attributes else ""


@cache
def required_attributes(op_type: str, version: int | None) -> frozenset[str]:
    """Attributes that an operator of ONNX cannot do without."""
    known = schema(op_type, "", version)
    return frozenset() if known is None else frozenset(n for n, a in known.attributes.items() if a.required)


def _range(least: int, most: int) -> str:
    if least == most:
        return f"{least}"
    return f"{least} to {most}" if most < _ANY else f"{least} or more"


def region_fault(op: Op, version: int | None) -> str:
    """Say what is wrong with the regions of a control-flow op; `""` when nothing is, or nothing is known."""
    if op.domain:
        return ""
    operands, results = len(op.operands), len(op.results)
    match op.op_type:
        case "If":
            for name in ("then_branch", "else_branch"):
                if fault := _arity(op.regions.get(name), name, 0, results):
                    return fault
        case "Loop":
            return _arity(op.regions.get("body"), "body", operands, None) or _loop_outputs(op.regions["body"], op)
        case "Scan":
            count = op.attrs.get("num_scan_inputs")
            # In opset 8 the first operand, which may be absent, holds sequence lengths.
            first = int(version is not None and version < 9)
            if isinstance(count, int):
                return _arity(op.regions.get("body"), "body", operands - first, results)
        case "SequenceMap":
            return _arity(op.regions.get("body"), "body", operands, results)
    return ""


def _arity(region: Graph | None, name: str, inputs: int, outputs: int | None) -> str:
    if region is None:
        return f"region {name} is missing"
    if len(region.inputs) != inputs:
        return f"region {name} takes {len(region.inputs)} values where {inputs} come in"
    if outputs is not None and len(region.outputs) != outputs:
        return f"region {name} gives {len(region.outputs)} values where {outputs} go out"
    return ""


def _loop_outputs(body: Graph, op: Op) -> str:
    """A Loop's body also gives the condition, which is no result of the Loop."""
    if len(body.outputs) != len(op.results) + 1:
        return f"region body gives {len(body.outputs)} values where {len(op.results) + 1} are needed"
    return ""


__all__ = ["Signature", "attr_fault", "node_fault", "region_fault", "signature"]
