"""Transitive dependences between the ops of a stretch, as bit masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memoptc.ir.core import Op
from memoptc.runtime.memory.footprint import used_values


class Reachability:
    """Transitive closure of the dependences in a stretch of ops: descendants and ancestors as bit masks.

    Args:
        ops: The stretch, in the order in which they run; bit `i` of a mask stands for `ops[i]`.

    Attributes:
        index: Each op's index in the stretch.
        ancestors: Per op the ops that it needs, directly or through others.
        descendants: Per op the ops that need it.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.index = {op: i for i, op in enumerate(ops)}
        self.ancestors = [0] * len(ops)
        self.descendants = [0] * len(ops)
        needs = [{self.index[v.op] for v in used_values(op) if v.op in self.index} for op in ops]
        for i, direct in enumerate(needs):
            for need in direct:
                self.ancestors[i] |= self.ancestors[need] | (1 << need)
        for i in range(len(ops) - 1, -1, -1):  # all that need an op stand behind it, and are known here
            for need in needs[i]:
                self.descendants[need] |= self.descendants[i] | (1 << i)

    def mask(self, ops: Iterable[Op]) -> int:
        """The mask of some ops."""
        mask = 0
        for op in ops:
            mask |= 1 << self.index[op]
        return mask

    def indices(self, mask: int) -> list[int]:
        """Indices of the ops in a mask, ascending."""
        found = []
        while mask:
            lowest = mask & -mask
            found.append(lowest.bit_length() - 1)
            mask ^= lowest
        return found

    def union(self, masks: Sequence[int], indices: Iterable[int]) -> int:
        """Union of `ancestors` or `descendants` over some ops."""
        mask = 0
        for index in indices:
            mask |= masks[index]
        return mask
