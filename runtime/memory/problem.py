"""The allocation problem: buffers with sizes and live ranges. It has never heard of a graph.

Live ranges are closed: a buffer is alive during steps `first` to `last`, both included, so two buffers whose
ranges share a step must not share a byte. minimalloc's CSV files have half-open ranges (`upper` excluded); the
reader and the writer convert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from memoptc.ir.diagnostics import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

FEW_BUFFERS = 512
"""Up to so many buffers plain Python is about as fast as numpy, and brings in no pages of its code."""

ALIGNMENT = 64
"""Bytes to which onnxruntime's allocators align, and so does a plan."""

_LARGEST = 1 << 52


@dataclass(frozen=True)
class Buffer:
    """A buffer to place: size, live range, and an offset where it is fixed.

    Args:
        name: Its name, for people; a problem may hold several of one name.
        size: Bytes, > 0.
        first: First step at which it is alive.
        last: Last step at which it is alive, >= first.
        alignment: Its offset must be a multiple of this.
        offset: A fixed offset, where it has one.

    Raises:
        InputError: a number is out of range (64 bits hold sums of sizes and steps), or the fixed offset not aligned.
    """

    name: str
    size: int
    first: int
    last: int
    alignment: int = 1
    offset: int | None = None

    def __post_init__(self) -> None:
        if self.size <= 0 or self.last < self.first or self.alignment < 1:
            raise InputError(
                f"Buffer {self.name!r} has size {self.size}, live range {self.first}..{self.last} and alignment "
                f"{self.alignment}.",
                hint="Sizes and alignments are positive, and no range ends before it begins.",
            )
        if max(self.size, self.last, -self.first, self.alignment, self.offset or 0) > _LARGEST:
            raise InputError(f"Buffer {self.name!r} has a number of more than 52 bits.", hint="No memory is as large.")
        if self.offset is not None and (self.offset < 0 or self.offset % self.alignment):
            raise InputError(f"Buffer {self.name!r} cannot lie at {self.offset}: its alignment is {self.alignment}.")


@dataclass(frozen=True)
class Problem:
    """Buffers to place in one memory.

    Args:
        buffers: The buffers.
        capacity: Bytes there are, or `None` when as few as possible are wanted.
    """

    buffers: tuple[Buffer, ...]
    capacity: int | None = None

    @cached_property
    def disjoint_offsets(self) -> tuple[int, ...]:
        """Offsets at which no two buffers overlap: fixed ones stay, the others follow one after the other."""
        end = max((b.offset + b.size for b in self.buffers if b.offset is not None), default=0)
        offsets = []
        for b in self.buffers:
            if b.offset is not None:
                offsets.append(b.offset)
                continue
            start = -(-end // b.alignment) * b.alignment
            offsets.append(start)
            end = start + b.size
        return tuple(offsets)

    @cached_property
    def naive_sum(self) -> int:
        """Bytes that placing every buffer apart needs, alignment included."""
        return max((o + b.size for o, b in zip(self.disjoint_offsets, self.buffers, strict=True)), default=0)

    @cached_property
    def floor(self) -> int:
        """Bytes that no placement can do without. O(n log n).

        At any step the buffers alive lie apart. Every offset is a multiple of the alignments' common divisor g, so
        each buffer but the highest takes its size rounded up to g: together at least the sum of the rounded
        sizes, less the padding of one buffer. What is fixed reaches at least to its own end.
        """
        if not self.buffers:
            return 0
        unit = gcd(*(b.alignment for b in self.buffers))
        if len(self.buffers) <= FEW_BUFFERS:
            padding = [-b.size % unit for b in self.buffers]
            most = max(self._most_alive([0] * len(padding)), self._most_alive(padding) - max(padding))
        else:
            first, last, size = self.arrays
            rounded = -(-size // unit) * unit
            most = max(max_alive(first, last, size), max_alive(first, last, rounded) - int((rounded - size).max()))
        return max(most, max((b.offset + b.size for b in self.buffers if b.offset is not None), default=0))

    def _most_alive(self, padding: Sequence[int]) -> int:
        """Most bytes alive at once, with so many more for each buffer."""
        alive = most = 0
        for _, change in sorted(
            (step, change)
            for b, more in zip(self.buffers, padding, strict=True)
            for step, change in ((b.first, b.size + more), (b.last + 1, -b.size - more))
        ):
            alive += change
            most = max(most, alive)
        return most

    @cached_property
    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First steps, last steps and sizes."""
        table = np.array([(b.first, b.last, b.size) for b in self.buffers], np.int64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]


def max_alive(first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], size: npt.NDArray[np.int64]) -> int:
    """Most bytes alive at once, for closed live ranges; a sweep over births and deaths."""
    times = np.concatenate((last + 1, first))
    change = np.concatenate((-size, size))
    # Deaths come first in the array and the sort is stable, so at one time bytes are freed before they are taken.
    return int(np.cumsum(change[np.argsort(times, kind="stable")]).max(initial=0))


def read_csv(text: str, capacity: int | None = None) -> Problem:
    """Read minimalloc's CSV: a line `id,lower,upper,size` per buffer, in any column order.

    `upper` is excluded: the buffer is alive during the steps `lower` to `upper - 1`. Columns `alignment` and
    `offset` (a fixed place) may be there; others are ignored.

    Raises:
        InputError: a column is missing, a number is none, or a buffer cannot be.
    """
    import csv
    import io

    buffers = []
    for line, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
        try:
            fields = {k.strip().lower(): v.strip() for k, v in row.items() if k is not None and v is not None}
            name = fields.get("id") or fields.get("buffer") or str(line)
            first, last = int(fields["lower"]), int(fields["upper"]) - 1
            alignment = int(fields.get("alignment") or 1)
            offset = int(fields["offset"]) if fields.get("offset") else None
            buffers.append(Buffer(name, int(fields["size"]), first, last, alignment, offset))
        except (KeyError, ValueError) as e:
            what = f"there is no column {e}" if isinstance(e, KeyError) else str(e)
            raise InputError(f"Line {line} is no buffer: {what}.", hint="A line reads id,lower,upper,size.") from None
        except InputError as e:
            raise InputError(f"Line {line}: {e.message}", hint=e.hint) from None
    return Problem(tuple(buffers), capacity)


def write_csv(problem: Problem, offsets: Sequence[int] | None = None) -> str:
    """Write minimalloc's CSV.

    Args:
        problem: The buffers; alignment and fixed offsets are written where a buffer has them.
        offsets: A plan's offsets, in a column `offset`.
    """
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if offsets is None and any(b.offset is not None for b in problem.buffers):
        places: list[int | str] | None = ["" if b.offset is None else b.offset for b in problem.buffers]
    else:
        places = None if offsets is None else list(offsets)
    aligned = any(b.alignment > 1 for b in problem.buffers)
    writer.writerow(["id", "lower", "upper", "size", *["alignment"] * aligned, *["offset"] * (places is not None)])
    for index, b in enumerate(problem.buffers):
        row = [b.name, b.first, b.last + 1, b.size, *[b.alignment] * aligned]
        writer.writerow(row if places is None else [*row, places[index]])
    return out.getvalue()
