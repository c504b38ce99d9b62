"""A candidate in the shadow of the model that serves: both run on a share of live calls, and figures are kept."""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memoptc.ir.diagnostics import InputError, first_line
from memoptc.runtime.call_statistics import call_statistics
from memoptc.runtime.session import Session

if TYPE_CHECKING:
    from memoptc.runtime.data import DataSource


class Shadow:
    """Serve calls by one model, and run another on a random share of them.

    Callers get the control's outputs, whatever the candidate does; what it raises is counted, and so are lines that
    the log does not take (a full disk). A call that is shadowed takes as long as both. Each of them is a line of JSON
    in the log, with latencies, how far outputs are apart, and statistics of the inputs, which `memoptc drift LOG` holds
    against those of the calibration data. Everything else (`get_inputs`, ...) is the control's.

    Args:
        control: The session that serves, or its model.
        candidate: The session in its shadow, or its model.
        rate: Share of the calls that both run, 0 to 1.
        log: File that lines are added to; none is written when not given.
        calibration: Data whose statistics the log begins with; `memoptc drift` needs them.
        seed: Of the choice of calls.

    Raises:
        InputError: a model or the data cannot be used, the log cannot be written, or `rate` is no share.
    """

    def __init__(
        self,
        control: Any,
        candidate: Any,
        rate: float = 0.01,
        *,
        log: str | os.PathLike[str] | None = None,
        calibration: DataSource | None = None,
        seed: int | None = None,
    ) -> None:
        if not 0 <= rate <= 1:
            raise InputError(f"rate={rate!r} is no share of calls.", hint="Give a number from 0 to 1.")
        self.control, self.candidate = (s if hasattr(s, "run") else Session(s) for s in (control, candidate))
        self._names = [output.name for output in self.control.get_outputs()]
        self.rate, self._log = rate, None if log is None else Path(log)
        # What an earlier process was writing when it was killed may be a part of a line.
        self._before = "\n" if self._log is not None and self._log.is_file() and self._log.stat().st_size else ""
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.figures = Figures()
        """What was seen so far."""
        reference: Mapping[str, Any] = {}
        if calibration is not None:
            from memoptc.runtime.drift import reference_of

            reference = reference_of(calibration, self.control.get_inputs())
        try:
            self._write({"event": "start", "rate": rate, "time": time.time(), "reference": reference})
        except OSError as error:
            raise InputError(f"The log {log} cannot be written: {error}.", hint="Give another file as log=.") from error

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
        """Run the control, and now and then the candidate, too; give the control's outputs."""
        with self._lock:
            self.figures.calls += 1
            number, shadowed = self.figures.calls, self._random.random() < self.rate
        given = () if run_options is None else (run_options,)  # sessions of a pool take none
        if not shadowed:
            return self.control.run(output_names, input_feed, *given)
        started = time.perf_counter()
        outputs = self.control.run(output_names, input_feed, *given)
        seconds = time.perf_counter() - started
        line: dict[str, Any] = {"event": "call", "call": number, "time": time.time()}
        try:
            line["inputs"] = {n: found for n, v in input_feed.items() if (found := call_statistics(v)) is not None}
            line |= self._run_candidate(output_names, input_feed, outputs, seconds)
        except Exception as error:  # whatever it is, it must not reach a caller that the control has served
            line["error"] = f"{type(error).__name__}: {first_line(error)}"
        line["resident_bytes"] = _resident_bytes()
        with self._lock:
            self.figures.add(line)
            try:
                self._write(line)
            except OSError:
                self.figures.unwritten += 1
        return outputs

    def _run_candidate(
        self, output_names: Sequence[str] | None, feed: Mapping[str, Any], outputs: Sequence[Any], seconds: float
    ) -> dict[str, Any]:
        """Run the candidate on a call that took the control so many seconds, and hold its outputs against these."""
        started = time.perf_counter()
        others = self.candidate.run(output_names, feed)
        latency = {"control": seconds, "candidate": time.perf_counter() - started}
        names = output_names or self._names
        if len(others) != len(outputs):
            return {"latency_s": latency, "outputs": {name: _agreement(False) for name in names}}
        distances = {n: _distance(a, b) for n, a, b in zip(names, outputs, others, strict=True)}
        return {"latency_s": latency, "outputs": distances}

    def openmetrics(self) -> str:
        """Give the figures as OpenMetrics text."""
        return self.figures.openmetrics()

    def __getattr__(self, name: str) -> Any:
        if "control" not in self.__dict__:  # before it is made, as `copy` asks
            raise AttributeError(name)
        return getattr(self.control, name)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._log is not None:
            # Opened for each line: logs are moved away under a process that runs. Unbuffered, a line is one write.
            with open(self._log, "ab", buffering=0) as file:
                text = f"{self._before}{json.dumps(line)}\n".encode()
                self._before = "\n"  # where this writes a part of the line, the next one begins behind it
                if file.write(text) != len(text):
                    raise OSError(f"{self._log} took part of a line only")
                self._before = ""


