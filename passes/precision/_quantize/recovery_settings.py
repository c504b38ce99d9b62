"""Recoveries that a search for 8-bit integers tries, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from memoptc.passes.precision._quantize.settings import Setting
from memoptc.passes.precision.equalize import Equalize
from memoptc.passes.precision.smooth import Smooth
from memoptc.passes.precision.split_outliers import SplitOutliers
from memoptc.runtime.observers import OBSERVERS


def recovery_settings() -> Iterator[tuple[str, Callable[[Setting], list[dict[str, Any]]]]]:
    """Changes of a setting to try, in order; all of one line start from the same setting."""
    both = (Equalize(), Smooth())
    yield "equalize, smooth", lambda start: [{"recoveries": r} for r in (both[:1], both[1:], both)]
    yield "split-outliers", lambda start: [{"recoveries": (*start.recoveries, SplitOutliers())}]
    yield "ranges of each run", lambda start: [{"run_time": True}]
    yield "ranges", lambda start: [{"method": m} for m in OBSERVERS]
    yield "clip-weights", lambda start: [{"clip": True}]
    yield "rounding", lambda start: [{"rounding": True}]
    yield "correct-bias", lambda start: [{"bias": True}]
