"""Verifier: is this still a well-formed graph? All faults at once, each with the ops around it.

There are two kinds. *Faults* break what every pass relies on (use-def chains, order, ownership): whoever
changed the graph last is wrong. *Warnings* are breaches of ONNX's rules for operators (arity, attributes,
regions); a user's model may come with some and still compile, so they only count when a pass adds one.
"""

from __future__ import annotations

import linecache
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx

from memoptc.ir.core import NOWHERE, AttrRef, EmptyList, Function, Graph, Op, Tensor, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.ops.nearest import unknown_operator
from memoptc.ir.printer import print_op
from memoptc.ir.schema_rules import Signature, attr_fault, region_fault, signature
from memoptc.ir.spelling import type_text
from memoptc.ir.tensors import tensor_type
from memoptc.ir.types import SparseTensorType, TensorType, Type

SHOWN = 10
"""How many faults a message spells out."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        what: One sentence.
        op: The op it is about, if any.
        rule: The breach in general, without names of values or nodes: what two faults of one kind share.
    """

    what: str
    op: Op | None = None
    rule: str = ""

    def __str__(self) -> str:
        return self.what


class VerifyError(InternalError):
    """A graph is not well-formed; `faults` lists everything that is wrong with it."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"The graph is not well-formed: {count}."]
        for fault in faults[:SHOWN]:
            lines += [*_headline(fault), *_around(fault.op)]
        if len(faults) > SHOWN:
            lines.append(f"... and {len(faults) - SHOWN} more")
        super().__init__("\n".join(lines))


def verify(graph: Graph, *, tolerated: Collection[str] | None = None) -> list[Fault]:
    """Check a graph, everything in its regions, and its model's functions.

    Args:
        graph: A top graph.
        tolerated: The `rule` of every breach of ONNX's own rules that the model came with; any other breach is a
            fault then. When `None`, none of them is.

    Returns:
        The breaches of ONNX's own rules, as warnings.

    Raises:
        VerifyError: there are faults.
    """
    checks = _Checks(graph)
    checks.run()
    faults, warnings = checks.faults, checks.warnings
    if tolerated is not None:
        faults = faults + [w for w in warnings if w.rule not in tolerated]
    if faults:
        raise VerifyError(faults)
    return warnings


def _headline(fault: Fault) -> Iterator[str]:
    """Say what is wrong; for an op that was parsed, where it stands in its text."""
    loc = fault.op.loc if fault.op is not None else NOWHERE
    if not loc.line:
        yield f"- {fault.what}"
        return
    yield f"- {loc.file}:{loc.line}:{loc.col}: {fault.what}"
    linecache.checkcache(loc.file)
    line = linecache.getline(loc.file, loc.line).rstrip("\n")
    if line:
        yield line
        yield f"{' ' * (loc.col - 1)}^"


def _around(op: Op | None, reach: int = 2) -> Iterator[str]:
    """Show an op, marked, with a few before and after it."""
    if op is None:
        return
    if op.graph is None or op.is_return:
        yield f"    > {_show(op)}"
        return
    before: list[Op] = []
    other = op.prev
    while other is not None and len(before) < reach:
        before.append(other)
        other = other.prev
    after: list[Op] = []
    other = op.next
    while other is not None and len(after) < reach:
        after.append(other)
        other = other.next
    yield from (f"      {_show(o)}" for o in reversed(before))
    yield f"    > {_show(op)}"
    yield from (f"      {_show(o)}" for o in after)


def _show(op: Op) -> str:
    if op.is_return:
        return f"return {', '.join(f'%{v.name}' for v in op.operands)}"
    text = print_op(op).split("\n", 1)[0].strip()
    return text[:200]


class _Checks:
    def __init__(self, top: Graph) -> None:
        self.top = top
        self.faults: list[Fault] = []
        self.warnings: list[Fault] = []
        self.ops: set[Op] = set()
        self.values: list[Value] = []
        self.imports: dict[str, int] | None = None
        self.signatures: dict[tuple[str, str, str], Signature | None] = {}

    def fault(self, what: str, op: Op | None = None) -> None:
        self.faults.append(Fault(what, op))

    def warn(self, op: Op | None, rule: str, subject: str = "") -> None:
        prefix = "" if op is None else f"{_called(op)}: "
        self.warnings.append(Fault(f"{prefix}{rule}{subject}", op, rule if op is None else f"{op.key}: {rule}"))

    def run(self) -> None:
        model = self.top.model
        self.imports = None if model is None else model.opset_imports
        if self.top.parent is not None:
            self.fault(f"graph {self.top.name!r} is a region, not a top graph", self.top.parent)
        self.graph(self.top, set())
        for function in () if model is None else model.functions.values():
            self.function(function)
        self.uses()

    def function(self, function: Function) -> None:
        body = function.body
        self.imports = function.opset_imports
        self.signatures = {}
        if body.parent is not None or body.model is not None:
            self.fault(f"the body of function {function.name!r} is a region or a model")
        self.graph(body, set())

    # -- graphs ---------------------------------------------------------------------------------------

    def graph(self, graph: Graph, visible: set[Value]) -> None:
        """Check a graph; `visible` is what it may use from outside, and again when this returns."""
        own: list[Value] = []
        for index, value in enumerate(graph._inputs):
            if value._input_of is not graph or value.index != index:
                self.fault(f"input {index} (%{value.name}) of graph {graph.name!r} does not know its place")
            own.append(value)
        visible.update(own)
        count = 0
        for op in self.linked(graph):
            count += 1
            self.op(op, graph, visible)
            own += op._results
            visible.update(op._results)
        if count != len(graph):
            self.fault(f"graph {graph.name!r} counts {len(graph)} ops but links {count}")
        self.terminator(graph, visible)
        self.defaults(graph)
        self.names(own)
        self.values += own
        visible.difference_update(own)

    def linked(self, graph: Graph) -> Iterator[Op]:
        """The ops of a graph, with every link checked before it is followed."""
        ends = graph._ops.ends
        link = ends.next
        while link is not ends:
            op = link.item
            if op is None or link.prev.next is not link or link.next.prev is not link:
                self.fault(f"the op list of graph {graph.name!r} is broken", op)
                return
            if op in self.ops:
                self.fault(f"{_called(op)} is in a list of ops twice", op)
                return
            self.ops.add(op)
            if op.graph is not graph or op._link is not link:
                self.fault(f"{_called(op)} does not know its place in graph {graph.name!r}", op)
            yield op
            link = link.next

    def terminator(self, graph: Graph, visible: set[Value]) -> None:
        op = graph.terminator
        self.ops.add(op)
        if op.graph is not graph or not op.is_return or op._results or op._regions or op._link is not None:
            self.fault(f"the return of graph {graph.name!r} is no return", op)
        self.operands(op, graph, visible)
        if len(op._operands) != len(graph.outputs_info):
            self.fault(
                f"graph {graph.name!r} returns {len(op._operands)} values but describes {len(graph.outputs_info)}", op
            )
        for value in op._operands:
            if value.is_absent:
                self.fault(f"graph {graph.name!r} returns an absent value", op)
        if graph.parent is None:
            names = [o.name for o in graph.outputs_info]
            if len(set(names)) != len(names):
                self.warn(op, "two outputs have the same name")

    def defaults(self, graph: Graph) -> None:
        for value, tensor in graph.defaults.items():
            if value not in graph._inputs:
                self.fault(f"graph {graph.name!r} has a default for %{value.name}, which is not an input of it")
            elif not _agree(value.type, tensor):
                self.warn(
                    None,
                    "an input's default has another type than the input",
                    f": %{value.name} is {type_text(value.type)}, its default {type_text(tensor_type(tensor))}",
                )

    def names(self, values: list[Value]) -> None:
        seen: set[str] = set()
        for value in values:
            if value.omitted or value.name not in seen:
                seen.add(value.name)
            else:
                self.warn(value.op, "two values of one graph have the same name", f" (%{value.name})")

    # -- ops ------------------------------------------------------------------------------------------

    def op(self, op: Op, graph: Graph, visible: set[Value]) -> None:
        if op.op_type == "return" and not op.domain:
            self.fault(f"graph {graph.name!r} holds a return among its ops", op)
        self.operands(op, graph, visible)
        for index, result in enumerate(op._results):
            if result.op is not op or result.index != index:
                self.fault(f"result {index} of {_called(op)} does not know its place", op)
            if result.omitted and result._uses:
                self.fault(f"result {index} of {_called(op)} is omitted but used", op)
            self.result_type(result, op)
        for key, region in op._regions.items():
            if region.parent is not op:
                self.fault(f"region {key} of {_called(op)} does not belong to it", op)
            if region.model is not None:
                self.fault(f"region {key} of {_called(op)} claims to be a model", op)
            self.graph(region, visible)
        for key, value in op._attrs.items():
            if not _is_attr(value):
                self.fault(f"attribute {key} of {_called(op)} is {_kind(value)}, which no attribute can be", op)
        if not op.domain and op.op_type in ("const", "absent", "sparse_const"):
            self.structure_op(op)
        else:
            self.rules(op)

    def operands(self, op: Op, graph: Graph, visible: set[Value]) -> None:
        for index, value in enumerate(op._operands):
            if (op, index) not in value._uses:
                self.fault(f"%{value.name} does not know that {_called(op)} uses it as operand {index}", op)
            if value not in visible:
                self.fault(f"operand {index} of {_called(op)}, %{value.name}, {_why_unseen(value, graph)}", op)

    def result_type(self, result: Value, op: Op) -> None:
        type_ = result._type
        if type_ is None:
            return
        if not isinstance(type_, Type):
            self.fault(f"%{result.name} has {type_!r} for a type", op)
        elif isinstance(type_, TensorType | SparseTensorType):
            for dim in type_.shape or ():
                if isinstance(dim, int) and dim < 0:
                    self.fault(f"%{result.name} has a negative extent: {type_text(type_)}", op)

    def structure_op(self, op: Op) -> None:
        if op._operands or op._regions or len(op._results) != 1:
            self.fault(f"{op.op_type} has one result, no operands and no regions", op)
            return
        value, result = op._attrs.get("value"), op._results[0]
        if op.op_type == "const":
            if value is None or not hasattr(value, "tobytes"):
                self.fault(f"const %{result.name} holds no tensor", op)
            elif tensor_type(value) != result._type:
                held = type_text(tensor_type(value))
                self.fault(f"const %{result.name} holds {held} but its type is {type_text(result._type)}", op)
        elif op.op_type == "sparse_const" and not isinstance(value, onnx.SparseTensorProto):
            self.fault(f"sparse_const %{result.name} holds no sparse tensor", op)

    def rules(self, op: Op) -> None:
        """Check an op against ONNX's schema of its operator, where there is one."""
        if self.imports is None:
            return
        domain = op.domain
        if domain not in self.imports and not (domain == "" and "ai.onnx" in self.imports):
            self.warn(op, f"the model imports no opset of domain {domain or 'ai.onnx'!r}")
        key = (op.op_type, domain, op.overload)
        if key not in self.signatures:
            version = self.imports.get(domain, self.imports.get("ai.onnx") if domain == "" else None)
            functions = self.top.model.functions if self.top.model is not None else {}
            self.signatures[key] = signature(op, functions.get((domain, op.op_type, op.overload)), version)
        found = self.signatures[key]
        if found is None:
            if fault := unknown_operator(op.op_type, domain):
                self.warn(op, fault)
            return
        for index, value in enumerate(op._operands):
            if value.is_absent and not found.may_be_absent(index):
                self.warn(op, f"operand {index} may not be absent")
        operands, results = len(op._operands), len(op._results)
        if not found.min_operands <= operands <= found.max_operands:
            self.warn(op, f"{operands} operands where {_range(found.min_operands, found.max_operands)} are allowed")
        if not found.min_results <= results <= found.max_results:
            self.warn(op, f"{results} results where {_range(found.min_results, found.max_results)} are allowed")
        for name, value in op._attrs.items():
            if fault := attr_fault(found, name, value):
                self.warn(op, fault)
        for name in found.required:
            if name not in op._attrs and name not in op._regions:
                self.warn(op, f"attribute {name} is missing")
        if op._regions and (fault := region_fault(op, self.imports.get(domain))):
            self.warn(op, fault)

    # -- the other end of use-def chains --------------------------------------------------------------

    def uses(self) -> None:
        for value in self.values:
            for op, index in value._uses:
                if op not in self.ops:
                    what = f"%{value.name} is used by {_called(op)}, which is in no graph of this model"
                    self.fault(what, value.op)
                elif index >= len(op._operands) or op._operands[index] is not value:
                    self.fault(f"%{value.name} claims to be operand {index} of {_called(op)}, which is not so", op)


