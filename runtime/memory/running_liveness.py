"""Bytes alive along an order that is still being chosen: the memory model, one op at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from memoptc.ir.core import Graph, Op
from memoptc.runtime.memory.extents import extents
from memoptc.runtime.memory.footprint import aligned, footprint, is_resident
from memoptc.runtime.memory.liveness import inner_bytes, value_bytes
from memoptc.runtime.memory.problem import ALIGNMENT
from memoptc.runtime.memory.workspace import Workspace, kernel_workspace, no_workspace


class RunningLiveness:
    """Runs ops on paper in whatever topological order the caller picks.

    Ops are numbered as in `ops`; weights and markers are not among them. The figures are those of
    `liveness(graph, dims, order)` for the order in which ops were run: `peak` is its peak. Everything costs
    O(operands + results) of the op in question.

    Args:
        graph: The graph or region.
        dims: Extents of symbolic dimensions.
        workspace: Bytes that an op's kernel needs besides, during its step; onnxruntime's when not given.
        alignment: Bytes to which every size is rounded up.
    """

    def __init__(
        self,
        graph: Graph,
        dims: Mapping[str, int],
        *,
        workspace: Workspace | None = None,
        alignment: int = ALIGNMENT,
    ) -> None:
        dims = extents(graph, dims)
        workspace = workspace or kernel_workspace(dims)
        self._layout = footprint(graph)
        self._sizes = [size or 0 for size in self._layout.bind(dims, alignment)]
        self._left = [g.users for g in self._layout.groups]
        early, self._copies = (
            sum(aligned(value_bytes(v, dims) or 0, alignment) for _, v in copies)
            for copies in (self._layout.early, self._layout.copies)
        )
        bare = workspace is no_workspace
        self._inner = [
            0 if bare and index not in self._layout.nested else inner_bytes(op, dims, workspace, alignment)
            for index, op in enumerate(self._layout.ops)
        ]
        self._run: list[int] = []
        self.ops: Sequence[Op] = self._layout.ops
        self.number: Mapping[Op, int] = {op: i for i, op in enumerate(self.ops)}
        """Op -> its number."""
        self.live: int = early + sum(self._sizes[g] for g in self._layout.carried)
        """Bytes alive between the last op run and the next one."""
        self.peak: int = self.live + (0 if self.ops else self._copies)
        """Most bytes alive at once so far."""
        self._start = (self.live, self.peak)

    def reset(self) -> None:
        """Take all ops back."""
        self._left = [g.users for g in self._layout.groups]
        self._run.clear()
        self.live, self.peak = self._start

    def inner_bytes(self, index: int) -> int:
        """Bytes that an op needs during its own step besides operands and results."""
        return self._inner[index]

    @property
    def end_bytes(self) -> int:
        """Bytes of copied outputs: no order has a smaller peak."""
        return self._copies

    @property
    def order(self) -> list[Op]:
        """The ops run so far."""
        return [self.ops[index] for index in self._run]

    def effect(self, index: int) -> tuple[int, int]:
        """Give what running op `index` now would do.

        Returns:
            Bytes more alive during the op, and bytes more (or fewer: negative) after it.
        """
        layout, left, sizes = self._layout, self._left, self._sizes
        groups = layout.groups
        during = sum(sizes[g] for g in layout.makes[index])
        dying = [g for g in layout.needs[index] if left[g] == 1 and not groups[g].pinned]
        taken = next((g for g in layout.takes[index] if g in dying), None)
        if taken is not None:
            during -= sizes[layout.makes[index][0]]
        freed = sum(sizes[g] for g in dying if g != taken)
        if taken is not None and not groups[layout.makes[index][0]].users:
            freed += sizes[layout.makes[index][0]]  # what nobody uses goes with the operand whose place it took
        after = during - freed
        during += self._inner[index]
        if len(self._run) == len(self.ops) - 1:
            during = max(during, after + self._copies)
        return during, after

    def run(self, index: int) -> None:
        """Run op `index` next. Its operands must have been made."""
        during, after = self.effect(index)
        self._run.append(index)
        self.peak = max(self.peak, self.live + during)
        self.live += after
        for group in self._layout.needs[index]:
            self._left[group] -= 1

    def run_all(self, order: Iterable[Op]) -> int:
        """Run ops in order, weights skipped, and give the peak."""
        for op in order:
            if not is_resident(op):
                self.run(self.number[op])
        return self.peak
