"""Plain facts that ops and graphs carry: where they come from, what the model says beside its graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir

from memoptc.ir.types import Type

if TYPE_CHECKING:
    from memoptc.ir.core import Graph

Tensor: TypeAlias = onnx_ir.TensorProtocol
AttrValue: TypeAlias = Any
"""int | float | str | bytes | Tensor | Type | AttrRef | EmptyList, or a tuple of one of the first six."""


OBSERVED = "memoptc.observed_bytes"
"""Metadata of a value: its bytes as an expression, as runs showed it and nobody proved; never written to a file."""


@dataclass(frozen=True)
class AttrRef:
    """Inside a function body: the calling node's attribute `name`, of ONNX attribute type `kind`."""

    name: str
    kind: str


@dataclass(frozen=True)
class EmptyList:
    """An empty list attribute, which has to remember of what: an ONNX attribute type such as `INTS`."""

    kind: str

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class Loc:
    """Where an op comes from.

    Args:
        nodes: Names of the source model's nodes it stands for.
        rules: Passes and rules that made it, oldest first.
        file: Text file it was parsed from, with `line` and `col` (1-based).
    """

    nodes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    col: int = 0

    def union(self, *others: Loc, rule: str = "") -> Loc:
        """Join several origins, and the rule that joined them, in order and without repeats."""
        every = (self, *others)
        nodes = dict.fromkeys(n for loc in every for n in loc.nodes)
        rules = dict.fromkeys(r for loc in every for r in loc.rules)
        if rule:
            rules[rule] = None
        return Loc(tuple(nodes), tuple(rules), self.file, self.line, self.col)


NOWHERE = Loc()


@dataclass
class Output:
    """What a graph says of one of its outputs: its name, and the type that was declared, if any."""

    name: str
    type: Type | None = None
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class Function:
    """A model-local function: its body, and its attributes (name -> default, or `None` when required)."""

    domain: str
    name: str
    overload: str
    body: Graph
    attrs: dict[str, Any] = field(default_factory=dict)
    opset_imports: dict[str, int] = field(default_factory=dict)
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class ModelInfo:
    """What a model says beside its graph. Lives on the top graph as `graph.model`.

    Args:
        opset_imports: Domain -> version; `""` is standard ONNX.
        functions: (domain, name, overload) -> function.
        source_path: The file it was read from, `""` when it came from memory.
        source_sha256: Digest of that file (of the serialised model when it came from memory).
        opaque: Parts that memoptc does not look into (training info, device configurations), as
            serialised protobuf by field name, carried to the output as they are.
        states_types: Whether the file says types of inner values; a model that did not is written without.
        form: The form in which the file was written, where it was not plain (`memoptc.ir.forms`).
    """

    ir_version: int = 10
    opset_imports: dict[str, int] = field(default_factory=lambda: {"": 21})
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    functions: dict[tuple[str, str, str], Function] = field(default_factory=dict)
    source_path: str = ""
    source_sha256: str = ""
    opaque: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    states_types: bool = True
    form: str = ""
