"""Work in a process of its own, which ends with all that it holds; request and answer are JSON files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memoptc.ir.diagnostics import InputError, InternalError, MemoptcError
from memoptc.runtime.child import environment, python
from memoptc.runtime.spool import trim


def ask(module: str, request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run a module with a request and give its answer; what is free in this process goes back to the system first.

    Args:
        module: Its name; run as a program, it calls `answer`.
        request: Plain values.
        folder: Where both files are written.

    Raises:
        MemoptcError: what the module raised.
        InternalError: the process ended without an answer.
    """
    trim()  # graphs that passes gave up refer to themselves, and hold weights
    asked, answered = folder / "request.json", folder / "answer.json"
    asked.write_text(json.dumps(request), "utf-8")
    done = subprocess.run(
        python("-m", module, str(asked), str(answered)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",  # of the message
        check=False,
        env=environment(),  # data may be `module:function`
    )
    if not answered.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        name = module.rpartition(".")[2]
        if done.returncode < 0:
            raise InternalError(
                f"onnxruntime ended the process of {name} (signal {-done.returncode}): {last}",
                hint="Run the original by itself first: where it ends, too, onnxruntime does not survive that model.",
            )
        raise InternalError(f"The process of {name} ended with code {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(answered.read_text("utf-8"))
    if "error" in found:
        kind = InputError if found["exit_code"] == InputError.exit_code else InternalError
        raise kind(found["error"], hint=found["hint"])
    return found


def answer(work: Callable[[dict[str, Any]], dict[str, Any]], request: str, file: str) -> None:
    """Read a request, do the work, and write the answer or the error, whole or not at all."""
    try:
        found = work(json.loads(Path(request).read_text("utf-8")))
    except MemoptcError as error:
        found = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    part = Path(file).with_suffix(".part")
    part.write_text(json.dumps(found), "utf-8")
    part.replace(file)
