"""Measuring both models of a compile: need and latency, in stock onnxruntime and in Session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memoptc.ir.diagnostics import InputError
from memoptc.report import Report, Side
from memoptc.runtime.measure import InSession, Measured, Need, Slowdown, Way, measure, measure_need
from memoptc.runtime.options import Feed, RunOptions

_SESSION_SECONDS = 1.0
"""Seconds that timing one model in a further tier of `Session` may take."""


def measure_both(
    paths: tuple[Path, Path], feeds: tuple[Feed, Feed], threads: int, bound: float, report: Report
) -> None:
    """Measure original and candidate in fresh processes, their turns interleaved; figures go into the report.

    Args:
        paths: Original and candidate.
        feeds: What each is run with.
        threads: Intra-op threads; 0 leaves the choice to onnxruntime.
        bound: Slowdown that the candidate is held to; more turns are taken until they decide it.
        report: Gets the figures.
    """
    control, candidate = report.control, report.candidate
    (path, path_after), (feed, feed_after) = paths, feeds
    stock = RunOptions(threads=threads)
    before_session, after_session = in_session(path, feed, threads), in_session(path_after, feed_after, threads)
    cases: list[tuple[Path, Feed, Way]] = [(path, feed, stock), (path_after, feed_after, stock)]
    if after_session is not None:
        cases.append((path_after, feed_after, _way(None, threads)))
    files, inputs, ways = zip(*cases, strict=True)
    before, after, *session = measure(files, inputs, options=ways, bound=bound)
    control.session = None if before_session is None else {before_session.tier: need_json(before_session, control)}
    candidate.session = {}
    for found in [*session, *_planned(path_after, feed_after, threads)]:
        candidate.session[found.tier] = measured_json(found, candidate)
    for found in session:
        candidate.session[found.tier]["slowdown"] = vars(Slowdown.of(before.turns_ms, found.turns_ms))
    control.measured = both_json(before, before_session, control)
    candidate.measured = both_json(after, session[0] if session else None, candidate)
    candidate.measured["slowdown"] = vars(Slowdown.of(before.turns_ms, after.turns_ms))


def _planned(path: Path, feed: Feed, threads: int) -> list[Measured]:
    """Measure the tier `planned`; nothing where the C interface cannot be used, or what runs there are no tensors."""
    try:
        return measure([path], feed, options=_way("planned", threads), seconds=_SESSION_SECONDS)
    except InputError:
        return []


def in_session(path: Path, feed: Feed, threads: int) -> Need | None:
    """Measure what a model needs in the default tier of `Session`; `None` where it does not run there."""
    try:
        return measure_need(path, feed, options=_way(None, threads))
    except InputError:
        return None


def _way(tier: str | None, threads: int) -> InSession:
    return InSession(tier, {"threads": threads} if threads else {})


def need_json(found: Need, side: Side) -> dict[str, Any]:
    """Give the report's figures of a process, its parts included."""
    return {
        "need_bytes": found.need_bytes,
        "anonymous_bytes": found.anonymous_bytes,
        "parts": found.parts(side.planned_peak_bytes),
        "container_bytes": None,
        "load_peak_bytes": found.load_peak_bytes,
        "loaded_bytes": found.loaded_bytes,
        "run_peak_bytes": found.run_peak_bytes,
        "load_seconds": found.load_seconds,
        "memory_runs": found.memory_runs,
        "method": found.method,
    }


def measured_json(found: Measured, side: Side) -> dict[str, Any]:
    """Give the report's figures of a process with those of time."""
    times = {k: getattr(found, k) for k in ("latency_ms", "throughput_per_s", "runs")}
    return {**need_json(found, side), **times}


def both_json(stock: Measured, session: Need | None, side: Side) -> dict[str, Any]:
    """Give the report's `measured`: stock onnxruntime's figures, need and anonymous bytes of `Session` beside them."""
    found = measured_json(stock, side)
    for key in ("need_bytes", "anonymous_bytes"):
        found[key] = {"stock": found[key], "session": None if session is None else getattr(session, key)}
    return found
