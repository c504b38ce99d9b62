"""The allocation problem: buffers with sizes and live ranges. It has never heard of a graph.

Live ranges are closed: a buffer is alive during steps `first` to `last`, both included, so two buffers whose
ranges share a step must not share a byte. minimalloc's CSV files have half-open ranges (`upper` excluded); the
reader and the writer convert.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from memoptc.ir.diagnostics import InputError


@dataclass(frozen=True)
class Buffer:
    """One thing to place.

    Args:
        name: Its name, unique in the problem.
        size: Bytes, > 0.
        first: First step at which it is alive.
        last: Last step at which it is alive, >= first.
        alignment: Its offset must be a multiple of this.
        offset: A fixed offset, where it has one.
    """

    name: str
    size: int
    first: int
    last: int
    alignment: int = 1
    offset: int | None = None

    def __post_init__(self) -> None:
        if self.size <= 0 or self.last < self.first or self.alignment < 1:
            raise InputError(f"Buffer {self.name!r} has size {self.size} and live range {self.first}..{self.last}.")


@dataclass(frozen=True)
class Problem:
    """Buffers to place in one memory.

    Args:
        buffers: The buffers.
        capacity: Bytes there are, or `None` when as few as possible are wanted.
    """

    buffers: tuple[Buffer, ...]
    capacity: int | None = None

    @property
    def naive_sum(self) -> int:
        """Bytes that placing every buffer apart would need."""
        return sum(b.size for b in self.buffers)

    @property
    def floor(self) -> int:
        """Most bytes alive at once: no placement needs less. O(n log n)."""
        events = [(b.first, b.size) for b in self.buffers] + [(b.last + 1, -b.size) for b in self.buffers]
        events.sort()
        live = most = 0
        for _, change in events:
            live += change
            most = max(most, live)
        return most


def read_csv(text: str, capacity: int | None = None) -> Problem:
    """Read minimalloc's CSV: a line `id,lower,upper,size` per buffer, in any column order.

    Raises:
        InputError: a column is missing or a number is none.
    """
    rows = csv.DictReader(io.StringIO(text))
    buffers = []
    for line, row in enumerate(rows, 2):
        try:
            fields = {k.strip().lower(): v.strip() for k, v in row.items()}
            name = fields.get("id") or fields.get("buffer") or str(line)
            first, last = int(fields["lower"]), int(fields["upper"]) - 1
            alignment = int(fields.get("alignment") or 1)
            offset = int(fields["offset"]) if fields.get("offset") else None
            buffers.append(Buffer(name, int(fields["size"]), first, last, alignment, offset))
        except (KeyError, ValueError, AttributeError) as e:
            raise InputError(f"Line {line} is no buffer: {e}.", hint="A line reads id,lower,upper,size.") from None
    return Problem(tuple(buffers), capacity)


def write_csv(problem: Problem, offsets: Sequence[int] | None = None) -> str:
    """Write minimalloc's CSV, with offsets where given."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "lower", "upper", "size", *(["offset"] if offsets is not None else [])])
    for index, b in enumerate(problem.buffers):
        place = [offsets[index]] if offsets is not None else []
        writer.writerow([b.name, b.first, b.last + 1, b.size, *place])
    return out.getvalue()
