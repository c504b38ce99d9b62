"""The failure that a reduction keeps: an exit code of a command, or the way a compile of the model ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from memoptc.ir.diagnostics import InputError
from memoptc.reduction.worker import HAS_FORK
from memoptc.runtime.child import asked, end, python, worker_process

SECONDS = 60.0
"""Longest time of a trial, where none is given."""


class Check(Protocol):
    """Says whether a model still shows the failure."""

    def first(self, model: Path) -> str:
        """Look at the whole model; gives how it fails, "" when it does not."""

    def fails(self, model: Path) -> bool:
        """True if a smaller model still fails in that way."""


@dataclass
class CommandCheck:
    """A command of the caller's that exits with 0 where the model still fails.

    Args:
        command: For the shell; the model's path takes the place of `{}`, or comes last.
        seconds: After which it is ended, and the model counts as one that does not fail.
    """

    command: str
    seconds: float = SECONDS

    def first(self, model: Path) -> str:
        """Run it."""
        return f"{self.command} exits with 0" if self.fails(model) else ""

    def fails(self, model: Path) -> bool:
        """Run it."""
        path = shlex.quote(str(model))
        text = self.command.replace("{}", path) if "{}" in self.command else f"{self.command} {path}"
        process = subprocess.Popen(
            text,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(self.seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if HAS_FORK else process.kill()
            process.wait()


@dataclass(frozen=True)
class Outcome:
    """Outcome of one trial: kind, message, peak memory.

    Args:
        kind: `ok`, `differs`, `refused`, `fault`, `died` or `timeout`.
        text: A message.
        peak: Highest resident bytes.
    """

    kind: str
    text: str = ""
    peak: int = 0

    @property
    def signature(self) -> str:
        """The kind, and of the message what does not change with names and numbers."""
        text = re.sub(r"'[^']*'|\"[^\"]*\"|%\S+|\d[\d.,]*", "_", self.text.partition("\n")[0])
        return f"{self.kind}: {text[:80]}"

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        said = {"differs": "the numbers differ", "timeout": "the compile does not end", "died": "the process dies"}
        return f"{said.get(self.kind, self.kind)}{f': {self.text}' if self.text else ''}"


class Trials:
    """Runs compiles in processes of their own.

    Args:
        folder: For temporary files.
        seconds: Longest time of one.
    """

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self._folder, self.seconds = folder, seconds
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: Mapping[str, Any]) -> Outcome:
        """Run one."""
        process = self._process if self._process is not None and HAS_FORK else self._start()
        inner = self._folder / "trial"
        inner.mkdir(exist_ok=True)
        order = {**request, "seconds": self.seconds, "folder": str(inner)}
        try:
            if HAS_FORK:
                answer = asked(process, order)
            else:
                answer, _ = process.communicate(json.dumps(order) + "\n", timeout=self.seconds)
        except subprocess.TimeoutExpired:
            self.close()
            return Outcome("timeout")
        except OSError:
            answer = ""
        if not answer:
            self.close()
            return Outcome("died")
        return Outcome(**json.loads(answer))

    def _start(self) -> subprocess.Popen[str]:
        self.close()
        self._process = worker_process(python("-m", "memoptc.reduction.worker"))
        return self._process

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            end(self._process)
            self._process = None


@dataclass
class CompileCheck:
    """Check that compiles the model and looks for a fault in the way it ends.

    Args:
        trials: Runs it.
        options: Of `memoptc.compile`, as plain values.
        look_for: `fails`: an error, always the same one; `differs`: other outputs; `slow`: no end within the time of a
            trial; `above`: more memory than `most_bytes`.
        most_bytes: See there.
    """

    trials: Trials
    options: Mapping[str, Any] = field(default_factory=dict)
    look_for: str = "fails"
    most_bytes: int = 0
    _signature: str = ""

    def _run(self, model: Path) -> Outcome:
        return self.trials.ask({"model": str(model), "options": self.options, "compare": self.look_for == "differs"})

    def first(self, model: Path) -> str:
        """Compile the whole model."""
        outcome = self._run(model)
        self._signature = outcome.signature
        return outcome.sentence if self._shows(outcome) else ""

    def fails(self, model: Path) -> bool:
        """Compile a smaller model."""
        return self._shows(self._run(model))

    def _shows(self, outcome: Outcome) -> bool:
        match self.look_for:
            case "fails":
                return outcome.kind in ("refused", "fault", "died") and outcome.signature == self._signature
            case "differs":
                return outcome.kind == "differs"
            case "slow":
                return outcome.kind == "timeout"
            case "above":
                return outcome.peak > self.most_bytes
        raise InputError(f"There is no failure {self.look_for!r}.", hint="Look for fails, differs, slow or above.")
