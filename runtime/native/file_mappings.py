"""Parts of files that are mapped into this process (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass


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


def mappings_below(folder: str) -> list[FileMapping]:
    """Give the mappings of files in a folder, code excepted, by address; none where the system does not tell."""
    inside = os.path.join(os.path.realpath(folder), "")
    found = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                parts = line.rstrip("\n").split(maxsplit=5)
                if len(parts) == 6 and parts[5].startswith(inside) and "x" not in parts[1]:
                    start, end = (int(a, 16) for a in parts[0].split("-"))
                    found.append(FileMapping(start, end, int(parts[2], 16), parts[5]))
    except OSError:
        return []
    return found
