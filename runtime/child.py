"""Python processes that import what this one does, whatever the current folder or that of a script holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


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


def worker_process(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process that is asked by lines on its standard input and answers on its standard output.

    Bytes that are no text, as operators may print them, do not end the conversation; what it says besides is dropped.

    Args:
        command: As `python` gives it.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        env=environment(),
    )
