"""Axes along which a graph's ops can be cut, each op looked at once."""

from __future__ import annotations

from collections.abc import Mapping

from memoptc.ir.core import Op
from memoptc.ir.iteration import Axis, accumulations, iteration_space, weights_axis
from memoptc.passes.memory._tile.marks import TILED
from memoptc.passes.simplify._simplify.slice_ranges import may_be_sliced


class IterationSpaces:
    """Iteration spaces of a graph's ops, each looked up once."""

    def __init__(self) -> None:
        self._known: dict[Op, list[Axis]] = {}
        self._sums: dict[Op, list[Axis]] = {}
        self._every: dict[Op, list[Axis]] = {}

    def of_copy(self, ops: Mapping[Op, Op]) -> IterationSpaces:
        """Give what is known of a graph's ops for a copy of them.

        Args:
            ops: Op -> its copy.
        """
        found = IterationSpaces()
        for mine, theirs in ((self._known, found._known), (self._sums, found._sums), (self._every, found._every)):
            theirs.update((ops[op], axes) for op, axes in mine.items() if op in ops)
        return found

    def __getitem__(self, op: Op) -> list[Axis]:
        """The axes of an op; none for one that belongs to a tile already, or is computed when the model is loaded."""
        found = self._known.get(op)
        if found is None:
            found = self._known[op] = [] if _is_settled(op) else iteration_space(op)
        return found

    def sums(self, op: Op) -> list[Axis]:
        """The axes of known extent that an op accumulates along."""
        found = self._sums.get(op)
        if found is None:
            found = [] if _is_settled(op) else accumulations(op)
            found = self._sums[op] = [axis for axis in found if _has_known_extent(op, axis)]
        return found

    def every(self, op: Op) -> list[Axis]:
        """All axes of an op, those along which it is cut only together with what uses its result included."""
        found = self._every.get(op)
        if found is None:
            weights = None if _is_settled(op) else weights_axis(op)
            own = [weights] if weights is not None and _has_known_extent(op, weights) else []
            found = self._every[op] = [*self[op], *own, *self.sums(op)]
        return found


def _has_known_extent(op: Op, axis: Axis) -> bool:
    shapes = [(v.shape, a.axis) for v, a in zip(op.operands, axis.operands, strict=True) if a is not None]
    return all(shape is not None and isinstance(shape[place], int) for shape, place in shapes)


def _is_settled(op: Op) -> bool:
    """True if an op stays whole: it is part of a tile, computed when the model is loaded, or of a type that Slice and
    Concat do not take."""
    if TILED in op.metadata or all(v.tensor is not None or v.is_absent for v in op.operands):
        return True
    computed = [v for v in op.operands if v.tensor is None and not v.is_absent]
    return not all(may_be_sliced(v) for v in (*computed, *(r for r in op.results if not r.omitted)))
