"""The process in which `memoptc.runtime.trials` tries inputs; it imports no more of memoptc than a run takes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from memoptc.ir.diagnostics import MemoptcError
from memoptc.runtime.evaluate import Evaluator
from memoptc.runtime.npz import load_feed
from memoptc.runtime.options import Feed, RunOptions

ANSWER = "memoptc: "
"""What an answer of the process begins with."""


class InProcess:
    """Runs a model in this process.

    Args:
        original: The model.
    """

    def __init__(self, original: Evaluator) -> None:
        self._original, self.cpu_seconds = original, math.inf

    def restart(self) -> None:
        """Nothing that runs here ends."""

    def outputs_are_finite(self, feed: Feed) -> bool:
        """True if all outputs are finite numbers."""
        return all(_finite(value) for value in self._original.run(feed, cpu_seconds=self.cpu_seconds).values())


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fcV":  # V: bfloat16 and the kinds of float8
        return bool(np.isfinite(value if value.dtype.kind != "V" else value.astype(np.float32)).all())
    return True


def _main() -> None:
    """Answer each line of stdin, the path of a feed and the time that it may take, by a line of JSON on stdout."""
    asked = json.loads(sys.stdin.readline())
    try:
        options = RunOptions(**asked["options"])
        original = Evaluator(asked["model"], options, folder=asked["folder"], label=asked["label"])
    except MemoptcError as error:
        _say({"error": error.message, "ended": True})
        return
    _say({})
    runs = InProcess(original)
    for line in sys.stdin:
        try:
            path, runs.cpu_seconds = json.loads(line)
            answer: dict[str, Any] = {"finite": runs.outputs_are_finite(load_feed(Path(path)))}
        except MemoptcError as error:
            answer = {"error": error.message}
        _say(answer)


def _say(answer: dict[str, Any]) -> None:
    print(f"\n{ANSWER}{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    _main()
