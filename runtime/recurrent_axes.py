"""Axes that recurrent operators take: those of their initial states count a batch, never steps."""

from __future__ import annotations

from collections.abc import Mapping

from memoptc.ir.core import Graph, Op, Value
from memoptc.ir.dims import KnownDim, Sym
from memoptc.ir.ops import VIEWS, definition
from memoptc.ir.ops.parameters import RecurrentState


def with_recurrent_axes(
    classes: Mapping[str, tuple[str, bool]], graph: Graph, values: Mapping[str, KnownDim]
) -> dict[str, tuple[str, bool]]:
    """Correct what axes look like by the recurrent operators that take them.

    An initial state has directions, a batch and hidden units, and no axis of steps, wherever its batch lies. Where the
    batch of a sequence is known by that, or fixed, its other axis counts steps, even if it is the first.

    Args:
        classes: Symbol -> what its axis looks like, and whether it has a name.
        graph: The model, shapes inferred.
        values: Symbols that are solved: those that equal another one look like that.
    """
    equal = [(name, s) for name, dim in values.items() for s in classes if s != name and dim == Sym(s)]
    recurrent = [op for op in graph.walk() if _states(op)]
    batches = classes.keys() & {extent.name for op in recurrent for extent in _batch_of_states(op)}
    while more := {n for pair in equal if batches & set(pair) for n in pair} - batches:
        batches |= more
    steps = {name for op in recurrent for name in classes if Sym(name) == _steps(op, batches)} - batches
    found = dict(classes)
    for name, (kind, named) in classes.items():
        if kind != "past" and name in batches:
            found[name] = ("batch", named)
        elif kind == "batch" and name in steps:
            found[name] = ("sequence", named)
    return found


def _states(op: Op) -> list[int]:
    return [i for i, known in definition(op).parameters.items() if isinstance(known, RecurrentState)]


def _batch_of_states(op: Op) -> set[Sym]:
    """Extents, other than numbers, of an op's initial states, but for the hidden units, which are last."""
    found: set[Sym] = set()
    for value in (op.input(i) for i in _states(op)):
        for state in () if value is None else _of_known_shape(value):
            found.update(d for d in (state.shape or ())[:-1] if isinstance(d, Sym))
    return found


def _of_known_shape(value: Value) -> list[Value]:
    """The values of known shape nearest to a value that have its elements; none where something else makes it.

    Followed back are views, functions of single elements and branches, each value once.
    """
    found, todo, seen = [], [value], {value}
    for one in todo:  # grows
        op = one.op
        before: list[Value] = []
        if one.shape is not None:
            found.append(one)
        elif op is not None and "then_branch" in op.regions:
            before = [region.terminator.operands[op.results.index(one)] for region in op.regions.values()]
        elif op is not None and (op.key in VIEWS or (definition(op).elementwise and len(op.operands) == 1)):
            before = [op.operands[0]]
        todo += [v for v in dict.fromkeys(before) if v not in seen]
        seen.update(before)
    return found


def _steps(op: Op, batches: set[str]) -> Sym | None:
    """The extent of the steps of an op's sequence, if that of its batch is known to be one."""
    shape = op.operands[0].shape
    if shape is None or len(shape) != 3:
        return None
    steps, batch = (shape[1], shape[0]) if op.attrs.get("layout", 0) else shape[:2]
    sure = isinstance(batch, int) or (isinstance(batch, Sym) and batch.name in batches)
    return steps if sure and isinstance(steps, Sym) else None
