"""Values: results of ops and inputs of graphs, each with all of its uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memoptc.ir.diagnostics import InternalError
from memoptc.ir.facts import Tensor
from memoptc.ir.types import Type, Typed

if TYPE_CHECKING:
    from memoptc.ir.graph import Graph
    from memoptc.ir.operation import Op


class Value(Typed):
    """A result of an op, or an input of a graph. Made by `Op` and `Graph.add_input`, never alone."""

    __slots__ = ("_input_of", "_name", "_op", "_type", "_uses", "doc", "index", "metadata", "omitted")

    def __init__(
        self, index: int, type: Type | None, name: str, *, op: Op | None = None, input_of: Graph | None = None
    ) -> None:
        self._op = op
        self._input_of = input_of
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
        graph = self._input_of if self._op is None else self._op.graph
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
        return self._op

    @property
    def graph(self) -> Graph:
        """The graph that defines this value.

        Raises:
            InternalError: the op was erased.
        """
        graph = self._input_of if self._op is None else self._op.graph
        if graph is None:
            raise InternalError(f"%{self.name} belongs to an op that is in no graph")
        return graph

    @property
    def is_input(self) -> bool:
        """True if this is an input of a graph."""
        return self._input_of is not None

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
        """True if anything uses this value."""
        return bool(self._uses)

    @property
    def use_count(self) -> int:
        """Number of uses; cheaper than `len(value.uses)`."""
        return len(self._uses)

    @property
    def single_use(self) -> bool:
        """True if there is exactly one use."""
        return len(self._uses) == 1

    @property
    def is_absent(self) -> bool:
        """True if this stands for an optional input that is not given."""
        return self._op is not None and self._op.op_type == "absent" and not self._op.domain

    @property
    def is_output(self) -> bool:
        """True if a `return` uses this value."""
        return any(op.is_return for op, _ in self._uses)

    @property
    def tensor(self) -> Tensor | None:
        """The constant this value holds, when it is the result of `const`; else `None`."""
        if self._op is not None and self._op.is_const:
            tensor: Tensor = self._op.attrs["value"]
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
