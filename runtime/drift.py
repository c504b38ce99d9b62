"""Drift: whether what a model meets in production is still what it was calibrated with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.call_statistics import STATISTICS, call_statistics
from memoptc.runtime.data import Data, DataSource
from memoptc.runtime.evaluate import port_type

MOST = 512
"""Samples of the reference that are kept at most."""

FEWEST = 5
"""Calls below which nothing is said."""

ERROR = 0.01
"""Probability of calling drift what is none, over all tests of one log."""


@dataclass(frozen=True)
class Drift:
    """One statistic of one input that is not distributed as in the calibration data.

    Args:
        input: Its name.
        statistic: One of `STATISTICS`.
        before: Median in the calibration data.
        now: Median of the calls.
        distance: Largest difference of the two cumulative distributions, 0 to 1.
        bound: What it may be.
        calls: Number of calls that were looked at: all, or the later half.
    """

    input: str
    statistic: str
    before: float
    now: float
    distance: float
    bound: float
    calls: int

    def __str__(self) -> str:
        return (
            f"input {self.input!r}: {self.statistic} {self.before:.4g} -> {self.now:.4g} (median of {self.calls} calls)"
        )


def reference_of(data: DataSource, inputs: Sequence[Any]) -> dict[str, dict[str, list[float]]]:
    """Give the sorted statistics of each input over the samples of some data; of many, evenly spaced ones.

    Args:
        data: The samples.
        inputs: The model's inputs, as onnxruntime's session names them.
    """
    types = {p.name: port_type(p.type, p.shape) for p in inputs}
    found: dict[str, dict[str, list[float]]] = {}
    for sample in Data(data, types):
        for name, value in sample.feed.items():
            for statistic, number in (call_statistics(value) or {}).items():
                found.setdefault(name, {s: [] for s in STATISTICS})[statistic].append(number)
    return {n: {s: _thinned(sorted(v)) for s, v in kept.items()} for n, kept in found.items()}


def _thinned(numbers: list[float]) -> list[float]:
    step = max(1, math.ceil(len(numbers) / MOST))
    return numbers[::step]


def read_log(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Give the last reference of a log of `Shadow`, and the calls since then.

    A process that was killed, or a full disk, leaves a part of a line; it is left out, and counted as `torn` in what is
    given first.

    Raises:
        InputError: the file is no such log, or cannot be read.
    """
    start: dict[str, Any] | None = None
    calls: list[dict[str, Any]] = []
    try:
        for text in filter(None, path.read_bytes().split(b"\n")):
            line = _read_line(text)
            if line is None:
                if start is None:
                    raise ValueError("it begins with something else")
                start["torn"] += 1
            elif line["event"] == "start":
                start, calls = {**line, "torn": 0}, []
            else:
                calls.append(line)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}.", hint="Give the file named by log=.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no log of memoptc.runtime.Shadow.", hint="Give the file named by log=.") from error
    if start is None:
        raise InputError(f"{path} has no beginning.", hint="Give a whole log.")
    return start, calls


def _read_line(text: bytes) -> dict[str, Any] | None:
    """Read a line, or what was written behind a part of one; `None` for a part of one."""
    for begin in (0, text.rfind(b'{"event": ')):
        try:
            found: dict[str, Any] = json.loads(text[max(begin, 0) :])
        except ValueError:
            continue
        return found
    return None


def drifts(reference: Mapping[str, Mapping[str, list[float]]], calls: Sequence[Mapping[str, Any]]) -> list[Drift]:
    """Find inputs that are not distributed as in the calibration data, those farthest apart first.

    Two samples of each statistic are compared by their cumulative distributions (Kolmogorov and Smirnov, two-sided),
    over all calls and over the later half; the bound is that of `ERROR` over all tests.

    Args:
        reference: What `reference_of` gave.
        calls: Lines of the log, in order.
    """
    windows = [list(calls), list(calls[len(calls) // 2 :])]
    tests = sum(len(kept) for kept in reference.values()) * len(windows) or 1
    found: dict[tuple[str, str], Drift] = {}
    for window in windows:
        for name, kept in reference.items():
            for statistic, before in kept.items():
                now = sorted(c["inputs"][name][statistic] for c in window if name in c.get("inputs", {}))
                if len(now) < FEWEST or not before:
                    continue
                a, b = len(before), len(now)
                bound = math.sqrt(-math.log(ERROR / tests / 2) / 2 * (a + b) / (a * b))
                distance = _distance(before, now)
                if distance > bound and distance > getattr(found.get((name, statistic)), "distance", 0.0):
                    medians = float(np.median(before)), float(np.median(now))
                    found[name, statistic] = Drift(name, statistic, *medians, distance, bound, len(now))
    return sorted(found.values(), key=lambda drift: drift.bound - drift.distance)


def _distance(a: Iterable[float], b: Iterable[float]) -> float:
    """Largest difference of two cumulative distributions of sorted numbers."""
    x, y = np.asarray(list(a)), np.asarray(list(b))
    points = np.concatenate([x, y])
    return float(
        np.abs(np.searchsorted(x, points, "right") / len(x) - np.searchsorted(y, points, "right") / len(y)).max()
    )
