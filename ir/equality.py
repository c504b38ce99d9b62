"""Structural equality of graphs: the same ops on the same values in the same order, whatever values are called."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import onnx

from memoptc.ir.core import Function, Graph, ModelInfo, Op, Output, Value
from memoptc.ir.spelling import type_text
from memoptc.ir.tensors import same_content
from memoptc.ir.types import Type

_ORIGIN = frozenset({"source_path", "source_sha256", "form"})
"""Facts of a model that say where it came from: compared with locations."""


@dataclass(frozen=True)
class Difference:
    """The first place at which two graphs differ.

    Args:
        where: The place, such as `op 3 (Conv %y): attribute pads`.
        left: What the first graph has there.
        right: What the second graph has there.
    """

    where: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.where}: {self.left} against {self.right}"


def same_structure(
    a: Graph, b: Graph, *, names: bool = False, locations: bool = False, notes: bool = False
) -> Difference | None:
    """Compare two graphs, and the models they are the tops of.

    Always compared: ops in order, operands, attributes, tensors by their bits, types, regions, functions, opset
    imports, and the names of the model's own inputs and outputs, which callers rely on.

    Args:
        a: One graph.
        b: The other.
        names: Also names of inner values, nodes and graphs.
        locations: Also which source nodes and rules each op comes from, and the model's source file (the line in
            a text file is no part of this).
        notes: Also documentation, metadata, how symbolic dimensions are spelled, and the model's other facts.

    Returns:
        The first difference, or `None` when there is none.
    """
    comparison = _Comparison(names, locations, notes)
    try:
        comparison.model(a, b)
    except _Differ as e:
        return e.difference
    return None


class _Differ(Exception):
    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


class _Comparison:
    def __init__(self, names: bool, locations: bool, notes: bool) -> None:
        self.names, self.locations, self.notes = names, locations, notes
        self.twin: dict[Value, Value] = {}

    def model(self, a: Graph, b: Graph) -> None:
        if a.model is None or b.model is None:
            self.graph(a, b, "", top=True)
            return
        self.info(a.model, b.model)
        self.graph(a, b, "", top=True)
        one, two = a.model.functions, b.model.functions
        self.same(list(one), list(two), "functions")
        for key in one:
            self.function(one[key], two[key])

    def info(self, a: ModelInfo, b: ModelInfo) -> None:
        self.same(a.opset_imports, b.opset_imports, "model: opset imports")
        for field in fields(ModelInfo):
            wanted = self.locations if field.name in _ORIGIN else self.notes
            if wanted and field.name not in ("functions", "opset_imports"):
                self.same(getattr(a, field.name), getattr(b, field.name), f"model: {field.name}")

    def function(self, a: Function, b: Function) -> None:
        where = f"function {a.name}: "
        self.same(a.opset_imports, b.opset_imports, f"{where}opset imports")
        self.same(list(a.attrs), list(b.attrs), f"{where}attributes")
        for key, value in a.attrs.items():
            self.attr(value, b.attrs[key], f"{where}attribute {key}")
        self.facts(a, b, where)
        self.graph(a.body, b.body, where)

    # -- graphs ---------------------------------------------------------------------------------------

    def graph(self, a: Graph, b: Graph, where: str, *, top: bool = False) -> None:
        self.same(len(a.inputs), len(b.inputs), f"{where}number of inputs")
        for index, (p, q) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            self.value(p, q, f"{where}input {index} (%{p.name})", named=top)
            self.default(a, b, p, q, f"{where}input {index} (%{p.name})")
        for index, (one, two) in enumerate(_pairs(a.ops, b.ops)):
            if one is None or two is None:
                self.same(_ops(len(a)), _ops(len(b)), f"{where}op {index}")
            else:
                self.op(one, two, f"{where}op {index} ({one.op_type} {_results(one)}): ")
        self.same(len(a.outputs), len(b.outputs), f"{where}number of outputs")
        for index, (p, q) in enumerate(zip(a.outputs, b.outputs, strict=True)):
            self.use(p, q, f"{where}output {index}")
        for index, (left, right) in enumerate(zip(a.outputs_info, b.outputs_info, strict=True)):
            self.output(left, right, f"{where}output {index} ({left.name})", named=top)
        if self.names:
            self.same(a.name, b.name, f"{where}name of the graph")
        self.facts(a, b, where)

    def default(self, a: Graph, b: Graph, p: Value, q: Value, where: str) -> None:
        one, two = a.defaults.get(p), b.defaults.get(q)
        if one is None or two is None:
            self.same(one is not None, two is not None, f"{where}: has a default")
        else:
            self.attr(one, two, f"{where}: default")

    def output(self, a: Output, b: Output, where: str, *, named: bool) -> None:
        if named or self.names:
            self.same(a.name, b.name, f"{where}: name")
        self.type(a.type, b.type, where)
        self.facts(a, b, f"{where}: ")

    def value(self, a: Value, b: Value, where: str, *, named: bool = False) -> None:
        self.twin[a] = b
        self.same(a.omitted, b.omitted, f"{where}: omitted")
        if (named or self.names) and not a.omitted:
            self.same(a.name, b.name, f"{where}: name")
        self.type(a.type, b.type, where)
        self.facts(a, b, f"{where}: ")

    def type(self, a: Type | None, b: Type | None, where: str) -> None:
        if a is b:
            return
        if a != b or (self.notes and type_text(a) != type_text(b)):
            raise _Differ(Difference(f"{where}: type", type_text(a), type_text(b)))

    def use(self, a: Value, b: Value, where: str) -> None:
        if self.twin.get(a, a) is not b:
            raise _Differ(Difference(where, f"%{a.name}", f"%{b.name}"))

    # -- ops ------------------------------------------------------------------------------------------

    def op(self, a: Op, b: Op, where: str) -> None:
        self.same(a.key, b.key, f"{where}operator")
        self.same(a.overload, b.overload, f"{where}overload")
        self.same(len(a.operands), len(b.operands), f"{where}number of operands")
        for index, (p, q) in enumerate(zip(a.operands, b.operands, strict=True)):
            self.use(p, q, f"{where}operand {index}")
        self.same(len(a.results), len(b.results), f"{where}number of results")
        self.same(sorted(a._attrs), sorted(b._attrs), f"{where}attributes")
        for key, value in a._attrs.items():
            self.attr(value, b._attrs[key], f"{where}attribute {key}")
        self.same(sorted(a._regions), sorted(b._regions), f"{where}regions")
        for key, region in a._regions.items():
            self.graph(region, b._regions[key], f"{where}region {key}: ")
        for p, q in zip(a.results, b.results, strict=True):
            self.value(p, q, f"{where}result {p.index}")
        if self.names:
            self.same(a.name, b.name, f"{where}node name")
        if self.locations:
            self.same(a.loc.nodes, b.loc.nodes, f"{where}source nodes")
            self.same(a.loc.rules, b.loc.rules, f"{where}rules")
        self.facts(a, b, where)

    def attr(self, a: Any, b: Any, where: str) -> None:
        if a is b:
            return
        if hasattr(a, "tobytes") and hasattr(b, "tobytes") and not isinstance(a, onnx.SparseTensorProto):
            if not same_content(a, b):
                raise _Differ(Difference(where, _brief(a), f"{_brief(b)} of other content"))
            if self.notes:
                self.same(a.doc_string or "", b.doc_string or "", f"{where}: documentation")
        elif isinstance(a, tuple) and isinstance(b, tuple):
            self.same(len(a), len(b), f"{where}: length")
            for index, (p, q) in enumerate(zip(a, b, strict=True)):
                self.attr(p, q, f"{where}[{index}]")
        elif isinstance(a, Type) and isinstance(b, Type):
            self.type(a, b, where)
        elif isinstance(a, float) and isinstance(b, float):
            if _single(a) != _single(b):
                raise _Differ(Difference(where, _brief(a), _brief(b)))
        elif isinstance(a, float) != isinstance(b, float) or a != b:
            raise _Differ(Difference(where, _brief(a), _brief(b)))

    # -- plain facts ----------------------------------------------------------------------------------

    def facts(self, a: Any, b: Any, where: str) -> None:
        if self.notes:
            self.same(a.doc, b.doc, f"{where}documentation")
            self.same(a.metadata, b.metadata, f"{where}metadata")

    def same(self, a: object, b: object, where: str) -> None:
        if a != b:
            raise _Differ(Difference(where, _brief(a), _brief(b)))


def _pairs(a: Iterable[Op], b: Iterable[Op]) -> Iterable[tuple[Op | None, Op | None]]:
    one, two = iter(a), iter(b)
    while True:
        p, q = next(one, None), next(two, None)
        if p is None and q is None:
            return
        yield p, q


def _single(value: float) -> bytes:
    """The bits of a float attribute, which ONNX holds in single precision."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _ops(count: int) -> str:
    return f"{count} ops"


def _results(op: Op) -> str:
    return ", ".join("_" if r.omitted else f"%{r.name}" for r in op.results)


def _brief(value: object) -> str:
    if value is None or isinstance(value, Type):
        return type_text(value)
    if hasattr(value, "tobytes") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"a tensor {value.dtype.name}{list(value.shape)}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
    if isinstance(value, Mapping) or len(text) > 200:
        return text[:200]
    return text


__all__ = ["Difference", "same_structure"]
