"""Values, ops and graphs: a program, with use-def chains that cannot go wrong.

Everything that uses a value is an operand: a graph's outputs are the operands of its final `return` op,
weights are results of `const`, and an optional input that is not given is the result of `absent`. Ops live
in a linked list that may be changed while one walks it; its order is the schedule.

`Value`, `Op` and `Graph` stand in one file because they are one data structure: each refers to the other two, an edge
is stored at both its ends, and every change of one of them raises the version of the graphs around it. What they are
made of and can be read alone is elsewhere: `linked` (the list), `names`, `facts`, `types`, `read_only`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from memoptc.ir.budget import Meter
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.facts import (
    NOWHERE,
    AttrRef,
    AttrValue,
    EmptyList,
    Loc,
    Output,
    Tensor,
)
from memoptc.ir.linked import Link, LinkedList
from memoptc.ir.names import ModelNames, ValueNames
from memoptc.ir.read_only import Attributes, Regions
from memoptc.ir.tensors import tensor_type
from memoptc.ir.types import Type, Typed

__all__ = [
    "NOWHERE", "AttrRef", "AttrValue", "EmptyList", "Function", "Graph", "Loc", "ModelInfo", "Op", "Output",
    "Tensor", "Value", "clone_op",
]  # fmt: skip

T = TypeVar("T")

_VERSIONS = itertools.count(1)
"""No number is ever given out twice, so that a graph taken back to an earlier version meets no stale cache."""


class Value(Typed):
    """A result of an op, or an input of a graph. Made by `Op` and `Graph.add_input`, never alone."""

    __slots__ = ("_name", "_owner", "_type", "_uses", "doc", "index", "metadata", "omitted")

    def __init__(self, owner: Op | Graph, index: int, type: Type | None, name: str) -> None:
        self._owner = owner
        self._type = type
        self._uses: dict[tuple[Op, int], None] = {}
        self.index = index
        self._name = name
        self.omitted = False
        self.doc = ""
        self.metadata: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The name, unique within the graph that defines the value."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        graph = self._owner if isinstance(self._owner, Graph) else self._owner.graph
        if graph is not None and name != self._name:
            graph._value_names.count(self._name, -1)
            graph._value_names.count(name, 1)
        self._name = name

    @property
    def type(self) -> Type | None:
        """The type as far as it is known."""
        return self._type

    @type.setter
    def type(self, type: Type | None) -> None:
        if type != self._type:
            self._type = type
            self.graph._touch()

    @property
    def op(self) -> Op | None:
        """The op whose result this is; `None` for an input of a graph."""
        return self._owner if isinstance(self._owner, Op) else None

    @property
    def graph(self) -> Graph:
        """The graph that defines this value.

        Raises:
            InternalError: the op was erased.
        """
        if isinstance(self._owner, Graph):
            return self._owner
        if self._owner.graph is None:
            raise InternalError(f"%{self.name} belongs to an op that is in no graph")
        return self._owner.graph

    @property
    def is_input(self) -> bool:
        """Whether this is an input of a graph."""
        return isinstance(self._owner, Graph)

    @property
    def uses(self) -> tuple[tuple[Op, int], ...]:
        """Every use as (op, operand index), oldest first; uses inside subgraphs included."""
        return tuple(self._uses)

    @property
    def users(self) -> tuple[Op, ...]:
        """The ops that use this value, each once."""
        return tuple(dict.fromkeys(op for op, _ in self._uses))

    @property
    def has_uses(self) -> bool:
        """Whether anything uses this value."""
        return bool(self._uses)

    @property
    def use_count(self) -> int:
        """How many uses there are; cheaper than `len(value.uses)`."""
        return len(self._uses)

    @property
    def single_use(self) -> bool:
        """Whether there is exactly one use."""
        return len(self._uses) == 1

    @property
    def is_absent(self) -> bool:
        """Whether this stands for an optional input that is not given."""
        return isinstance(self._owner, Op) and self._owner.op_type == "absent" and not self._owner.domain

    @property
    def is_output(self) -> bool:
        """Whether a `return` uses this value."""
        return any(op.is_return for op, _ in self._uses)

    @property
    def tensor(self) -> Tensor | None:
        """The constant this value holds, when it is the result of `const`; else `None`."""
        if isinstance(self._owner, Op) and self._owner.is_const:
            tensor: Tensor = self._owner.attrs["value"]
            return tensor
        return None

    def replace_by(self, other: Value, *, where: Callable[[Op, int], bool] | None = None) -> None:
        """Make every use (or those for which `where(op, index)` holds) use `other` instead."""
        if other is self:
            return
        for op, index in self.uses:
            if where is None or where(op, index):
                op.set_operand(index, other)

    def __repr__(self) -> str:
        return f"<Value %{self.name}>"


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
        self._results = tuple(Value(self, i, t, n) for i, (t, n) in enumerate(zip(types, names, strict=True)))
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
        """Whether this is the final op of a graph."""
        return self.op_type == "return" and not self.domain

    @property
    def is_const(self) -> bool:
        """Whether this holds a weight."""
        return self.op_type == "const" and not self.domain

    def is_a(self, *keys: str) -> bool:
        """Whether the operator is one of `keys` (as `key` spells them)."""
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
    """Facts of a model beside its graph. Lives on the top graph as `graph.model`.

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


