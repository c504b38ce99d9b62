"""Control groups of the kernel that this process is in, and what the limits of memory of these leave."""

from __future__ import annotations

import os
from collections.abc import Iterator

MOUNTS, OWN = "/proc/self/mounts", "/proc/self/cgroup"

_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}
"""Version -> files with the limit and the bytes charged, and what names in `memory.stat` begin with."""


def groups(mounts: str | os.PathLike[str] = MOUNTS, own: str | os.PathLike[str] = OWN) -> Iterator[tuple[str, int]]:
    """Give folders of groups whose memory can be limited, and their version: that of this process, then those above it.

    Args:
        mounts: Where the kernel says what is mounted.
        own: Where it says in which groups this process is.
    """
    try:
        mounted, member = [], []
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            mounted = [line.split()[:4] for line in file]
        with open(own, encoding="utf-8", errors="surrogateescape") as file:
            member = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, point, kind, options in mounted:
        if kind == "cgroup2":
            inside = [path for number, _, path in member if number == "0"]
            version = 2
        elif kind == "cgroup" and "memory" in options.split(","):
            inside = [path for _, names, path in member if "memory" in names.split(",")]
            version = 1
        else:
            continue
        for path in inside or ["/"]:
            folder = os.path.normpath(os.path.join(point, path.lstrip("/")))
            while True:
                if os.path.isdir(folder):  # in a namespace of its own, a process may be told a path it cannot see
                    yield folder, version
                if folder == os.path.normpath(point) or folder == os.path.dirname(folder):
                    break
                folder = os.path.dirname(folder)


def bytes_left(mounts: str | os.PathLike[str] = MOUNTS, own: str | os.PathLike[str] = OWN) -> int | None:
    """Give the bytes that the limits of this process's groups leave, pages of files counted that can be evicted.

    `None` where there is no limit, or nothing tells one.
    """
    left: list[int] = []
    for folder, version in groups(mounts, own):
        limit, used, prefix = _FILES[version]
        try:
            most = _text(folder, limit).strip()
            if most == "max":
                continue
            stated = dict(line.split() for line in _text(folder, "memory.stat").splitlines())
            evictable = sum(int(stated.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
            left.append(max(0, int(most) - max(0, int(_text(folder, used)) - evictable)))
        except (OSError, ValueError):
            continue
    return min(left, default=None)


def _text(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding="ascii") as file:
        return file.read()
