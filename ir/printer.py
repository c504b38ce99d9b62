"""Printer: a graph as `.mir` text, in one canonical spelling that `memoptc.ir.parser.parse` reads back.

Everything the IR holds is in the text. Where a text repeats what follows from elsewhere, it is left out: a
node's name when its location says the same, an output's name when it is the returned value's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import onnx

from memoptc.ir.core import NOWHERE, AttrRef, EmptyList, Function, Graph, Loc, ModelInfo, Op, Output, Tensor, Value
from memoptc.ir.element_spelling import elements_text, tensor_bytes
from memoptc.ir.spelling import bytes_text, float_text, key_name, op_name, quote, symbol_name, type_text, value_name
from memoptc.ir.tensors import tensor_type
from memoptc.ir.types import Type

Reference = Callable[[Tensor, str], str | None]
"""Says under which name a tensor is kept elsewhere (given a hint for the name), or `None` to write it out."""

INLINE_LIMIT = 16


def print_graph(
    graph: Graph,
    *,
    weights: Literal["inline", "elide"] | Reference = "inline",
    limit: int = INLINE_LIMIT,
    notes: bool = True,
    positions: bool = False,
    names: bool = True,
    files: Iterable[str] = (),
) -> str:
    """Write a graph, and the model it is the top of, as text.

    Args:
        graph: The graph.
        weights: What to do with tensors of more than `limit` elements: write their bytes into the text
            (`"inline"`), leave them out (`"elide"`: to look at only, the parser refuses it), or refer to them by
            name (see `write_mir` for a file with its weights beside it).
        limit: Up to how many elements a tensor is spelled out in any case.
        notes: Also write doc strings and metadata of models, graphs, ops and values.
        positions: Also write from which place of which text file each op was parsed.
        names: Write names of values and ops, and where ops come from. Without, values are numbered: graphs that compute
            the same in the same order give the same text, to look at and to compare.
        files: Files that hold the tensors referred to, for the text's header.
    """
    return _Printer(weights, limit, positions, notes, names).whole(graph, files)


def print_op(op: Op, *, nested: bool = False) -> str:
    """Write one op for people to look at, large tensors left out; works on broken graphs, too.

    Args:
        op: The op.
        nested: Also what is in its regions; otherwise `{...}` stands for each.
    """
    printer = _Printer("elide", 8, False)
    printer.nested = nested
    printer.op(op, "")
    return "\n".join(printer.lines)


class _Names:
    """Spells values so that no two visible at one place are spelled alike."""

    def __init__(self, numbered: bool = False) -> None:
        self.of: dict[Value, str] = {}
        self.taken: dict[str, int] = {}
        self.numbered = numbered

    def define(self, value: Value) -> str:
        name = "" if self.numbered and not value.is_input else value.name
        number = self.taken.get(name, 0)
        self.taken[name] = number + 1
        text = self.of[value] = value_name(name, number)
        return text

    def use(self, value: Value) -> str:
        return self.of.get(value) or value_name(value.name)


class _Printer:
    def __init__(
        self,
        weights: Literal["inline", "elide"] | Reference,
        limit: int,
        positions: bool,
        with_notes: bool = True,
        with_names: bool = True,
    ) -> None:
        self.weights = weights
        self.with_notes = with_notes
        self.with_names = with_names
        self.limit = limit
        self.positions = positions
        self.nested = True
        self.names = _Names(not with_names)
        self.lines: list[str] = []

    # -- the model ------------------------------------------------------------------------------------

    def whole(self, graph: Graph, files: Iterable[str]) -> str:
        if graph.model is not None:
            self.lines.append(f"model {self.entries(_model_facts(graph.model, self.with_notes))}")
        self.lines += [f"weights {quote(f)}" for f in files]
        if self.lines:
            self.lines.append("")
        self.graph(graph, "", f"graph{_title(graph)}", always=True)
        for function in graph.model.functions.values() if graph.model is not None else ():
            self.lines.append("")
            self.function(function)
        return "\n".join([*self.lines, ""])

    def function(self, function: Function) -> None:
        self.names = _Names(not self.with_names)
        head = f"function {op_name(function.domain, function.name)}"
        tail = f" overload({quote(function.overload)})" if function.overload else ""
        tail += f" opset{self.entries(function.opset_imports, in_order=True)}"
        if function.attrs:
            tail += f" attributes{self.entries(function.attrs, in_order=True)}"
        if function.body.name != function.name:
            tail += f" name({quote(function.body.name)})"
        tail += self.notes(function.doc, function.metadata)
        if self.with_notes and (function.body.doc or function.body.metadata):
            tail += f" body{self.note(function.body.doc, function.body.metadata)}"
        self.graph(function.body, "", head, tail)

    # -- graphs ---------------------------------------------------------------------------------------

    def graph(self, graph: Graph, indent: str, head: str, tail: str = "", *, always: bool = False) -> None:
        taken = dict(self.names.taken)
        inputs = ", ".join(self.input(v, graph) for v in graph.inputs)
        place = len(self.lines)
        for op in graph.ops:
            self.op(op, indent + "  ")
        returned = ", ".join(self.names.use(v) for v in graph.outputs)
        self.lines.append(f"{indent}  return {returned}".rstrip())
        self.lines.append(f"{indent}}}")
        outputs = self.outputs(graph, always)
        notes = tail or self.notes(graph.doc, graph.metadata)
        self.lines.insert(place, f"{indent}{head}({inputs}){outputs}{notes} {{")
        self.names.taken = taken

    def input(self, value: Value, graph: Graph) -> str:
        text = self.names.define(value)
        if value.type is not None:
            text += f": {type_text(value.type)}"
        default = graph.defaults.get(value)
        if default is not None:
            text += f" = {self.content(default, value.type, value.name)}"
        return text + self.about(value)

    def outputs(self, graph: Graph, always: bool) -> str:
        infos, values = graph.outputs_info, graph.outputs
        if not self.with_names and not always:
            return ""
        if len(infos) == len(values):
            pairs = list(zip(infos, values, strict=True))
            if not always and all(i == Output(v.name, v.type) for i, v in pairs):
                return ""
            texts = [self.output(info, value.name if self.with_names else None) for info, value in pairs]
        else:
            texts = [self.output(info, None) for info in infos]
        return f" -> ({', '.join(texts)})"

    def output(self, info: Output, name: str | None) -> str:
        text = type_text(info.type) if info.name == name else f"{key_name(info.name)}: {type_text(info.type)}"
        return text + self.beside(info.doc, info.metadata)

    # -- ops ------------------------------------------------------------------------------------------

    def op(self, op: Op, indent: str) -> None:
        operands = ", ".join(map(self.names.use, op._operands))
        place = len(self.lines)
        for key, region in op._regions.items():
            if self.nested:
                self.graph(region, indent + "  ", f"region {key_name(key)}{_title(region)}")
            else:
                self.lines.append(f"{indent}  region {key_name(key)} {{...}}")
        text = f"{indent}{self.results(op)} = {op_name(op.domain, op.op_type)}({operands})"
        if op._attrs:
            text += f" {self.attrs(op)}"
        if any(r.type is not None or r.doc or r.metadata for r in op._results):
            text += f" : {', '.join(type_text(r.type) + self.about(r) for r in op._results)}"
        self.lines.insert(place, text + self.facts(op))

    def results(self, op: Op) -> str:
        if not op._results:
            return "()"
        return ", ".join("_" if r.omitted else self.names.define(r) for r in op._results)

    def facts(self, op: Op) -> str:
        text = ""
        if op.loc is not NOWHERE and self.with_names:
            text += self.loc(op.loc)
        if op.name != implied_name(op.loc) and self.with_names:
            text += f" name({quote(op.name)})"
        if op.overload:
            text += f" overload({quote(op.overload)})"
        if op.doc or op.metadata:
            text += self.notes(op.doc, op.metadata)
        return text

    def loc(self, loc: Loc) -> str:
        parts = []
        if loc.nodes:
            parts.append(", ".join(map(quote, loc.nodes)))
        if loc.rules:
            parts.append("by " + ", ".join(map(quote, loc.rules)))
        if self.positions and (loc.file or loc.line or loc.col):
            parts.append(f"at {quote(loc.file)}, {loc.line}, {loc.col}")
        return f" loc({' '.join(parts)})" if parts else ""

    def about(self, value: Value) -> str:
        return self.beside(value.doc, value.metadata)

    def beside(self, doc: str, metadata: Mapping[str, str]) -> str:
        return f" {self.note(doc, metadata)}" if self.with_notes and (doc or metadata) else ""

    def note(self, doc: str, metadata: Mapping[str, str]) -> str:
        parts = [quote(doc)] if doc else []
        return f"note({', '.join([*parts, *(f'{quote(k)}={quote(v)}' for k, v in metadata.items())])})"

    def notes(self, doc: str, metadata: Mapping[str, str]) -> str:
        if not self.with_notes:
            return ""
        text = f" doc({quote(doc)})" if doc else ""
        if metadata:
            text += f" meta({', '.join(f'{quote(k)}={quote(v)}' for k, v in metadata.items())})"
        return text

    # -- attribute values -----------------------------------------------------------------------------

    def attrs(self, op: Op) -> str:
        if op.is_const and "value" in op._attrs and op._results:
            result = op._results[0]
            given = {k: v for k, v in op._attrs.items() if k != "value"}
            entries = {k: self.value(v, k) for k, v in given.items()}
            entries["value"] = self.content(op._attrs["value"], result.type, result.name)
            return f"{{{', '.join(f'{key_name(k)}={t}' for k, t in sorted(entries.items()))}}}"
        return self.entries(op._attrs, hint=op._results[0].name if op._results else "")

    def entries(self, values: Mapping[str, Any], *, in_order: bool = False, hint: str = "") -> str:
        items = values.items() if in_order else sorted(values.items())
        return f"{{{', '.join(f'{key_name(k)}={self.value(v, hint or k)}' for k, v in items)}}}"

    def value(self, value: Any, hint: str) -> str:
        if isinstance(value, int):
            return str(int(value))
        if isinstance(value, float):
            return float_text(value)
        if isinstance(value, str):
            return quote(value)
        if isinstance(value, tuple | list):
            separator = "," if all(isinstance(v, int | float) for v in value) else ", "
            return f"[{separator.join([self.value(v, hint) for v in value])}]"
        if isinstance(value, bytes):
            return bytes_text(value)
        if isinstance(value, Mapping):
            return self.entries(value, in_order=True)
        if isinstance(value, AttrRef):
            return f"ref({key_name(value.name)}, {value.kind})"
        if isinstance(value, EmptyList):
            return f"empty({value.kind})"
        if value is None or isinstance(value, Type):
            return type_text(value)
        if isinstance(value, onnx.SparseTensorProto):
            return f"sparse({bytes_text(value.SerializeToString(deterministic=True))})"
        if hasattr(value, "tobytes"):
            return self.dense(value, hint)
        # Not an attribute that ONNX has: shown all the same, so that the verifier can point at it.
        return f"<{type(value).__name__}>"

    def content(self, tensor: Any, type_: Type | None, hint: str) -> str:
        """Write the tensor of a value, which gives it its name and usually its type."""
        if not hasattr(tensor, "tobytes"):
            return self.value(tensor, hint)
        held = tensor_type(tensor)
        payload = self.payload(tensor, hint)
        return payload if type_ == held else f"dense({type_text(held)}, {payload})"

    def dense(self, tensor: Tensor, hint: str) -> str:
        text = f"dense({type_text(tensor_type(tensor))}, {self.payload(tensor, hint)}"
        if tensor.name:
            text += f", name={quote(tensor.name)}"
        if tensor.doc_string:
            text += f", doc={quote(tensor.doc_string)}"
        if tensor.metadata_props:
            text += f", meta={self.entries(tensor.metadata_props, in_order=True)}"
        return f"{text})"

    def payload(self, tensor: Tensor, hint: str) -> str:
        small = tensor.size <= self.limit
        if not small and self.weights == "elide":
            return "dense<...>"
        if not small and not isinstance(self.weights, str):
            name = self.weights(tensor, hint)
            if name is not None:
                return symbol_name(name)
        return elements_text(tensor, self.limit) or bytes_text(tensor_bytes(tensor))


def implied_name(loc: Loc) -> str:
    """Give the node name that a location implies: that of the one node it stands for, if no rule made it."""
    return loc.nodes[0] if len(loc.nodes) == 1 and not loc.rules else ""


def _title(graph: Graph) -> str:
    return f" {symbol_name(graph.name)}" if graph.name else " "


def _model_facts(info: ModelInfo, notes: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"ir_version": info.ir_version, "opset": info.opset_imports}
    fields = ("producer_name", "producer_version", "domain", "model_version", "doc", "metadata", "source_path")
    for field in (*fields, "source_sha256", "opaque"):
        value = getattr(info, field)
        if value and (notes or field not in ("doc", "metadata")):
            facts[field] = value
    return facts


__all__ = ["INLINE_LIMIT", "Reference", "implied_name", "print_graph", "print_op"]
