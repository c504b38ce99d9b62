"""Python processes that import what this one does, whatever the current folder or that of a script holds."""

from __future__ import annotations

import os
import sys


def python(*words: str) -> list[str]:
    """Give the command of a Python process: its modules come from where this process finds them.

    Without `-P`, a `profile.py` in the current folder, or beside a script, would be taken for Python's own.

    Args:
        words: A script, or `-m` and a module, and what they are given.
    """
    return [sys.executable, "-P", *words]


def environment() -> dict[str, str]:
    """Give its environment: modules are found where this process finds them, though it may have been told in code."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONIOENCODING": "utf-8"}