class Graph:
    """A list of ops with inputs and outputs: a whole model, or the body of an op (then a *region*).

    Args:
        name: Name of the graph.
        model: Facts about the model, for a top graph; `None` for a region.
    """

    def __init__(self, name: str = "", model: ModelInfo | None = None) -> None:
        self.name = name
        self.model = model
        self.parent: Op | None = None
        self.doc = ""
        self.metadata: dict[str, str] = {}
        self.meter: Meter | None = None
        """Counts every change of a top graph while a bounded pass runs."""
        self.defaults: dict[Value, Tensor] = {}
        """Inputs that the caller may leave out, with the tensor they then hold (not a constant)."""
        self.outputs_info: list[Output] = []
        self._inputs: list[Value] = []
        self._ops: LinkedList[Op] = LinkedList()
        self._version = 0
        self._cache: dict[Hashable, tuple[int, Any]] = {}
        self._model_names = ModelNames()
        self._value_names = ValueNames()
        self._taken_from: tuple[Graph, int] | None = None
        self._return = Op("return", result_types=())
        self._return.graph = self

    # -- structure ------------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Inputs in order."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Outputs in order: the operands of the final `return`."""
        return self._return._operands

    @property
    def terminator(self) -> Op:
        """The final `return` op, which always exists and cannot be erased."""
        return self._return

    @property
    def ops(self) -> Iterator[Op]:
        """The ops in order, without the final `return`. Ops may be inserted and erased meanwhile."""
        return iter(self._ops)

    def __len__(self) -> int:
        """Number of ops, the final `return` and ops inside regions not counted."""
        return len(self._ops)

    @property
    def first(self) -> Op | None:
        """The first op."""
        return self._ops.first

    @property
    def last(self) -> Op | None:
        """The last op before the final `return`."""
        return self._ops.last

    def walk(self, *keys: str, nested: bool = True) -> Iterator[Op]:
        """Every op (of the operators `keys`, when given), a region's ops right after their owner."""
        todo = [(self, self.ops)]
        while todo:
            graph, ops = todo[-1]
            op = next(ops, None)
            if op is None:
                todo.pop()
                continue
            if not keys or op.key in keys:
                yield op
            if nested and op._regions and op.graph is graph:
                todo += [(region, region.ops) for region in reversed(op._regions.values())]

    @property
    def root(self) -> Graph:
        """The top graph this graph is inside of, or itself."""
        graph = self
        while graph.parent is not None and graph.parent.graph is not None:
            graph = graph.parent.graph
        return graph

    @property
    def info(self) -> ModelInfo:
        """The model's facts, from anywhere inside it."""
        model = self.root.model
        if model is None:
            raise InternalError(f"graph {self.name!r} belongs to no model")
        return model

    def encloses(self, other: Graph) -> bool:
        """Whether `other` is this graph or lies inside one of its ops."""
        graph: Graph | None = other
        while graph is not None:
            if graph is self:
                return True
            graph = graph.parent.graph if graph.parent is not None else None
        return False

    def captures(self) -> tuple[Value, ...]:
        """Values of enclosing graphs that this region uses, in order of first use. Found once per version."""
        return self.analysis(_captures)

    # -- change ---------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Grows with every change of this graph or of a region inside it."""
        return self._version

    def _touch(self) -> None:
        version = next(_VERSIONS)
        graph = self
        graph._version = version
        while graph.parent is not None and graph.parent.graph is not None:
            graph = graph.parent.graph
            graph._version = version
        if graph.meter is not None:
            graph.meter.step()

    def mark(self) -> tuple[tuple[Graph, int], ...]:
        """Give the versions of this graph and those around it, for `rewind`."""
        found: list[tuple[Graph, int]] = []
        graph: Graph | None = self
        while graph is not None:
            found.append((graph, graph._version))
            graph = graph.parent.graph if graph.parent is not None else None
        return tuple(found)

    @staticmethod
    def rewind(mark: tuple[tuple[Graph, int], ...]) -> None:
        """Say that every change since `mark` was taken back again, so that nothing counts as changed."""
        for graph, version in mark:
            graph._version = version

    def add_input(self, name: str, type: Type | None = None) -> Value:
        """Append an input."""
        value = Value(self, len(self._inputs), type, name)
        self._inputs.append(value)
        self._names_add((name,))
        self._value_names.count(name, 1)
        self._touch()
        return value

    def erase_input(self, value: Value) -> None:
        """Take an input away.

        Raises:
            InternalError: it is still used.
        """
        if value.has_uses:
            raise InternalError(f"input %{value.name} cannot be erased: it is used")
        self._inputs.remove(value)
        self._value_names.count(value.name, -1)
        self.defaults.pop(value, None)
        for index, rest in enumerate(self._inputs):
            rest.index = index
        self._touch()

    def set_outputs(self, values: Iterable[Value], infos: Iterable[Output] | None = None) -> None:
        """Set the outputs; names and declared types stay per position unless `infos` gives new ones."""
        values = tuple(values)
        if infos is not None:
            self.outputs_info = list(infos)
        elif len(values) < len(self.outputs_info):
            del self.outputs_info[len(values) :]
        for index in range(len(self.outputs_info), len(values)):
            self.outputs_info.append(Output(values[index].name, values[index].type))
        if len(self.outputs_info) != len(values):
            raise InternalError(f"{len(values)} outputs but {len(self.outputs_info)} descriptions")
        self._names_add(o.name for o in self.outputs_info)
        self._return.set_operands(values)

    def append(self, op: Op) -> Op:
        """Put a new op at the end, before the final `return`."""
        return self._insert(op, self._ops.ends.prev)

    def prepend(self, op: Op) -> Op:
        """Put a new op at the very start."""
        return self._insert(op, self._ops.ends)

    def insert_before(self, anchor: Op, op: Op) -> Op:
        """Put a new op just before `anchor`, which may be the final `return`."""
        if anchor is self._return:
            return self.append(op)
        return self._insert(op, self._link_of(anchor).prev)

    def insert_after(self, anchor: Op, op: Op) -> Op:
        """Put a new op just after `anchor`."""
        return self._insert(op, self._link_of(anchor))

    def _insert(self, op: Op, after: Link[Op]) -> Op:
        if op.graph is not None:
            raise InternalError(f"{op.key} is in a graph already: use op.move_before or op.move_after")
        op._link, op.graph = self._ops.insert(op, after), self
        for result in op._results:
            if result.name:
                self._names_add((result.name,))
                self._value_names.count(result.name, 1)
            elif not result.omitted:
                result.name = self.fresh_name(op.op_type.lower())
        for region in op._regions.values():
            self._names_add_region(region)
        self._touch()
        return op

    def _link_of(self, anchor: Op) -> Link[Op]:
        if anchor.graph is not self or anchor._link is None:
            raise InternalError(f"{anchor.key} is not in graph {self.name!r}")
        return anchor._link

    def reorder(self, ops: Sequence[Op]) -> None:
        """Put all ops of this graph into the given order (a permutation of `self.ops`).

        Raises:
            InternalError: it is not a permutation of this graph's ops.
        """
        if len(ops) != len(self) or len(set(ops)) != len(self) or any(o.graph is not self for o in ops):
            raise InternalError(f"not a permutation of the {len(self)} ops of graph {self.name!r}")
        for op, link in zip(ops, self._ops.rearrange(ops), strict=True):
            op._link = link
        self._touch()

    def become(self, other: Graph) -> None:
        """Take over the ops and outputs of another graph with the same inputs, which is empty afterwards.

        What is said of outputs (declared types, documentation) stays where their names do.

        Raises:
            InternalError: the inputs do not correspond by name.
        """
        if [v.name for v in self._inputs] != [v.name for v in other._inputs]:
            raise InternalError(f"graph {other.name!r} has other inputs than {self.name!r}")
        self._return.set_operands(())
        for op in reversed(list(self.ops)):
            op.erase()
        for mine, theirs in zip(self._inputs, other._inputs, strict=True):
            theirs.replace_by(mine)
        outputs, infos = other.outputs, other.outputs_info
        if [o.name for o in infos] == [o.name for o in self.outputs_info]:
            infos = self.outputs_info
        other._return.set_operands(())
        for op in list(other.ops):
            op._unlink()
            self.append(op)
        self.set_outputs(outputs, infos)

    def replace_content(self, other: Graph) -> None:
        """Become exactly what another top graph is, which must not be used afterwards.

        Unlike with `become`, nothing needs to be intact here: ops, values and use-def chains are all `other`'s.
        """
        for op in other.ops:
            op.graph = self
        for value in other._inputs:
            value._owner = self
        other._return.graph = self
        self.__dict__.update({k: v for k, v in vars(other).items() if k not in ("parent", "meter", "_version")})
        self._cache = {}
        self._touch()

    def const(self, tensor: Tensor, name: str = "", type: Type | None = None) -> Value:
        """Add a weight at the start of this graph.

        Args:
            tensor: Its content (an `onnx_ir` tensor: memory-mapped ones stay on disk).
            name: Its name; made unique when taken.
            type: Its type, when already at hand; else read off the tensor.
        """
        op = Op("const", (), (type or tensor_type(tensor),), {"value": tensor})
        op.result.name = self.fresh_name(name or tensor.name or "const")
        return self.prepend(op).result

    def absent(self) -> Value:
        """Give the value that stands for an optional input that is not given (one per graph)."""
        first = self.first
        while first is not None and (first.is_const or first.op_type == "absent"):
            if first.op_type == "absent":
                return first.result
            first = first.next
        op = Op("absent", (), (None,), result_names=[self.fresh_name("absent")])
        return self.prepend(op).result

    # -- names, caches, copies ------------------------------------------------------------------------

    def _names_add(self, names: Iterable[str]) -> None:
        self.root._model_names.add(names)

    def _defines(self, name: str) -> bool:
        return self._value_names.has(name, lambda: (v.name for v in _values(self)))

    def _names_add_region(self, region: Graph) -> None:
        """The same for all names of a region, unless it was here before and is as it was."""
        taken_from, region._taken_from = region._taken_from, None
        if taken_from != (self.root, region._version):
            self._names_add(_all_names(region))

    def fresh_name(self, hint: str) -> str:
        """Give a name that no value or output of the whole model has, `hint` itself when it is free."""
        root = self.root
        return root._model_names.fresh(hint, lambda: _all_names(root))

    def analysis(self, compute: Callable[[Graph], T]) -> T:
        """Give `compute(self)`, computed at most once per version of this graph."""
        version, value = self._cache.get(compute, (-1, None))
        if version != self._version or value is None:
            value = compute(self)
            self._cache[compute] = (self._version, value)
        return value  # type: ignore[no-any-return]

    def clone(self, mapping: dict[Value, Value] | None = None) -> Graph:
        """Copy ops, values and regions; tensors are shared. Captured outer values stay the same.

        Args:
            mapping: Filled with old value -> new value; what it holds already is used for captures.
        """
        mapping = {} if mapping is None else mapping
        copy = Graph(self.name, None if self.model is None else _copy_info(self.model))
        copy.doc, copy.metadata = self.doc, dict(self.metadata)
        for value in self._inputs:
            mapping[value] = _copy_facts(value, copy.add_input(value.name, value.type))
        copy.defaults = {mapping[v]: t for v, t in self.defaults.items()}
        for op in self.ops:
            copy.append(clone_op(op, mapping))
        infos = [Output(o.name, o.type, o.doc, dict(o.metadata)) for o in self.outputs_info]
        copy.set_outputs([mapping.get(v, v) for v in self.outputs], infos)
        return copy

    def _drop_all_uses(self) -> None:
        for op in list(self.ops):
            op._drop_operands()
        self._return._drop_operands()

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {len(self)} ops>"


