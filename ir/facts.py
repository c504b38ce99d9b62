"""Plain facts that ops and graphs carry: where they come from, what the model says beside its graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir

from memoptc.ir.types import Type, Typed

Tensor: TypeAlias = onnx_ir.TensorProtocol
AttrValue: TypeAlias = Any
"""int | float | str | bytes | Tensor | Type | AttrRef | EmptyList, or a tuple of one of the first six."""


OBSERVED = "memoptc.observed_bytes"
"""Metadata of a value: its bytes as an expression, as runs showed it and nobody proved; never written to a file."""

UNSTATED = "memoptc.unstated"
"""Metadata of a body's input, or of a value in one: what of its type the file leaves open, `type`, `shape` or
`extents`, which states the rank; never written to a file.

Of what a Loop collects, onnxruntime takes the extents from its own inference where there are no trips: a type that we
inferred and wrote into the body would change that output.
"""


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
    """Origin of an op.

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
class Output(Typed):
    """Declaration of a graph output: its name, and the type that was declared, if any."""

    name: str
    type: Type | None = None
    doc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
