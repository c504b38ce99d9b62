"""Ops: what a node of a model is, with edges to the values it uses that are stored at both ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memoptc.ir.diagnostics import InternalError
from memoptc.ir.facts import NOWHERE, Loc
from memoptc.ir.linked import Link
from memoptc.ir.read_only import Attributes, Regions
from memoptc.ir.types import Type
from memoptc.ir.value import Value

if TYPE_CHECKING:
    from memoptc.ir.graph import Graph


class Op:
    """An operation: any ONNX or custom operator, `const`, `absent` or `return`.

    Args:
        op_type: Operator name, such as `Conv`.
        operands: Inputs in order. An optional input that is not given is an `absent` value.
        result_types: One type (or `None` for unknown) per result.
        attrs: Attribute name -> plain value: int, float, str, bytes, tensor, tuples of them, types.
        regions: Attribute name -> subgraph, for If, Loop, Scan and the like.
        domain: Operator domain; `""` for standard ONNX.
        result_names: Names of the results; made up when not given.
        name: Name of the node.
        loc: Where it comes from.
        overload: Which of several functions with the same name, else `""`.
    """

    __slots__ = (
        "_attrs", "_link", "_operands", "_regions", "_results", "doc", "domain", "graph", "loc",
        "metadata", "name", "op_type", "overload",
    )  # fmt: skip

    def __init__(
        self,
        op_type: str,
        operands: Iterable[Value] = (),
        result_types: Iterable[Type | None] = (None,),
        attrs: Mapping[str, Any] | None = None,
        regions: Mapping[str, Graph] | None = None,
        *,
        domain: str = "",
        result_names: Sequence[str] | None = None,
        name: str = "",
        loc: Loc = NOWHERE,
        overload: str = "",
    ) -> None:
        self.op_type = op_type
        self.domain = "" if domain == "ai.onnx" else domain
        self.overload = overload
        self.name = name
        self.loc = loc
        self.doc = ""
        self.metadata: dict[str, str] = {}
        self.graph: Graph | None = None
        self._link: Link[Op] | None = None
        self._attrs = Attributes(attrs or {})
        self._operands: tuple[Value, ...] = ()
        self._regions: Regions[Graph] = Regions()
        types = tuple(result_types)
        names = tuple(result_names) if result_names is not None else ("",) * len(types)
        if len(names) != len(types):
            raise InternalError(f"{op_type}: {len(types)} results but {len(names)} names")
        self._results = tuple(Value(i, t, n, op=self) for i, (t, n) in enumerate(zip(types, names, strict=True)))
        self.set_operands(operands)
        for key, region in (regions or {}).items():
            self.set_region(key, region)

    @property
    def operands(self) -> tuple[Value, ...]:
        """The values this op uses."""
        return self._operands

    @operands.setter
    def operands(self, values: object) -> None:
        raise AttributeError("op.operands cannot be assigned: use op.set_operand(i, value) or op.set_operands(values)")

    @property
    def results(self) -> tuple[Value, ...]:
        """The values this op defines."""
        return self._results

    @results.setter
    def results(self, values: object) -> None:
        raise AttributeError("op.results cannot be assigned: make a new Op, value.replace_by(...) and op.erase()")

    @property
    def operand(self) -> Value:
        """The first operand."""
        return self._operands[0]

    @property
    def result(self) -> Value:
        """The first result."""
        return self._results[0]

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes, read-only; change them with `set_attr`."""
        return self._attrs

    @property
    def regions(self) -> Mapping[str, Graph]:
        """Subgraphs by attribute name, read-only; change them with `set_region`."""
        return self._regions

    @property
    def key(self) -> str:
        """`Conv`, or `com.microsoft::FusedConv` outside the standard domain."""
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type

    @property
    def is_return(self) -> bool:
        """True if this is the final op of a graph."""
        return self.op_type == "return" and not self.domain

    @property
    def is_const(self) -> bool:
        """True if this holds a weight."""
        return self.op_type == "const" and not self.domain

    def is_a(self, *keys: str) -> bool:
        """True if the operator is one of `keys` (as `key` spells them)."""
        return self.key in keys

    def input(self, index: int) -> Value | None:
        """Operand `index`, or `None` when it is not given (too few operands, or absent)."""
        if index < len(self._operands) and not self._operands[index].is_absent:
            return self._operands[index]
        return None

    def output(self, index: int) -> Value | None:
        """Result `index`, or `None` when it does not exist or is omitted."""
        if index < len(self._results) and not self._results[index].omitted:
            return self._results[index]
        return None

    def set_operand(self, index: int, value: Value) -> None:
        """Make operand `index` another value."""
        old = self._operands[index]
        if old is value:
            return
        del old._uses[(self, index)]
        value._uses[(self, index)] = None
        self._operands = (*self._operands[:index], value, *self._operands[index + 1 :])
        self._touch()

    def set_operands(self, values: Iterable[Value]) -> None:
        """Replace all operands; their number may change."""
        for index, old in enumerate(self._operands):
            old._uses.pop((self, index), None)
        self._operands = tuple(values)
        for index, value in enumerate(self._operands):
            value._uses[(self, index)] = None
        self._touch()

    def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute; `None` removes it. Lists become tuples."""
        if value is None:
            dict.pop(self._attrs, name, None)
        else:
            dict.__setitem__(self._attrs, name, tuple(value) if isinstance(value, list) else value)
        self._touch()

    def set_region(self, name: str, region: Graph | None) -> None:
        """Set, or with `None` drop, a subgraph. A dropped one lets go of what it used."""
        old = dict.pop(self._regions, name, None)
        if old is not None and old is not region:
            old.parent = None
            old._drop_all_uses()
        if region is not None:
            if region.parent is not None and region.parent is not self:
                raise InternalError(f"region {name} of {self.key} already belongs to another op")
            region.parent = self
            dict.__setitem__(self._regions, name, region)
            if self.graph is not None:
                self.graph._names_add_region(region)
        self._touch()

    def take_region(self, name: str) -> Graph:
        """Detach a subgraph, whole, so that another op can own it."""
        region = dict.pop(self._regions, name)
        region._taken_from = (region.root, region.version)
        region.parent = None
        self._touch()
        return region

    @property
    def next(self) -> Op | None:
        """The op after this one in its graph."""
        return None if self._link is None else self._link.next.item

    @property
    def prev(self) -> Op | None:
        """The op before this one in its graph."""
        return None if self._link is None else self._link.prev.item

    def move_before(self, anchor: Op) -> None:
        """Put this op just before `anchor`; in another graph, results get new names where theirs are taken."""
        if anchor is not self:
            graph, link = _position(anchor)
            self._leave_for(graph)
            graph._insert(self, link.prev)

    def move_after(self, anchor: Op) -> None:
        """Put this op just after `anchor`; in another graph, results get new names where theirs are taken."""
        if anchor is not self:
            graph, link = _position(anchor)
            self._leave_for(graph)
            graph._insert(self, link)

    def _leave_for(self, graph: Graph) -> None:
        moves = self.graph is not graph
        self._unlink()
        if moves:
            for result in self._results:
                if graph._defines(result.name):
                    result.name = graph.fresh_name(result.name)

    def replace_by(self, *values: Value) -> None:
        """Let other values take the place of this op's results, under their names, and erase the op.

        Args:
            values: One for each result: it takes over the result's uses, name, doc and metadata.
        """
        taken = [(new, old.name) for old, new in zip(self._results, values, strict=True)]
        for old, new in zip(self._results, values, strict=True):
            new.doc, new.metadata, new.omitted = old.doc, dict(old.metadata), old.omitted
            old.replace_by(new)
        self.erase()
        for new, name in taken:
            new.name = name

    def erase(self) -> None:
        """Take this op out of its graph for good.

        Raises:
            InternalError: a result is still used; send its users elsewhere first.
        """
        for result in self._results:
            if result._uses:
                users = ", ".join(sorted({op.key for op in result.users}))
                raise InternalError(f"{self.key} cannot be erased: %{result.name} is used by {users}")
        if self.is_return and self.graph is not None:
            raise InternalError("the return of a graph cannot be erased: use graph.set_outputs(...)")
        self._unlink()
        self._drop_operands()

    def _drop_operands(self) -> None:
        for index, old in enumerate(self._operands):
            old._uses.pop((self, index), None)
        self._operands = ()
        for region in self._regions.values():
            region._drop_all_uses()

    def _unlink(self) -> None:
        if self.graph is not None and self._link is not None:
            self.graph._touch()
            for result in self._results:
                self.graph._value_names.count(result.name, -1)
            self.graph._ops.remove(self._link)
            self.graph, self._link = None, None

    def _touch(self) -> None:
        if self.graph is not None:
            self.graph._touch()

    def walk(self) -> Iterator[Op]:
        """This op, then every op inside its regions."""
        yield self
        for region in tuple(self._regions.values()):
            yield from region.walk()

    def __repr__(self) -> str:
        results = ", ".join(f"%{r.name}" for r in self._results)
        return f"<Op {results} = {self.key}({', '.join(f'%{v.name}' for v in self._operands)})>"


def _position(op: Op) -> tuple[Graph, Link[Op]]:
    if op.graph is None or op._link is None:
        raise InternalError(f"{op.key} is in no graph")
    return op.graph, op._link


def copy_facts(old: Value, new: Value) -> Value:
    """Copy what a value carries beside its type."""
    new.doc, new.metadata, new.omitted = old.doc, dict(old.metadata), old.omitted
    return new


def clone_op(op: Op, mapping: dict[Value, Value]) -> Op:
    """Copy one op, not yet in any graph, with operands taken through `mapping`, which gets its results."""
    copy = Op(
        op.op_type,
        [mapping.get(v, v) for v in op.operands],
        [r.type for r in op.results],
        op._attrs,
        domain=op.domain,
        result_names=[r.name for r in op.results],
        name=op.name,
        loc=op.loc,
        overload=op.overload,
    )
    copy.doc, copy.metadata = op.doc, dict(op.metadata)
    for old, new in zip(op.results, copy.results, strict=True):
        mapping[old] = copy_facts(old, new)
    for key, region in op._regions.items():
        copy.set_region(key, region.clone(mapping))
    return copy
