"""Python processes that import what this one does, whatever the current folder or that of a script holds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


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


def send(process: subprocess.Popen[str], request: Any) -> bool:
    """Send plain values as one line of JSON; False when the process is gone."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except OSError:
        return False
    return True


def asked(process: subprocess.Popen[str], request: Any) -> str:
    """Send a request and wait for the line that answers it; `""` when the process is gone."""
    assert process.stdout is not None
    return process.stdout.readline() if send(process, request) else ""


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process, and close what it was asked through."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]
    process.wait()
