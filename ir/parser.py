"""Parser of `.mir` text: the grammar is `text.lark`, the spelling of names, numbers and types `spelling.py`.

Ops are made while the text is read: a head (`op_head`, `region_head`, ...) is complete before what stands
inside it begins, so that names are looked up in the scopes open at that place, and every fault has a place.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from lark import Lark, Token
from lark.exceptions import UnexpectedInput

from memoptc.ir.core import Function, Graph, Loc, ModelInfo, Op, Output, Value
from memoptc.ir.diagnostics import InputError, syntax_error
from memoptc.ir.printer import implied_name
from memoptc.ir.text_clauses import Clause, ClauseReader, Note
from memoptc.ir.text_values import symbol_of, text_of, value_key, value_name_of
from memoptc.ir.types import Type
from memoptc.ir.weights import open_weights

_LOCK = threading.Lock()
_TEXT_FACTS = ("producer_name", "producer_version", "domain", "doc", "source_path", "source_sha256")


def parse(
    text: str,
    *,
    weights: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    file: str = "",
    first_line: int = 1,
    folder: str | os.PathLike[str] | None = None,
) -> Graph:
    """Read one module of `.mir` text.

    Args:
        text: The text.
        weights: Where `@name` is found: tensors or arrays by name, or an `.npz` or `.onnx` file; instead of the
            files that the text's `weights` lines name.
        file: Name of the text's file, for error messages; every op then carries its place in it.
        first_line: Line of `file` at which `text` begins.
        folder: Where the files that the text names lie; the folder of `file` when not given.

    Raises:
        SourceError: the text is wrong; the message shows where.
        InputError: a file of weights cannot be read.
    """
    base = Path(folder) if folder is not None else Path(file).parent
    with _LOCK:
        lark, reader = _lark()
        reader.begin(text, file, first_line, weights, base)
        try:
            return lark.parse(text)  # type: ignore[return-value]
        except UnexpectedInput as e:
            raise syntax_error(e, lark, text, file=file, first_line=first_line) from None
        finally:
            reader.begin("", "", 1, None, Path())


@cache
def _lark() -> tuple[Lark, _Reader]:
    reader = _Reader()
    grammar = resources.files("memoptc.ir").joinpath("text.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", transformer=reader, maybe_placeholders=True), reader


class _Input(NamedTuple):
    name: Token
    type: Type | None
    default: Any
    note: Note | None


class _Output(NamedTuple):
    name: str | None
    type: Type | None
    note: Note | None


class _OpHead(NamedTuple):
    """Head of an op's text: everything before its regions."""

    op: Op
    results: Sequence[Token]
    place: Token


@dataclass
class _Frame:
    """A graph that is being read."""

    graph: Graph
    outputs: list[_Output] | None
    place: Token
    facts: dict[str, Any]
    key: str = ""
    scope: dict[str, Value] = field(default_factory=dict)
    returned: list[Token] = field(default_factory=list)


