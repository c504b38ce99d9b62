"""Guarantees of the driver about every rule: users of what goes away, positions of what is new, types of results."""

from __future__ import annotations

from collections.abc import Sequence

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.diagnostics import InternalError
from memoptc.ir.types import DType, TensorType
from memoptc.rewrite.pattern import Match, NoMatch


def check_outside_users(match: Match, replaced: Sequence[Value]) -> Graph:
    """Decline unless the matched ops lie in one graph and nothing outside uses what goes away; give the graph."""
    inside = set(match.ops.values())
    graph = replaced[0].op.graph if replaced[0].op is not None else None
    if graph is None:
        raise NoMatch("no longer in the graph")
    kept = {op for pattern, op in match.ops.items() if pattern.keep}
    uses: dict[Value, int] = {}
    for op in inside:
        if op.graph is not graph:
            raise NoMatch("crosses a subgraph")
        for value in op.operands:
            uses[value] = uses.get(value, 0) + 1
    roots = {value.op for value in replaced}
    for op in inside - kept:
        for result in op.results:
            if result not in replaced and result.use_count > uses.get(result, 0):
                raise NoMatch(
                    "another result of the root has users" if op in roots else "an inner result has other users"
                )
    return graph


def find_place(graph: Graph, match: Match, replaced: Sequence[Value]) -> Op:
    """Give the op before which the replacement may stand: after what it may use, before the first who uses it.

    Between the first and the last root, some other op may use one root's value, and others make what the next root
    needs; only if all of the latter come first is there a place.
    """
    roots = list(dict.fromkeys(v.op for v in replaced if v.op is not None))
    if len(roots) == 1:
        return roots[0]
    segment = _between(roots)
    inside = set(match.ops.values())
    made_inside = {r for o in inside for r in o.results}
    users = {_in_graph(u, graph) for v in replaced for u in v.users} - inside
    needed = {v.op for o in inside for v in o.operands if v not in made_inside}
    needed |= {op for pattern, op in match.ops.items() if pattern.keep or pattern.bind} - set(roots)
    place, waiting = segment[-1], False
    for op in segment:
        if op in users and not waiting:
            place, waiting = op, True
        if waiting and op in needed:
            raise NoMatch("a result is used between the roots")
    return place


def _between(roots: Sequence[Op]) -> list[Op]:
    """The ops from the first root in order to the last, both included; walks no farther than that from each."""
    walks: dict[Op, tuple[list[Op], set[Op]]] = {root: ([root], set(roots) - {root}) for root in roots}
    while walks:
        for root, (walk, missing) in list(walks.items()):
            following = walk[-1].next
            if following is None:
                del walks[root]
                continue
            walk.append(following)
            missing.discard(following)
            if not missing:
                return walk
    raise NoMatch("no place for the replacement")


def _in_graph(op: Op, graph: Graph) -> Op:
    """The op of `graph` that an op is, or lies inside of."""
    while op.graph is not graph and op.graph is not None and op.graph.parent is not None:
        op = op.graph.parent
    return op


class Snapshot:
    """A match as it was before its rule ran.

    Args:
        graph: The graph of the match.
        match: The match.
    """

    def __init__(self, graph: Graph, match: Match) -> None:
        self._graph, self._size, self._mark = graph, len(graph), graph.mark()
        self._ops = [(o, o.operands, dict(o.attrs), [r.type for r in o.results]) for o in match.ops.values()]
        self._imports = dict(graph.info.opset_imports) if graph.root.model is not None else None

    def restore(self, made: Sequence[Op], what: str) -> None:
        """Take back what was built.

        Args:
            made: What was built, in order.
            what: What happened, for the message.

        Raises:
            InternalError: something else was changed, too.
        """
        for op in reversed(made):
            if op.graph is not None and not any(r.has_uses for r in op.results):
                op.erase()
        if any(o.graph is not None for o in made) or any(
            o.graph is not self._graph or o.operands != v or dict(o.attrs) != a or [r.type for r in o.results] != t
            for o, v, a, t in self._ops
        ):
            raise InternalError(f"{what} after it had changed the graph")
        if self._imports is not None:
            imports = self._graph.info.opset_imports
            imports.clear()
            imports.update(self._imports)
        if len(self._graph) == self._size:
            Graph.rewind(self._mark)


def fits_type(rule: str, old: Sequence[Value], new: Sequence[Value]) -> None:
    """Check that values may take the place of others.

    Raises:
        NoMatch: the shapes disagree; one of them may be what the model states, and wrong.
        InternalError: the element types, or kinds of types, disagree.
    """
    for was, value in zip(old, new, strict=True):
        if was.type is None or value.type is None:
            continue
        one_dtype = was.dtype == value.dtype or DType.UNDEFINED in (was.dtype, value.dtype)
        if type(was.type) is not type(value.type) or not one_dtype:
            raise InternalError(f"rule {rule} replaces %{was.name}, of type {was.type}, by one of type {value.type}")
        if was.shape is not None and value.shape is not None:
            if was.rank != value.rank:
                raise NoMatch("another rank")
            pairs = zip(was.shape, value.shape, strict=True)
            if any(isinstance(i, int) and isinstance(j, int) and i != j for i, j in pairs):
                raise NoMatch("another shape")


def refine_type(new: Value, old: Value, *, fresh: bool) -> None:
    """Give a value what was known of the one it replaces; of one just made, that takes precedence."""
    if new.type is None:
        new.type = old.type
    was, now = old.tensor_type, new.tensor_type
    if was is None or now is None:
        return
    dtype = was.dtype if now.dtype == DType.UNDEFINED else now.dtype
    shape = now.shape if now.shape is not None else was.shape
    if now.shape is not None and was.shape is not None:
        first, second = (was.shape, now.shape) if fresh else (now.shape, was.shape)
        shape = tuple(
            b if a is None or (isinstance(b, int) and fresh) else a for a, b in zip(first, second, strict=True)
        )
    if (dtype, shape) != (now.dtype, now.shape):
        new.type = TensorType(dtype, shape, now.denotation)
