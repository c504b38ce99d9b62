"""Graphs: lists of ops with inputs and outputs, their schedule; a whole model, or the body of an op."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from memoptc.ir.budget import Meter
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.facts import Output, Tensor
from memoptc.ir.linked import Link, LinkedList
from memoptc.ir.model import ModelInfo, copy_info
from memoptc.ir.names import ModelNames, ValueNames
from memoptc.ir.operation import Op, clone_op, copy_facts
from memoptc.ir.tensors import tensor_type
from memoptc.ir.types import Type
from memoptc.ir.value import Value

T = TypeVar("T")

_VERSIONS = itertools.count(1)
"""No number is ever given out twice, so that a graph taken back to an earlier version meets no stale cache."""


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
        """True if `other` is this graph or lies inside one of its ops."""
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
        value = Value(len(self._inputs), type, name, input_of=self)
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
            value._input_of = self
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

    def clone(self, mapping: dict[Value, Value] | None = None, names_of: Graph | None = None) -> Graph:
        """Copy ops, values and regions; tensors are shared. Captured outer values stay the same.

        Args:
            mapping: Filled with old value -> new value; what it holds already is used for captures.
            names_of: Another version of a top graph: names that it has or had are not given again in the copy.
        """
        mapping = {} if mapping is None else mapping
        copy = Graph(self.name, None if self.model is None else copy_info(self.model))
        if names_of is not None:
            copy._model_names = names_of._model_names.copy()
        copy.doc, copy.metadata = self.doc, dict(self.metadata)
        for value in self._inputs:
            mapping[value] = copy_facts(value, copy.add_input(value.name, value.type))
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