class _Reader(ClauseReader):
    """Builds the graph. Each public method gets the children of the grammar rule of its name."""

    def begin(self, text: str, file: str, first_line: int, weights: Any, folder: Path) -> None:
        """Forget the last text and get ready for another."""
        self.text, self.file, self.first_line, self.folder = text, file, first_line, folder
        self.info = ModelInfo()
        self.frames: list[_Frame] = []
        self.sources: list[Mapping[str, Any]] = []
        self.fixed = weights is not None
        if weights is not None:
            self.sources.append(weights if isinstance(weights, Mapping) else open_weights(Path(weights)))

    # -- the module -----------------------------------------------------------------------------------

    def start(self, children: list[Any]) -> Graph:
        graph: Graph = next(c for c in children if isinstance(c, Graph))
        return graph

    def model(self, children: list[Any]) -> None:
        (entries,) = children
        for key, raw in entries:
            self._model_fact(key, raw)

    def _model_fact(self, key: Token, raw: Any) -> None:
        name, info = text_of(key), self.info
        if name in _TEXT_FACTS:
            setattr(info, name, self.expect(key, raw, str))
        elif name in ("ir_version", "model_version"):
            setattr(info, name, self.expect(key, raw, int))
        elif name == "opset":
            info.opset_imports = self.table_of(key, raw, int)
        elif name == "metadata":
            info.metadata = self.table_of(key, raw, str)
        elif name == "opaque":
            parts = self.table_of(key, raw, tuple)
            info.opaque = {k: tuple(self.expect(key, p, bytes) for p in v) for k, v in parts.items()}
        else:
            raise self.error(key, f"a model has no {name!r}")

    def weights(self, children: list[Any]) -> None:
        if not self.fixed:
            path = self.folder / self.string(children[0])
            try:
                self.sources.append(open_weights(path))
            except InputError as e:
                raise self.error(children[0], e.message, e.hint) from None

    def graph_head(self, children: list[Any]) -> None:
        place, symbol, inputs, outputs, *clauses = children
        self._open(Graph(symbol_of(symbol), self.info), inputs, outputs, place, clauses, ("doc", "meta"))

    def graph(self, children: list[Any]) -> Graph:
        return self._close().graph

    def function_head(self, children: list[Any]) -> None:
        (place, domain, op_type), inputs, outputs, *clauses = children
        allowed = ("overload", "opset", "attributes", "name", "doc", "meta", "body")
        graph = Graph(op_type)
        self._open(graph, inputs, outputs, place, clauses, allowed, key=domain)
        graph.name = self.frames[-1].facts.get("name", op_type)
        frame = self.frames[-1]
        frame.facts["op_type"] = op_type

    def function(self, children: list[Any]) -> None:
        frame = self._close()
        graph, facts = frame.graph, frame.facts
        graph.doc, graph.metadata = facts.get("body", ("", {}))
        made = Function(
            frame.key,
            facts["op_type"],
            facts.get("overload", ""),
            graph,
            facts.get("attributes", {}),
            facts.get("opset", {}),
            facts.get("doc", ""),
            facts.get("meta", {}),
        )
        name = (made.domain, made.name, made.overload)
        if name in self.info.functions:
            raise self.error(frame.place, "this function is defined twice")
        self.info.functions[name] = made

    def region_head(self, children: list[Any]) -> None:
        key, symbol, inputs, outputs, *clauses = children
        self._open(Graph(symbol_of(symbol)), inputs, outputs, key, clauses, ("doc", "meta"), key=text_of(key))

    def region(self, children: list[Any]) -> _Frame:
        return self._close()

    def _open(
        self, graph: Graph, inputs: list[_Input], outputs: list[_Output] | None, place: Token,
        clauses: list[Clause], allowed: tuple[str, ...], key: str = "",
    ) -> None:  # fmt: skip
        facts = self.facts_of(place, clauses, allowed)
        graph.doc, graph.metadata = facts.get("doc", ""), facts.get("meta", {})
        frame = _Frame(graph, outputs, place, facts, key)
        self.frames.append(frame)
        for entry in inputs:
            name, _ = value_name_of(entry.name)
            value = graph.add_input(name, entry.type)
            if entry.note is not None:
                value.doc, value.metadata = entry.note
            if entry.default is not None:
                graph.defaults[value] = self.content_of(entry.name, entry.default, entry.type, name)
            self._define(entry.name, value)

    def _close(self) -> _Frame:
        frame = self.frames[-1]
        values = [self._lookup(token) for token in frame.returned]
        if frame.outputs is None:
            infos = [Output(v.name, v.type) for v in values]
        elif len(frame.outputs) != len(values):
            place = frame.returned[-1] if frame.returned else frame.place
            raise self.error(place, f"{len(values)} values are returned, but {len(frame.outputs)} outputs are declared")
        else:
            pairs = zip(frame.outputs, values, strict=True)
            infos = [Output(v.name if o.name is None else o.name, o.type, *(o.note or ())) for o, v in pairs]
        frame.graph.set_outputs(values, infos)
        self.frames.pop()
        return frame

    def inputs(self, children: list[Any]) -> list[_Input]:
        return [c for c in children if c is not None]

    def input(self, children: list[Any]) -> _Input:
        return _Input(*children)

    def outputs(self, children: list[Any]) -> list[_Output]:
        return [c for c in children if c is not None]

    def output(self, children: list[Any]) -> _Output:
        name, type_, note = children
        return _Output(name, type_, note)

    def declared(self, children: list[Any]) -> Type | None:
        type_: Type | None = children[0]
        return type_

    def default(self, children: list[Any]) -> Any:
        return children[0]

    def output_name(self, children: list[Any]) -> str:
        return text_of(children[0])

    def body(self, children: list[Any]) -> None:
        self.frames[-1].returned = children[-1]

    def returned(self, children: list[Any]) -> list[Token]:
        return [c for c in children if c is not None]

    # -- values ---------------------------------------------------------------------------------------

    def _define(self, token: Token, value: Value) -> None:
        key = value_key(token)
        # A function's body sees nothing of the graph, so only frames of one nest are looked at.
        for frame in self.frames:
            if key in frame.scope:
                where = "" if frame is self.frames[-1] else " around this one"
                raise self.error(token, f"{token} is defined already{where}")
        self.frames[-1].scope[key] = value

    def _lookup(self, token: Token) -> Value:
        key = value_key(token)
        for frame in reversed(self.frames):
            value = frame.scope.get(key)
            if value is not None:
                return value
        known = [k for f in self.frames for k in f.scope]
        close = difflib.get_close_matches(key, known[-2000:], n=1)
        hint = f"Did you mean {close[0]}?" if close else "A value is defined before it is used."
        raise self.error(token, f"{token} is not defined here", hint)

    # -- ops ------------------------------------------------------------------------------------------

    def op(self, children: list[Any]) -> None:
        (op, results, _), *regions = children
        for frame in regions:
            if frame.key in op.regions:
                raise self.error(frame.place, f"region {frame.key!r} is given twice")
            op.set_region(frame.key, frame.graph)
        self.frames[-1].graph.append(op)
        for token, value in zip(results, op.results, strict=True):
            if not value.omitted:
                if token.startswith('%""'):
                    value.name = ""  # an op that comes into a graph makes up a name where there is none
                self._define(token, value)

    def op_head(self, children: list[Any]) -> _OpHead:
        results, (place, domain, op_type), operands, entries, types, *clauses = children
        facts = self.facts_of(place, clauses, ("loc", "name", "doc", "meta", "overload")) if clauses else {}
        if types is None:
            types = [(None, None)] * len(results)
        elif len(types) != len(results):
            raise self.error(place, f"{len(results)} results but {len(types)} types")
        names = ["" if t == "_" else value_name_of(t)[0] for t in results]
        if entries is None:
            attrs = {}
        elif op_type == "const" and not domain:
            attrs = self.const_attrs_of(entries, types, names)
        else:
            attrs = self.attrs_of(entries)
        loc = facts.get("loc", Loc())
        if self.file and not loc.line:
            line = (place.line or 1) + self.first_line - 1
            loc = Loc(loc.nodes, loc.rules, self.file, line, results[0].column if results else place.column or 0)
        op = Op(
            op_type,
            [self._lookup(t) for t in operands],
            [t for t, _ in types],
            attrs,
            domain=domain,
            result_names=names,
            name=facts["name"] if "name" in facts else implied_name(loc),
            loc=loc,
            overload=facts.get("overload", ""),
        )
        op.doc, op.metadata = facts.get("doc", ""), facts.get("meta", {})
        for token, result, (_, note) in zip(results, op.results, types, strict=True):
            if note is not None:
                result.doc, result.metadata = note
            result.omitted = token == "_"
        return _OpHead(op, results, place)

    def results(self, children: list[Any]) -> list[Token]:
        return children

    def operands(self, children: list[Any]) -> list[Token]:
        return [] if children == [None] else children

    def types(self, children: list[Any]) -> list[Any]:
        return children

    def typed(self, children: list[Any]) -> tuple[Type | None, Note | None]:
        type_, note = children
        return type_, note

    def plain_op(self, children: list[Any]) -> tuple[Token, str, str]:
        (token,) = children
        domain, separator, op_type = token.rpartition("::")
        return token, domain if separator else "", op_type

    def quoted_op(self, children: list[Any]) -> tuple[Token, str, str]:
        domain, op_type = children
        return domain, self.string(domain), self.string(op_type)
