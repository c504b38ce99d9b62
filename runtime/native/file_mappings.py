"""Parts of files that are mapped into this process (Linux), and which of them are new.

A mapping is known again by a mark of the kernel's own, that it is left out of core dumps: addresses come again, and
the kernel joins neighbours, but never one that has the mark to one that has not.

Source: Linux kernel documentation, filesystems/proc (`smaps`, `VmFlags`), and madvise(2) (`MADV_DONTDUMP`).
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memoptc.runtime.native.userfault import mark

if TYPE_CHECKING:
    from memoptc.runtime.external_weights import ExternalWeight

changing = threading.RLock()
"""Held by who loads a session whose mappings are to be known, and by who maps files meanwhile."""

_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")
_ANY_NUMBER = 1 << 20
_FLAGS, _MARK = "VmFlags:", "dd"


@dataclass(frozen=True)
class FileMapping:
    """A part of a file in this process's memory.

    Args:
        start: Its first address.
        end: The address behind it.
        offset: Where `start` lies in the file.
        path: The file.
    """

    start: int
    end: int
    offset: int
    path: str


def new_mappings(files: Iterable[str]) -> list[FileMapping]:
    """Give the mappings of files that were not marked, by address; code excepted.

    There are none where the system does not tell.
    """
    wanted = {os.path.realpath(file) for file in files}
    found = []
    latest: FileMapping | None = None
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                head = _HEAD.match(line)
                if head is not None:
                    start, end, rights, offset, path = head.groups()
                    of_file = path in wanted and "x" not in rights
                    latest = FileMapping(int(start, 16), int(end, 16), int(offset, 16), path) if of_file else None
                elif latest is not None and line.startswith(_FLAGS) and _MARK not in line.split():
                    found.append(latest)
    except OSError:
        return []
    return found


def of_weights(mappings: Iterable[FileMapping], weights: Iterable[ExternalWeight]) -> list[FileMapping] | None:
    """Give the mappings of a model's files; `None` if some page is mapped more often than the model names it.

    Args:
        mappings: Of any files.
        weights: All that the model names, as often as it does.
    """
    page = mmap.PAGESIZE
    borders: list[tuple[str, int, int]] = []
    for weight in weights:
        file, end = os.path.realpath(weight.file), weight.offset + weight.length
        often = _ANY_NUMBER if weight.repeated else 1
        borders += [(file, weight.offset // page * page, often), (file, -(-end // page) * page, -often)]
    files = {file for file, _, _ in borders}
    found = [m for m in mappings if m.path in files]
    borders += [(m.path, at, s) for m in found for at, s in ((m.offset, -1), (m.offset + m.end - m.start, 1))]
    left: Counter[str] = Counter()
    for (file, _), steps in itertools.groupby(sorted(borders), key=lambda border: border[:2]):
        left[file] += sum(step for *_, step in steps)
        if left[file] < 0:
            return None
    return found


def mark_all(files: Iterable[str]) -> None:
    """Mark the mappings of files: they are not new any more."""
    for mapping in new_mappings(files):
        mark(mapping.start, mapping.end - mapping.start)
