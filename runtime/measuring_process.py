"""A fresh process for one model, which loads, times and watches memory when asked."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from memoptc.ir.diagnostics import InputError, InternalError
from memoptc.runtime import worker
from memoptc.runtime.child import asked, end, python, send, worker_process
from memoptc.runtime.options import RunOptions


@dataclass(frozen=True)
class InSession:
    """Run in `memoptc.runtime.Session` instead of plain onnxruntime.

    Args:
        memory: Its tier; its default one when not given.
        arguments: Its other arguments, as plain values.
    """

    memory: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the session's keyword arguments."""
        return {**({} if self.memory is None else {"memory": self.memory}), **self.arguments}


Way: TypeAlias = RunOptions | InSession
"""How a model is run."""


class MeasuringProcess:
    """A worker process that one may ask."""

    def __init__(self, process: subprocess.Popen[str], label: str) -> None:
        self.process, self.label = process, label

    def __call__(self, **order: Any) -> dict[str, Any]:
        """Ask one thing; give the answer, or raise what the process says."""
        answer: dict[str, Any] = json.loads(asked(self.process, order) or "{}")
        if not answer:
            code = self.process.wait()
            raise InternalError(f"{self.label}: the measuring process ended with code {code}.")
        if "error" in answer:
            raise InputError(f"{self.label}: onnxruntime cannot run it: {answer['error']}")
        return answer


@contextmanager
def start_worker(
    model: str | os.PathLike[str], options: Way, feed: Path, prefix: Sequence[str] = (), longest: float | None = None
) -> Iterator[MeasuringProcess]:
    """Start a fresh process for one model; what is given asks it to `load`, to `time`, or for its `need`.

    Args:
        model: The path.
        options: How to run it.
        feed: File with inputs.
        prefix: A command to run the process with.
        longest: Seconds after which it is killed.
    """
    path = os.path.abspath(os.fspath(model))
    request: dict[str, Any] = {"model": path, "feed": str(feed)}
    if isinstance(options, InSession):
        request["session"] = options.to_json()
    else:
        request |= {"options": options.to_json(), "native": options.native()}
    process = worker_process([*prefix, *python(worker.__file__)])
    timer = None if longest is None else threading.Timer(longest, process.kill)
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        send(process, request)
        yield MeasuringProcess(process, Path(path).name)
    finally:
        if timer is not None:
            timer.cancel()
        end(process)
