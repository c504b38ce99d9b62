"""State of a calibration in one file: an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memoptc.ir.diagnostics import InputError
from memoptc.ir.files import atomic_write
from memoptc.runtime.data import Sample
from memoptc.runtime.histogram import Accumulator
from memoptc.runtime.result_cache import add_sample

FILE = "calibration.json"

SECONDS = 5.0
"""Time between two writes."""


class Checkpoint:
    """The file, and the data seen so far.

    Args:
        folder: Where the file lies; made when it does not exist.
        what: What is calibrated, as JSON: a file about anything else is not used, and replaced.

    Raises:
        InputError: the folder cannot be made, or its file cannot be read.
    """

    def __init__(self, folder: Path, what: Any) -> None:
        self.file = folder / FILE
        self.what = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        self.state: dict[str, Any] = {}
        self._digest, self._done, self._written = hashlib.sha256(), 0, time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.file.is_file():
                found = json.loads(self.file.read_text("utf-8"))
                if found["what"] == self.what:
                    self.state = {"samples": found["samples"], "data": found["data"], **found}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.file} cannot be used as a checkpoint: {error}.", hint="Remove it, or choose another folder."
            ) from error

    def load(self, seen: dict[str, Accumulator]) -> int:
        """Begin the pass over the data.

        Args:
            seen: Tensor name -> what was seen of it; filled in.

        Returns:
            How many samples that covers.
        """
        for name, (low, high, count, zeros, exponent, first, counts, lows, highs) in self.state.get("seen", {}).items():
            cells = np.array(counts, np.int64)
            seen[name] = Accumulator(low, high, count, zeros, exponent, first, cells, lows, highs)
        done: int = self.state.get("samples", 0)
        return done

    def finished(self) -> bool:
        """True if the pass had seen all samples."""
        return bool(self.state.get("last"))

    def check(self, sample: Sample) -> None:
        """Note that a sample was seen, now or before the interruption."""
        add_sample(self._digest, sample)
        self._done += 1

    def same(self, name: str) -> None:
        """Refuse data other than what the file is about.

        Raises:
            InputError: the samples noted since `load` are not those of the file.
        """
        if self.state["data"] != self._digest.hexdigest():
            raise InputError(
                f"{self.file} is about other samples than {name} holds.",
                hint="Remove the file to begin anew, or give the data that it was made with.",
            )

    def save(self, seen: Mapping[str, Accumulator], *, last: bool = False) -> None:
        """Write the file, if the last time is long enough ago or the pass is over."""
        if not last and time.monotonic() - self._written < SECONDS:
            return
        self.state = {
            "samples": self._done,
            "data": self._digest.hexdigest(),
            "last": last,
            "seen": {
                name: [a.low, a.high, a.count, a.zeros, a.exponent, a.first, a.counts.tolist(), a.lows, a.highs]
                for name, a in seen.items()
                if a.count
            },
        }
        atomic_write(self.file, json.dumps({**self.state, "what": self.what}).encode())
        self._written = time.monotonic()
