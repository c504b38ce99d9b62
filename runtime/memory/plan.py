"""A plan: an offset per buffer, and the check that no two living buffers share a byte."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

from memoptc.ir.diagnostics import InternalError
from memoptc.runtime.memory.problem import Problem, write_csv


@dataclass(frozen=True)
class Plan:
    """Offsets of the buffers of a problem.

    Args:
        problem: What was asked.
        offsets: Bytes from the start of the arena, one per buffer.
        algorithm: What found it.
    """

    problem: Problem
    offsets: tuple[int, ...]
    algorithm: str

    @property
    def arena_bytes(self) -> int:
        """Bytes that the arena needs."""
        ends = (o + b.size for o, b in zip(self.offsets, self.problem.buffers, strict=True))
        return max(ends, default=0)

    @property
    def floor(self) -> int:
        """Most bytes alive at once."""
        return self.problem.floor

    @property
    def naive_sum(self) -> int:
        """Bytes that placing every buffer apart needs."""
        return self.problem.naive_sum

    @property
    def digest(self) -> str:
        """Short digest of all offsets, for provenance."""
        import hashlib  # brings a library of 3 MB, which running a plan does without

        text = ",".join(map(str, self.offsets))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Give the plan as plain values."""
        return {
            "version": 1,
            "arena_bytes": self.arena_bytes,
            "floor_bytes": self.floor,
            "sum_bytes": self.problem.naive_sum,
            "algorithm": self.algorithm,
            "buffers": [
                {
                    "name": b.name,
                    "size": b.size,
                    "first": b.first,
                    "last": b.last,
                    "alignment": b.alignment,
                    "offset": o,
                }
                for b, o in zip(self.problem.buffers, self.offsets, strict=True)
            ],
        }

    def to_csv(self) -> str:
        """Give the plan in minimalloc's form: the buffers and their offsets."""
        return write_csv(self.problem, self.offsets)


def check(plan: Plan) -> None:
    """Check a plan: offsets fit alignment, fixed places and capacity, and living buffers lie apart.

    A sweep over time keeps the living buffers sorted by offset; a newcomer only has to be held against its
    two neighbours: a buffer further down that reached up to the newcomer would overlap the nearer neighbour, too,
    and would have been found before. O(n log n) but for the list's own shifting.

    Raises:
        InternalError: two buffers overlap or one lies where it must not; the message names them.
    """
    buffers = plan.problem.buffers
    if len(plan.offsets) != len(buffers):
        raise InternalError(f"the plan places {len(plan.offsets)} of {len(buffers)} buffers")
    for b, offset in zip(buffers, plan.offsets, strict=True):
        if offset < 0 or offset % b.alignment or (b.offset is not None and offset != b.offset):
            raise InternalError(f"the plan puts {b.name!r} at {offset}, where it must not lie")
    if plan.problem.capacity is not None and plan.arena_bytes > plan.problem.capacity:
        raise InternalError(f"the plan needs {plan.arena_bytes} of {plan.problem.capacity} bytes")
    # At one step all that ends before it leaves first: ranges are closed, so `last + 1` is when bytes are free.
    events = [(b.last + 1, 0, i) for i, b in enumerate(buffers)] + [(b.first, 1, i) for i, b in enumerate(buffers)]
    events.sort()
    living: list[tuple[int, int]] = []
    for _, starts, index in events:
        item = (plan.offsets[index], index)
        place = bisect.bisect_left(living, item)
        if not starts:
            del living[place]
            continue
        for neighbour in living[max(place - 1, 0) : place + 1]:
            other = neighbour[1]
            mine, its = plan.offsets[index], plan.offsets[other]
            if mine < its + buffers[other].size and its < mine + buffers[index].size:
                raise InternalError(
                    f"the plan lets {buffers[index].name!r} (bytes {mine}..{mine + buffers[index].size - 1}) and "
                    f"{buffers[other].name!r} (bytes {its}..{its + buffers[other].size - 1}) overlap at step "
                    f"{buffers[index].first}"
                )
        living.insert(place, item)