class Figures:
    """Sums over the calls of a `Shadow`."""

    def __init__(self) -> None:
        self.calls = self.shadowed = self.errors = self.unwritten = self.rows = self.agreeing = 0
        self.seconds = {"control": 0.0, "candidate": 0.0}
        self.ratios: Counter[int] = Counter()
        """Candidate's time over the control's, as hundredths of its logarithm, and in how many calls."""
        self.signal = self.noise = 0.0
        self.resident_bytes = 0

    def __repr__(self) -> str:
        """Say in one line how far both agree, and what the candidate costs."""
        agreement = "" if self.agreement is None else f", agreement {self.agreement:.4f}"
        slowdown = "" if self.slowdown is None else f", slowdown {self.slowdown:.2f}"
        return f"<Figures: {self.shadowed} of {self.calls} calls shadowed, {self.errors} failed{agreement}{slowdown}>"

    def add(self, line: Mapping[str, Any]) -> None:
        """Take one shadowed call in, as the log has it."""
        self.shadowed += 1
        self.resident_bytes = max(self.resident_bytes, line.get("resident_bytes") or 0)
        if "error" in line:
            self.errors += 1
            return
        for side, seconds in line["latency_s"].items():
            self.seconds[side] += seconds
        if all(line["latency_s"].get(side, 0) > 0 for side in self.seconds):
            self.ratios[round(100 * math.log(line["latency_s"]["candidate"] / line["latency_s"]["control"]))] += 1
        for found in line["outputs"].values():
            self.rows, self.agreeing = self.rows + found["rows"], self.agreeing + found["agreeing"]
            self.signal, self.noise = self.signal + found["signal"], self.noise + found["noise"]

    @property
    def agreement(self) -> float | None:
        """Share of the rows of all outputs whose largest element (of integers, every element) is the control's."""
        return self.agreeing / self.rows if self.rows else None

    @property
    def slowdown(self) -> float | None:
        """Time of the candidate over that of the control: the median over the calls, to a hundredth of itself."""
        calls = sum(self.ratios.values())
        for hundredths in sorted(self.ratios):
            calls -= 2 * self.ratios[hundredths]
            if calls <= 0:
                return math.exp(hundredths / 100)
        return None

    def openmetrics(self) -> str:
        """Give them as OpenMetrics text."""
        lines = []
        for name, kind, value in (
            ("calls", "counter", self.calls),
            ("shadowed", "counter", self.shadowed),
            ("errors", "counter", self.errors),
            ("unwritten_lines", "counter", self.unwritten),
            ("compared_rows", "counter", self.rows),
            ("agreeing_rows", "counter", self.agreeing),
            ("signal_energy", "counter", self.signal),
            ("difference_energy", "counter", self.noise),
            ("resident_bytes", "gauge", self.resident_bytes),
        ):
            total = "_total" if kind == "counter" else ""
            lines += [f"# TYPE memoptc_shadow_{name} {kind}", f"memoptc_shadow_{name}{total} {value}"]
        lines.append("# TYPE memoptc_shadow_seconds counter")
        lines += [f'memoptc_shadow_seconds_total{{model="{side}"}} {value}' for side, value in self.seconds.items()]
        return "\n".join([*lines, "# EOF", ""])


def _distance(wanted: Any, got: Any) -> dict[str, Any]:
    """Distance of two values of one output: energies, and rows that agree."""
    if isinstance(wanted, list | tuple):
        if not isinstance(got, list | tuple) or len(wanted) != len(got):
            return _agreement(False)
        parts = [_distance(a, b) for a, b in zip(wanted, got, strict=True)]
        return {key: sum(part[key] for part in parts) for key in _agreement(True)}
    a, b = np.asarray(wanted), np.asarray(got)
    if a.shape != b.shape or a.dtype.kind not in "fiub" or not a.size:
        return _agreement(a.shape == b.shape and bool(np.array_equal(a, b)))
    x, y = a.astype(np.float64), b.astype(np.float64)
    if a.dtype.kind == "f" and a.ndim >= 2 and a.shape[-1] > 1:
        agrees = x.argmax(-1) == y.argmax(-1)
    else:
        agrees = a == b if a.dtype.kind != "f" else np.ones(0, np.bool_)
    x, y = x.ravel(), y.ravel()
    apart = x - y
    signal, noise = float(x.dot(x)), float(apart.dot(apart))
    if not math.isfinite(signal + noise):
        finite = np.isfinite(x) & np.isfinite(y)
        signal, noise = (float(np.square(v[finite]).sum()) for v in (x, apart))
    return {"rows": int(agrees.size), "agreeing": int(agrees.sum()), "signal": signal, "noise": noise}


def _agreement(same: bool) -> dict[str, Any]:
    """Distance of two values that have no numbers to subtract."""
    return {"rows": 1, "agreeing": int(same), "signal": 0.0, "noise": 0.0}


def _resident_bytes() -> int | None:
    """Bytes of this process in memory now; `None` where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            pages = int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