def _why_unseen(value: Value, graph: Graph) -> str:
    if value.op is not None and value.op.graph is None:
        return f"is a result of {value.op.key}, which is in no graph"
    if value.graph.encloses(graph):
        return "is defined only later"
    return f"belongs to graph {value.graph.name!r}, which does not enclose this use"


def _agree(type_: Type | None, tensor: Tensor) -> bool:
    """True if a tensor can be of a type, symbolic dimensions being free."""
    if type_ is None:
        return True
    held = tensor_type(tensor)
    if not isinstance(type_, TensorType) or type_.dtype != held.dtype:
        return False
    if type_.shape is None or held.shape is None:
        return True
    pairs = list(zip(type_.shape, held.shape, strict=False))
    return len(type_.shape) == len(held.shape) and all(not isinstance(a, int) or a == b for a, b in pairs)


def _is_attr(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(v is None or (_is_attr(v) and not isinstance(v, tuple)) for v in value)
    known = int | float | str | bytes | AttrRef | EmptyList | Type | onnx.SparseTensorProto
    return isinstance(value, known) or hasattr(value, "tobytes")


def _kind(value: object) -> str:
    if value == ():
        return "an empty tuple (it must say of what: EmptyList)"
    return f"a {type(value).__name__}"


def _called(op: Op) -> str:
    if op.name:
        return f"{op.key} {op.name!r}"
    return f"{op.key} of %{op._results[0].name}" if op._results else op.key


def _range(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"at least {low}" if high >= 2**31 - 1 else f"{low} to {high}"


__all__ = ["Fault", "VerifyError", "verify"]