def _values(graph: Graph) -> Iterator[Value]:
    """The values that a graph itself defines."""
    yield from graph._inputs
    for op in graph.ops:
        yield from op._results


def _captures(graph: Graph) -> tuple[Value, ...]:
    found: dict[Value, None] = {}
    for op in (*graph.ops, graph._return):
        used = [*op._operands]
        for region in op._regions.values():
            used += region.captures()
        for value in used:
            if value.graph is not graph:
                found[value] = None
    return tuple(found)


def _all_names(graph: Graph) -> Iterator[str]:
    yield from (v.name for v in graph._inputs)
    yield from (o.name for o in graph.outputs_info)
    for op in graph.ops:
        yield from (r.name for r in op._results)
        for region in op._regions.values():
            yield from _all_names(region)


def _copy_facts(old: Value, new: Value) -> Value:
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
        mapping[old] = _copy_facts(old, new)
    for key, region in op._regions.items():
        copy.set_region(key, region.clone(mapping))
    return copy


def _copy_info(info: ModelInfo) -> ModelInfo:
    functions = {k: replace(f, body=f.body.clone(), attrs=dict(f.attrs)) for k, f in info.functions.items()}
    return replace(
        info,
        opset_imports=dict(info.opset_imports),
        metadata=dict(info.metadata),
        functions=functions,
        opaque=dict(info.opaque),
    )
