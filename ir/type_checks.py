"""Types against operators: element types that ONNX's schemas allow, and shapes and types as inference finds them.

The verifier does not ask this of every compile: inference may be wrong about a model that runs. Tests of passes and
`memoptc opt` do, so that a wrong type shows after the pass that made it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache

from memoptc.ir import ops
from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.infer import infer_op
from memoptc.ir.spelling import type_text
from memoptc.ir.types import DType, TensorType, Type
from memoptc.ir.verifier import Fault, VerifyError

_SPELLED = {f"tensor({dtype.name.lower()})": dtype for dtype in DType}


def type_faults(graph: Graph) -> list[Fault]:
    """Give everything that is wrong with the types of a graph and its regions."""
    return [
        Fault(
            f"{op.key} of %{op.results[0].name}: {what}" if op.results else f"{op.key}: {what}", op, f"{op.key}: {rule}"
        )
        for op in graph.walk()
        if not op.is_return and not op.is_const
        for rule, what in _faults(op)
    ]


def verify_types(graph: Graph, tolerated: Collection[str] = ()) -> None:
    """Check the types of a graph.

    Args:
        graph: A top graph.
        tolerated: The `rule` of every fault that it came with.

    Raises:
        VerifyError: there are other faults.
    """
    faults = [f for f in type_faults(graph) if f.rule not in tolerated]
    if faults:
        raise VerifyError(faults)


def _faults(op: Op) -> Iterator[tuple[str, str]]:
    yield from _elements(op)
    for result, found in zip(op.results, infer_op(op), strict=True):
        if found is not None and result.type is not None and (rule := _contradicts(result.type, found)):
            yield rule, f"%{result.name} is {type_text(result.type)}, but {type_text(found)} comes out"


def _elements(op: Op) -> Iterator[tuple[str, str]]:
    """Element types of operands: allowed by the schema, and the same where it wants that."""
    version = ops.opset_of(op.graph, op.domain) if op.graph is not None and op.graph.root.model is not None else None
    formals = _formals(op.op_type, op.domain, version)
    seen: dict[str, tuple[DType, int]] = {}
    for index, value in enumerate(op.operands):
        dtype = _element(value)
        if dtype is None or not formals:
            continue
        name, allowed, repeats = formals[min(index, len(formals) - 1)]
        if allowed and dtype not in allowed:
            yield f"operand {index}", f"operand {index} may not be {dtype.name.lower()}"
        first, at = seen.setdefault(name, (dtype, index))
        if repeats and first != dtype:
            what = f"operands {at} and {index} must be of one type, not {first.name.lower()} and {dtype.name.lower()}"
            yield f"operands {at} and {index}", what


def _element(value: Value) -> DType | None:
    return None if value.dtype == DType.UNDEFINED or value.is_absent else value.dtype


@cache
def _formals(op_type: str, domain: str, version: int | None) -> tuple[tuple[str, frozenset[DType], bool], ...]:
    """For each formal operand: the name of its type, which element types that allows, whether uses of it must agree."""
    found = ops.schema(op_type, domain, version)
    if found is None:
        return ()
    return tuple(
        (p.type_str, frozenset(_SPELLED[t] for t in p.types if t in _SPELLED), bool(p.is_homogeneous))
        for p in found.inputs
    )


def _contradicts(stated: Type, found: Type) -> str:
    """Say in what two types cannot both hold; `""` when they can."""
    if not isinstance(stated, TensorType) or not isinstance(found, TensorType):
        return "" if type(stated) is type(found) else "kind of type"
    if DType.UNDEFINED not in (stated.dtype, found.dtype) and stated.dtype != found.dtype:
        return "element type"
    if stated.shape is None or found.shape is None:
        return ""
    if len(stated.shape) != len(found.shape):
        return "rank"
    pairs = zip(stated.shape, found.shape, strict=True)
    return "shape" if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs) else ""


__all__ = ["type_faults", "verify_types"]
